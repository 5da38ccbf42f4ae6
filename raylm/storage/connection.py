"""How an object store is reached: everything but the credentials."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Connection:
    """How an object store is reached; credentials come from the provider's own chain."""

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    retries: int = 5
    timeout_seconds: float = 30.0

    @property
    def quick(self) -> Connection:
        """The same with few retries: for questions whose answer somebody waits for, before anything can be lost."""
        return replace(self, retries=min(2, self.retries))
