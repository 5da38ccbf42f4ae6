"""The state of the newest steps in host memory: kept while a group trains, and what the next group goes on from."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raylm.checkpoint.copies import Keeper, Pairs, Snapshot
from raylm.checkpoint.copy_schedule import SLOTS, neighbour_shift
from raylm.checkpoint.room import available_bytes, lacking
from raylm.coordination.rounds import Held
from raylm.records import Progress
from raylm.run.events import Warned
from raylm.train.branching import fill_engine
from raylm.train.context import ActiveGroup, RunContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from raylm.checkpoint.chunks import Chunk
    from raylm.checkpoint.state import Parent


@dataclass(frozen=True)
class Note:
    """What a snapshot says besides its tensors, the same on every rank."""

    progress: Progress
    scalars: dict[str, int | float]
    parent: Parent | None


def held_by(context: RunContext) -> list[Held]:
    """What this body holds, newest first."""
    return [Held(one.generation, one.step, one.size, one.ranks) for one in context.snapshots]


def keep_copies(context: RunContext, active: ActiveGroup) -> None:
    """Begin to keep this rank's shard and a neighbour's, with a first copy of the step the group starts from."""
    from raylm.checkpoint import zero_state

    member, schedule = active.member, context.copy_schedule
    shift = neighbour_shift(member.nodes or ("",) * member.size)
    pairs = zero_state.state_to_save(active.engine.raw)
    if (lacks := _lacks(context, active, pairs)) is not None:
        _go_without(context, active, lacks)
        return
    with active.group.watched():
        active.tenure.keeper = Keeper.build(active.group, member.generation, pairs, shift)
    # What rank 0 measured counts for all, newcomers too: they must decide alike.
    known = [schedule.copy_seconds or 0.0, schedule.step_seconds] if active.first else [0.0, 0.0]
    copying, stepping = active.group.all_reduce_sum(known)
    context.copy_schedule = replace(schedule, copy_seconds=copying or None, step_seconds=stepping)
    copy_now(context, active)
    context.snapshots = []  # of the generation before: this one has its own by now


def _lacks(context: RunContext, active: ActiveGroup, pairs: Pairs) -> str | None:
    """Why some node of the group has too little host memory for the copies; None when all have enough. Collective."""
    member = active.member
    shards = min(member.size, 2)
    first = shards * _bytes(pairs)
    later = (SLOTS - 1) * shards * _bytes(pair for pair in pairs if pair[0].kind != "frozen")
    held = sum(_bytes(one.pairs) for one in context.snapshots)  # until the first copy is whole
    here = member.nodes.count(member.nodes[member.rank]) if member.nodes else 1
    available = available_bytes()
    lack = lacking(first, available, workers=here) or lacking(first + later, available + here * held, workers=here)
    return next((one for one in active.group.all_gather_objects(lack) if one is not None), None)


def _bytes(pairs: Iterable[tuple[Chunk, Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in pairs)


def _go_without(context: RunContext, active: ActiveGroup, why: str) -> None:
    """Train without copies: a planned regroup goes over storage, and a loss back to the last checkpoint."""
    context.snapshots = []
    if active.first and not context.goes_without:
        message = f"{why}; none are kept: a lost worker costs the steps since the last checkpoint"
        context.coordination.report_event(active.member.generation, Warned(step=context.progress.step, message=message))
    context.goes_without = True


def copy_if_due(context: RunContext, active: ActiveGroup) -> float:
    """Copy the state of the current step where the schedule says so; the seconds that held training up. Collective.

    What is not copied after every step is sent on behind the next one.
    """
    keeper, schedule, step = active.tenure.keeper, context.copy_schedule, context.progress.step
    began = time.perf_counter()
    if keeper is None:
        return 0.0
    if keeper.under_way:
        with active.group.watched():
            keeper.finish()
    if schedule.due(step):
        _begin_copy(context, active, keeper)
        if schedule.interval == 1:
            with active.group.watched():
                keeper.finish()
    return time.perf_counter() - began


def copy_now(context: RunContext, active: ActiveGroup) -> None:
    """See that the current step's state is copied when this returns. Collective."""
    keeper = active.tenure.keeper
    if keeper is None:
        return
    with active.group.watched():
        if keeper.under_way:
            keeper.finish()
            active.group.barrier()
        if not any(one.step == context.progress.step for one in keeper.snapshots()):
            _begin_copy(context, active, keeper)
            keeper.finish()


def _begin_copy(context: RunContext, active: ActiveGroup, keeper: Keeper) -> None:
    from raylm.checkpoint import zero_state

    raw = active.engine.raw
    note = Note(context.progress, zero_state.scalars(raw), context.parent)
    with active.group.watched():
        keeper.begin(zero_state.state_to_save(raw), context.progress.step, note)
    context.copy_schedule = context.copy_schedule.copied(context.progress.step)


def take_over(context: RunContext, active: ActiveGroup, resume: Held) -> None:
    """Give the engine the state that the members hold in memory of `resume`'s step. Collective."""
    from raylm.checkpoint.sources import HeldByMembers

    own = [one for one in context.snapshots if (one.step, one.generation) == (resume.step, resume.generation)]
    given: list[Any] = active.group.all_gather_objects(own[0].note if own else None)
    note: Note = next(one for one in given if one is not None)
    pairs = [pair for one in own for pair in one.pairs]
    fill_engine(active.engine, HeldByMembers(active.group, pairs, resume.step, note.scalars))
    context.progress, context.parent = note.progress, note.parent


def keep_snapshots(context: RunContext, keeper: Keeper | None) -> None:
    """What a group that ends leaves in memory; where it never came to a copy, what the one before left stays."""
    found: list[Snapshot] = keeper.seal() if keeper is not None else []
    context.snapshots = found or context.snapshots
