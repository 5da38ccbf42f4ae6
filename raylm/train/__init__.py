"""Batches in, checkpoints and metrics out: the engine, the loop, the worker and the driver.

The package can be called: `raylm.train(job)` is the public way in, and has the same name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """The package as what `raylm.train` is to users: a function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What raylm.train.launch.train does."""
        from raylm.train.launch import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Train
