"""Datasets that do not come with raylm: below the folder RAYLM_TEST_DATA names, or tests skip with a clear word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

VARIABLE = "RAYLM_TEST_DATA"


def external_data(name: str) -> Path:
    """The file or folder `name` below RAYLM_TEST_DATA, whether or not it is there."""
    return Path(os.environ.get(VARIABLE) or f"{VARIABLE}-is-not-set") / name


def needs_data(name: str) -> pytest.MarkDecorator:
    """A mark that skips a test where `name` is not below RAYLM_TEST_DATA, and says so."""
    import pytest

    return pytest.mark.skipif(not external_data(name).exists(), reason=f"{name} is not below {VARIABLE}")
