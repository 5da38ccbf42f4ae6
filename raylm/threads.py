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
