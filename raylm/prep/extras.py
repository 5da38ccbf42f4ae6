"""Libraries that only some sources need."""

from __future__ import annotations

from raylm.errors import DataError


def not_installed(what: str, error: ImportError) -> DataError:
    """The error that says which library is missing for `what`, and how to get it."""
    return DataError(f"{what} needs {error.name}, which is not installed", hint="pip install 'raylm[prepare]'")
