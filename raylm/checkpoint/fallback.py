"""A damaged checkpoint is no end of a run: the newest whole one before it stands in, and the damaged one is set aside.

Only what is not what was written counts as damage: a checkpoint of another format or model is an error of its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from raylm.checkpoint.manifest import DAMAGED, MANIFEST, DamagedCheckpoint
from raylm.checkpoint.restore import CheckpointInfo, checkpoint_at, step_folders
from raylm.storage import StoragePath


@dataclass(frozen=True)
class Readable:
    """The newest checkpoint whose manifest can be read, and those above it whose cannot, by their folders."""

    info: CheckpointInfo | None
    damaged: tuple[tuple[StoragePath, DamagedCheckpoint], ...] = ()

    def or_raise(self) -> CheckpointInfo | None:
        """The checkpoint; raises the first damage where checkpoints were committed and none can be read."""
        if self.info is None and self.damaged:
            raise none_whole(self.damaged[0][1].message)
        return self.info


def newest_readable(folder: StoragePath, below: int | None = None) -> Readable:
    """The newest committed checkpoint of a run with a readable manifest, of those before the step `below`."""
    damaged: list[tuple[StoragePath, DamagedCheckpoint]] = []
    for path in reversed(step_folders(folder)):
        if below is not None and int(path.name.removeprefix("step-")) >= below:
            continue
        try:
            found = checkpoint_at(path)
        except DamagedCheckpoint as error:
            damaged.append((path, error))
            continue
        if found is not None:
            return Readable(found, tuple(damaged))
    return Readable(None, tuple(damaged))


def readable(folder: StoragePath) -> list[CheckpointInfo]:
    """Every committed checkpoint of a run whose manifest can be read, the oldest first."""
    found = []
    for path in step_folders(folder):
        with suppress(DamagedCheckpoint):
            found.append(checkpoint_at(path))
    return [one for one in found if one is not None]


def none_whole(damage: str) -> DamagedCheckpoint:
    """The error for a run of whose checkpoints none is whole, given what is wrong with the newest."""
    return DamagedCheckpoint(
        f"{damage}, and no checkpoint before it is whole",
        hint="put the file back from a copy, or train again from step 0 under another name",
    )


def set_aside(path: StoragePath) -> None:
    """Let a damaged checkpoint count no longer: its manifest gets another name. Its files stay, for a person."""
    manifest = path / MANIFEST
    (path / DAMAGED).write_bytes(manifest.read_bytes())
    manifest.remove()
