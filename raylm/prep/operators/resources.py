"""What a preparation task asks of the machine that runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Resources:
    """What one task takes up; `custom` are resources that nodes of a Ray cluster declare themselves."""

    cpus: float = 1
    gpus: float = 0
    memory_bytes: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict)

    def ray_options(self) -> dict[str, object]:
        """The same as options of a Ray task."""
        options: dict[str, object] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_bytes is not None:
            options["memory"] = self.memory_bytes
        if self.custom:
            options["resources"] = dict(self.custom)
        return options

    def amounts(self) -> dict[str, float]:
        """Everything of which a task wants more than nothing, by the name that a Ray node gives it."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes or 0), **self.custom}
        return {name: amount for name, amount in named.items() if amount}


def most_of(wanted: Iterable[Resources]) -> Resources:
    """What a task needs in which all of these work one after the other: of each resource the most."""
    cpus, gpus, memory = 1.0, 0.0, 0
    custom: dict[str, float] = {}
    for one in wanted:
        cpus, gpus, memory = max(cpus, one.cpus), max(gpus, one.gpus), max(memory, one.memory_bytes or 0)
        for name, amount in one.custom.items():
            custom[name] = max(custom.get(name, 0.0), amount)
    return Resources(cpus, gpus, memory or None, custom)
