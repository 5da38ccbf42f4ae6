"""Servers that do not answer are asked once in a block of looks at storage, each of which would wait for them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from raylm.errors import StorageError

_deaf: ContextVar[dict[str, str] | None] = ContextVar("deaf", default=None)


class Unreachable(StorageError):
    """The server cannot be reached."""


@contextmanager
def asked_once() -> Iterator[None]:
    """Within this block, in this thread, what a server holds that could not be reached fails at once."""
    token = _deaf.set({})
    try:
        yield
    finally:
        _deaf.reset(token)


def refuse_deaf(url: str, doing: str) -> None:
    """Raise for a URL whose server did not answer before."""
    if (what := (_deaf.get() or {}).get(_server(url))) is not None:
        raise Unreachable(f"cannot {doing} {url}: {what}")


def remember(url: str, what: str) -> None:
    """Note that the server behind this URL cannot be reached, and what was said of it."""
    if (known := _deaf.get()) is not None:
        known[_server(url)] = what


def _server(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
