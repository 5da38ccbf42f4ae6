"""Removing what is no longer wanted, so that at every moment what counts is whole.

A manifest goes before the parts that it
names; the newest committed checkpoint stays, and so does one that is being read.
"""

from __future__ import annotations

from raylm.checkpoint.manifest import DAMAGED, FENCE_FOLDER, MANIFEST
from raylm.checkpoint.restore import CheckpointInfo, checkpoint_at, step_folders, steps_being_read
from raylm.checkpoint.save import check_fence
from raylm.checkpoint.save_schedule import Candidate, keep
from raylm.errors import CheckpointError
from raylm.storage import StoragePath


def apply_retention(folder: StoragePath, *, fence: int, newest: int, best: int = 0) -> list[int]:
    """Remove checkpoints beyond the newest k and the best k by held-out loss; the steps that were removed.

    Also removed: what was left uncommitted below the newest committed step, since a run saves one step after another.
    Above it nothing is touched, so that a frozen writer that wakes up can at worst commit a checkpoint that is whole.
    Call it from one rank, when a save has been committed; StaleFence when a newer fence was claimed.
    """
    check_fence(folder, fence)
    paths = {int(path.name.removeprefix("step-")): path for path in step_folders(folder)}
    readable = ((step, _readable(path)) for step, path in paths.items())
    found = {step: one for step, one in readable if one is not None}
    if not found:
        return []
    kept = keep([Candidate(one.step, one.state.held_out_loss) for one in found.values()], newest=newest, best=best)
    removed = []
    for step in sorted(found.keys() - kept - steps_being_read(folder)):
        (paths[step] / MANIFEST).remove()
        # A reader that came meanwhile may go on: without the manifest the folder is a leftover for a later call.
        if step not in steps_being_read(folder):
            paths[step].remove()
            removed.append(step)
    for step in sorted(paths.keys() - set(removed) - steps_being_read(folder)):
        if step <= max(found):
            _remove_leftovers(paths[step], found.get(step))
    return removed


def _remove_leftovers(path: StoragePath, committed: CheckpointInfo | None) -> None:
    """Remove parts that no manifest names."""
    if committed is None:
        # One that is there is damaged, as is one that was set aside: they are left to a person.
        if not (path / MANIFEST).exists() and not (path / DAMAGED).exists():
            path.remove()
        return
    for child in path.list():
        match = FENCE_FOLDER.fullmatch(child.name)
        if match and int(match[1]) != committed.manifest.fence:
            child.remove()


def _readable(path: StoragePath) -> CheckpointInfo | None:
    # A damaged manifest is for a person to look at; retention neither counts nor removes it.
    try:
        return checkpoint_at(path)
    except CheckpointError:
        return None
