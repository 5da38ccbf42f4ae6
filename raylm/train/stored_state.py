"""A run's newest state in storage, the same for every rank of a group; where it is damaged, the one before it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raylm.checkpoint.fallback import Readable, newest_readable, none_whole, set_aside
from raylm.checkpoint.manifest import DamagedCheckpoint, step_folder
from raylm.checkpoint.restore import CheckpointInfo, checkpoint_at
from raylm.checkpoint.sources import StoredCheckpoint
from raylm.errors import CheckpointError, StorageError
from raylm.storage import StoragePath

if TYPE_CHECKING:
    from torch import Tensor

    from raylm.checkpoint.chunks import Chunk
    from raylm.train.group import Group

log = logging.getLogger(__name__)


class StoredState:
    """A committed checkpoint as a source of state, in whose place an older one steps where any rank finds it damaged.

    info: the checkpoint that counts, the same on every rank. damaged: folders that cannot be read, with what is wrong.
    """

    def __init__(
        self, folder: StoragePath, group: Group, info: CheckpointInfo, damaged: Sequence[tuple[StoragePath, str]]
    ) -> None:
        self._folder, self._group = folder, group
        self.info, self.damaged = info, list(damaged)

    @property
    def step(self) -> int:
        """The optimizer step that the state is of."""
        return self.info.step

    @property
    def scalars(self) -> Mapping[str, int | float]:
        """The optimizer's counters."""
        return self.info.scalars

    def fill(self, wanted: Sequence[tuple[Chunk, Tensor]]) -> None:
        """Read the bytes that are needed and fill every destination. Collective.

        DamagedCheckpoint, on every rank, when no checkpoint is whole.
        """
        while found := self._damage(wanted):
            self.damaged.append((self.info.path, found))
            log.warning("checkpoint of step %d is damaged: %s", self.step, found)
            older, damaged = _agreed(self._folder, self._group, below=self.step)
            self.damaged += damaged
            if older is None:
                raise none_whole(self.damaged[0][1])
            self.info = older

    def set_damaged_aside(self) -> str | None:
        """Let what is damaged count no longer; what to tell about it. For one rank, when the state is whole."""
        if not self.damaged:
            return None
        for path, _ in self.damaged:
            try:
                set_aside(path)
            except StorageError as error:
                log.warning("a damaged checkpoint could not be set aside: %s", error)
        each = "; ".join(words for _, words in self.damaged)
        return f"{each}: it is set aside, and the run goes on from the checkpoint of step {self.step}"

    def _damage(self, wanted: Sequence[tuple[Chunk, Tensor]]) -> str:
        """Fill every destination; what any rank found wrong with the checkpoint, the same on all, else nothing."""
        own = ""
        try:
            StoredCheckpoint(self.info).fill(wanted)
        except DamagedCheckpoint as error:
            own = error.message
        if not self._group.all_reduce_sum([float(bool(own))])[0]:
            return ""
        told: list[str] = self._group.all_gather_objects(own)
        return next(words for words in told if words)


def newest_for_all(folder: StoragePath, group: Group) -> StoredState | None:
    """The newest committed checkpoint, as rank 0 sees it: listings read by several ranks need not agree. Collective."""
    info, damaged = _agreed(folder, group)
    return None if info is None else StoredState(folder, group, info, damaged)


def _agreed(
    folder: StoragePath, group: Group, below: int | None = None
) -> tuple[CheckpointInfo | None, list[tuple[StoragePath, str]]]:
    """The newest checkpoint with a readable manifest before the step `below`, as rank 0 sees it, and what it skipped.

    DamagedCheckpoint, on rank 0, where checkpoints were committed and the manifest of none can be read.
    """
    seen = newest_readable(folder, below) if group.rank == 0 else Readable(None)
    found = seen.or_raise() if below is None else seen.info
    step = int(group.all_reduce_sum([float(found.step + 1) if found else 0.0])[0]) - 1
    if step >= 0 and found is None:
        found = checkpoint_at(step_folder(folder, step))
        if found is None:
            raise CheckpointError(f"rank {group.rank} does not see checkpoint step {step} in {folder.url}")
    return found, [(path, error.message) for path, error in seen.damaged]
