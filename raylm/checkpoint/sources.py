"""Where training state comes from when a group is formed: one contract for storage and for the memory of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.memory import Members, reshard
from raylm.checkpoint.restore import CheckpointInfo, fill, open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class StateSource(Protocol):
    """The whole state of one step, held somewhere."""

    @property
    def step(self) -> int:
        """The optimizer step that the state is of."""

    @property
    def scalars(self) -> Mapping[str, int | float]:
        """The optimizer's counters."""

    def fill(self, wanted: Sequence[tuple[Chunk, Tensor]]) -> None:
        """Fill every destination; CheckpointError before anything is written when the state does not cover them."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint as a source of state."""

    info: CheckpointInfo

    @property
    def step(self) -> int:
        """The optimizer step that the state is of."""
        return self.info.step

    @property
    def scalars(self) -> Mapping[str, int | float]:
        """The optimizer's counters."""
        return self.info.scalars

    def fill(self, wanted: Sequence[tuple[Chunk, Tensor]]) -> None:
        """Read the bytes that are needed and fill every destination."""
        fill(open_checkpoint(self.info), wanted)


@dataclass(frozen=True)
class HeldByMembers:
    """State that the members of a group hold in memory, each some of it: what outlived the group before.

    Every member makes one, with its own share; one that holds nothing takes `step` and `scalars` from another.
    """

    group: Members
    held: Sequence[tuple[Chunk, Tensor]]
    step: int
    scalars: Mapping[str, int | float]

    def fill(self, wanted: Sequence[tuple[Chunk, Tensor]]) -> None:
        """Send and receive what each member wants, and fill every destination; collective over the group."""
        reshard(self.group, self.held, wanted, step=self.step)
