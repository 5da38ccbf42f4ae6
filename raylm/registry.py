"""Named extension points: what is built in is imported when first asked for, what users add is registered by name.

A table of entries stands where its users are; an entry is a frozen record {name, settings class, functions} that lies
in one file with the settings class beside the code:

    OPERATORS: Registry[Operator] = Registry("operator", builtin={"sample": "raylm.prep.operators.sample:OPERATOR"})
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from raylm.errors import ConfigError

T = TypeVar("T")

_owner: ContextVar[str | None] = ContextVar("owner", default=None)
_tables: list[Registry[Any]] = []


class Registry(Generic[T]):
    """Entries by name; `what` says in errors what an entry is, such as "operator"."""

    def __init__(self, what: str, builtin: Mapping[str, str]) -> None:
        self.what = what
        self._builtin = dict(builtin)
        self._entries: dict[str, T] = {}
        self._owners: dict[str, str] = {}
        _tables.append(self)

    def register(self, name: str, entry: T, *, replace: bool = False) -> None:
        """Add an entry; the same entry again changes nothing, another one under a name in use is a ConfigError.

        With `replace`, as in a notebook's cell that is run again, a registered entry gives way; a built-in one never.
        """
        if name in self._builtin:
            raise ConfigError(
                f"{self.what} {name!r} cannot be registered: raylm has a built-in {self.what} of that name",
                hint="register it under another name",
            )
        if name in self._entries and self._entries[name] != entry and not replace:
            first = f", first by {self._owners[name]}" if name in self._owners else ""
            raise ConfigError(
                f"{self.what} {name!r} is registered twice{first}",
                hint="give the second one another name; in a notebook, replace=True puts it in the first one's place",
            )
        self._entries[name] = entry
        if owner := _owner.get():
            self._owners[name] = owner

    def get(self, name: str) -> T:
        """The entry of that name; ConfigError with the nearest name where there is none."""
        if name not in self._entries:
            if name not in self._builtin:
                near = difflib.get_close_matches(name, self.names(), 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.names())}"
                raise ConfigError(f"there is no {self.what} {name!r}", hint=hint)
            module, _, attribute = self._builtin[name].partition(":")
            self._entries[name] = getattr(importlib.import_module(module), attribute)
        return self._entries[name]

    def names(self) -> list[str]:
        """Every name, built-in and registered, sorted; imports nothing."""
        return sorted({*self._builtin, *self._entries})

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name with its entry, sorted by name; imports all of them."""
        for name in self.names():
            yield name, self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._entries

    def _forget(self, owner: str) -> None:
        for name in [name for name, by in self._owners.items() if by == owner]:
            del self._entries[name], self._owners[name]


@contextmanager
def registering(owner: str) -> Iterator[None]:
    """What is registered inside belongs to `owner`, a plugin: it replaces what the owner registered before.

    When the block fails, nothing of the owner's is left.
    """
    _forget(owner)
    token = _owner.set(owner)
    done = False
    try:
        yield
        done = True
    finally:
        _owner.reset(token)
        if not done:
            _forget(owner)


def _forget(owner: str) -> None:
    for table in _tables:
        table._forget(owner)
