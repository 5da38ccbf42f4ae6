"""Where training state comes from when a group is formed: one contract for storage and for the memory of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from raylm.checkpoint.chunks import Chunk
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
