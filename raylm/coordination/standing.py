"""How the newest generation of a run stands, as its hub knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylm.coordination.contract import Reason


@dataclass
class Standing:
    """The newest generation. ranks: of each body. names: of each rank's machine, for people.

    cut: members that were told that it is over. doubted: why it broke by itself, as long as nobody knows whether all
    members reach each other.
    """

    generation: int = 0
    ranks: dict[int, int] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    wish: Reason | None = None
    wished_at: float | None = None
    broken: bool = False
    doubted: str = ""
    cut: set[int] = field(default_factory=set)
