"""Named extension points: what is built in is imported when first asked for, what users add is registered by name.

A table of entries stands where its users are; an entry is a frozen record {name, settings class, functions} that lies
in one file with the settings class beside the code:

    OPERATORS: Registry[Operator] = Registry("operator", builtin={"sample": "raylm.prep.operators.sample:OPERATOR"})
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from raylm.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name; `what` says in errors what an entry is, such as "operator"."""

    def __init__(self, what: str, builtin: Mapping[str, str]) -> None:
        self.what = what
        self._builtin = dict(builtin)
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> None:
        """Add an entry; the same entry again changes nothing, another one under a name in use is a ConfigError."""
        if name in self._builtin:
            raise ConfigError(
                f"{self.what} {name!r} cannot be registered: raylm has a built-in {self.what} of that name",
                hint="register it under another name",
            )
        if name in self._entries and self._entries[name] != entry:
            raise ConfigError(
                f"{self.what} {name!r} is registered twice",
                hint="give the second one another name, or list its plugin once",
            )
        self._entries[name] = entry

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
