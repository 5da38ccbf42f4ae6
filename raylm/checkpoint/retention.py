"""Removing what is no longer wanted, so that at every moment what counts is whole.

Comes in: a run's checkpoints and the policy's numbers. Leaves: fewer folders. A manifest goes before the parts that it
names; the newest committed checkpoint stays, and so does one that is being read.
"""

from __future__ import annotations

from raylm.checkpoint import manifest as layout
from raylm.checkpoint.restore import CheckpointInfo, checkpoint_at, step_folders, steps_being_read
from raylm.checkpoint.save import check_fence
from raylm.checkpoint.save_schedule import Candidate, keep
from raylm.errors import CheckpointError
from raylm.storage import StoragePath


def apply_retention(folder: StoragePath, *, attempt: int, newest: int, best: int = 0) -> list[int]:
    """Remove checkpoints beyond the newest k and the best k by meta["held_out_loss"]; the steps that were removed.

    Also removed: what was left uncommitted below the newest committed step, since a run saves one step after another.
    Above it nothing is touched, so that a frozen writer that wakes up can at worst commit a checkpoint that is whole.
    Call it from one rank, when a save has been committed; StaleAttempt when a newer attempt has begun.
    """
    check_fence(folder, attempt)
    places = {int(place.name.removeprefix("step-")): place for place in step_folders(folder)}
    readable = ((step, _readable(place)) for step, place in places.items())
    found = {step: one for step, one in readable if one is not None}
    if not found:
        return []
    kept = keep([Candidate(one.step, _held_out_loss(one)) for one in found.values()], newest=newest, best=best)
    removed = []
    for step in sorted(found.keys() - kept - steps_being_read(folder)):
        (places[step] / layout.MANIFEST).remove()
        # A reader that came meanwhile may go on: without the manifest the folder is a leftover for a later call.
        if step not in steps_being_read(folder):
            places[step].remove()
            removed.append(step)
    for step in sorted(places.keys() - set(removed) - steps_being_read(folder)):
        if step <= max(found):
            _remove_leftovers(places[step], found.get(step))
    return removed


def _remove_leftovers(place: StoragePath, committed: CheckpointInfo | None) -> None:
    """Remove parts that no manifest names."""
    if committed is None:
        if not (place / layout.MANIFEST).exists():  # one that is there is damaged: it is left to a person
            place.remove()
        return
    for child in place.list():
        match = layout.ATTEMPT_FOLDER.fullmatch(child.name)
        if match and int(match[1]) != committed.manifest.attempt:
            child.remove()


def _readable(place: StoragePath) -> CheckpointInfo | None:
    # A damaged manifest is for a person to look at; retention neither counts nor removes it.
    try:
        return checkpoint_at(place)
    except CheckpointError:
        return None


def _held_out_loss(one: CheckpointInfo) -> float | None:
    value = one.meta.get("held_out_loss")
    return float(value) if isinstance(value, int | float) else None
