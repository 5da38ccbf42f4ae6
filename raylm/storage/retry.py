"""Trying again after a pause that grows and varies, so that many workers do not come back at the same moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_MAX_SECONDS = 10.0


def pause_seconds(trial: int, first_seconds: float = 0.1) -> float:
    """How long to wait after the failure of this trial, counted from 0: doubling, within half and one and a half."""
    return min(_MAX_SECONDS, first_seconds * 2.0**trial) * (0.5 + random.random())


def retried(
    action: Callable[[], T],
    *,
    errors: type[Exception] | tuple[type[Exception], ...],
    retries: int,
    worth: Callable[[Exception], bool] = lambda error: True,
    first_seconds: float = 0.1,
) -> T:
    """What the action gives, tried up to `retries` times more while it raises one of `errors` that is `worth` it."""
    for trial in range(retries):
        try:
            return action()
        except errors as error:
            if not worth(error):
                raise
        time.sleep(pause_seconds(trial, first_seconds))
    return action()
