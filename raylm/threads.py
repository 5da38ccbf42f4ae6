"""What a thread ends with, for whoever waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def settle(future: Future[Result], function: Callable[[], Result]) -> None:
    """Call a function and hand what it returns or raises to the future."""
    try:
        result = function()
    except BaseException as error:  # whatever ends a thread's work is raised where the future is waited for
        future.set_exception(error)
    else:
        future.set_result(result)


def error_of(function: Callable[[], object]) -> BaseException | None:
    """Call a function at the edge of a thread; what it raised, if it did."""
    future: Future[object] = Future()
    settle(future, function)
    return future.exception()
