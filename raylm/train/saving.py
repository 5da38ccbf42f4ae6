"""The state of a run on its way to storage and back: saved, reported, and found again by the next group."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.coordination.contract import Coordination, Generation, Reason
from raylm.errors import CheckpointError, RaylmError, StorageError
from raylm.records import Progress
from raylm.run.events import CheckpointCommitted, CheckpointFailed, Warned
from raylm.run.identity import carried_over, check_same_run
from raylm.train.branching import branch, fill_engine
from raylm.train.context import ActiveGroup, GroupEnded, RunContext, SaveUnderWay

if TYPE_CHECKING:
    from raylm.checkpoint.save import Saved
    from raylm.checkpoint.save_schedule import SaveSchedule
    from raylm.checkpoint.state import RunState
    from raylm.run.folder import RunFolder
    from raylm.train.stored_state import StoredState

log = logging.getLogger(__name__)


def save_schedule_of(job: Job, coordination: Coordination) -> SaveSchedule:
    """When to save, knowing the failures so far."""
    from raylm.checkpoint.save_schedule import SaveSchedule

    history = coordination.history()
    return SaveSchedule(
        started=time.monotonic() - history.training_seconds,
        every_steps=job.checkpoint.every_steps,
        every_seconds=job.checkpoint.every_seconds,
        first_guess_seconds=job.checkpoint.mean_time_between_failures_seconds,
        failures=history.failures,
    )


def restore(context: RunContext, active: ActiveGroup, stored: StoredState | None) -> str | None:
    """Fill the engine from the checkpoint found; returns its URL, None for a fresh start. Collective."""
    if stored is None:
        # This body may have trained before, in a state that nobody holds any more.
        context.progress, context.parent, context.saved_step = Progress(), None, 0
        context.save_schedule = context.save_schedule.resumed(0, time.monotonic())
        context.lines.clear()
        branch(context, active)
        return None
    changed = context.job.data.allow_changed
    check_same_run(stored.info.state.identity, context.identity, url=stored.info.path.url, allow_changed_data=changed)
    fill_engine(active.engine, stored)
    found = stored.info
    context.identity = carried_over(found.state.identity, context.identity)
    if active.first and (told := stored.set_damaged_aside()) is not None:
        context.coordination.report_event(active.member.generation, Warned(step=found.step, message=told))
    context.progress, context.parent = found.state.progress, found.state.parent
    context.saved_step = context.progress.step
    context.save_schedule = context.save_schedule.resumed(context.progress.step, time.monotonic())
    context.lines.clear()  # of steps that are trained again
    if active.first and context.job.checkpoint.keep_best:
        context.best = _best_in_storage(context)
    return found.path.url


def config_where_absent(job: Job, folder: RunFolder) -> dict[str, Any]:
    """The model's config in the newest checkpoint where the folder or file that the job names is not there any more."""
    from raylm.checkpoint.fallback import newest_readable

    named = job.model.path or (job.model.config if isinstance(job.model.config, str) else None)
    if named is None or Path(named).exists():
        return {}
    found = newest_readable(folder.checkpoints).or_raise()
    return {} if found is None else dict(found.state.model_config)


def _best_in_storage(context: RunContext) -> list[float]:
    """The held-out losses of the checkpoints that are kept for theirs."""
    from raylm.checkpoint.fallback import readable

    losses = (info.state.held_out_loss for info in readable(context.folder.checkpoints))
    return sorted({loss for loss in losses if loss is not None})[: context.job.checkpoint.keep_best]


def run_state(context: RunContext, active: ActiveGroup) -> RunState:
    """What a checkpoint of the current step says besides its tensors."""
    from raylm.checkpoint.state import RunState, tied_names

    return RunState(
        progress=context.progress,
        identity=context.identity,
        tokenizer=context.datasets[0].manifest.tokenizer,
        model_config=context.model_config,
        model=context.job.model,
        tied=tied_names(active.engine.model),
        zero_stage=context.job.zero.stage,
        held_out_loss=context.held_out.get(context.progress.step),
        parent=context.parent,
    )


def begin_state_save(context: RunContext, active: ActiveGroup, *, asynchronous: bool) -> None:
    """Start saving the state of the current step; every rank calls it at the same step.

    Where storage does not give this generation the right to commit, the save has failed, and training goes on.
    """
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.save import SaveRequest, begin_save

    member, step = active.member, context.progress.step
    finish_save(context, active)
    context.save_schedule = context.save_schedule.saving(step, time.monotonic())
    fence = fence_of(context, active)
    if fence is None:
        return
    request = SaveRequest(
        context.folder.checkpoints,
        run_state(context, active),
        fence=fence,
        rank=member.rank,
        world_size=member.size,
        scalars=zero_state.scalars(active.engine.raw),
        before_commit=context.coordination.flush,
    )
    save = begin_save(request, zero_state.state_to_save(active.engine.raw), asynchronous=asynchronous)
    context.pending = SaveUnderWay(save, step, fence, commits=active.first)


def fence_of(context: RunContext, active: ActiveGroup) -> int | None:
    """The number under which this generation commits, claimed at its first save; None if storage fails. Collective."""
    if active.fence is None:
        own = _claimed(context, active) if active.first else 0
        found = int(active.group.all_reduce_sum([float(own)])[0])
        active.fence = found if found >= 0 else None  # claimed anew at the next save
    return active.fence


def _claimed(context: RunContext, active: ActiveGroup) -> int:
    """The claim of rank 0, for all: a fence, or -1 where storage did not give one."""
    generation = active.member.generation
    try:
        return context.coordination.fence(generation)
    except (CheckpointError, StorageError) as error:
        context.save_failure = str(error)
        log.warning("no right to commit: %s", error)
        failed = CheckpointFailed(step=context.progress.step, message=str(error))
        context.coordination.report_event(generation, failed)
        return -1


def finish_save(context: RunContext, active: ActiveGroup) -> bool:
    """Wait for the save under way, if any; returns whether it succeeded everywhere. Collective.

    It may have begun in the generation before. A rank that could not write its part lets nobody wait for it: the save
    is given up by all, and training goes on from the checkpoint before.
    """
    while True:
        # Whoever commits may have reported its ended save already; it still takes part.
        done, error = _result(context.pending)
        finished, failed = active.group.all_reduce_sum([float(done), float(error is not None)])
        if failed or finished == active.member.size:
            break
        time.sleep(0.02)
    if context.pending is not None:
        report_save(context, active)
    return not failed


def give_up_save(context: RunContext) -> None:
    """Let the save under way go: a member was lost, and with it perhaps its part."""
    if context.pending is not None:
        context.pending.save.abandon()
        context.pending = None


def _result(pending: SaveUnderWay | None) -> tuple[bool, Exception | None]:
    """Whether a save has ended, and why it failed if it did."""
    from raylm.checkpoint.save import StaleFence

    if pending is None:
        return True, None
    if not pending.save.done():
        return False, None
    try:
        pending.save.wait(0)
    except StaleFence as error:
        raise GroupEnded(Reason.STALE) from error
    except (CheckpointError, StorageError) as error:
        return True, error
    return True, None


def report_save(context: RunContext, active: ActiveGroup) -> None:
    """Take note of the ended save, and on rank 0 report whether it was committed."""
    pending, context.pending = context.pending, None
    assert pending is not None
    done, error = _result(pending)
    member, coordination = active.member, context.coordination
    if error is not None:
        context.save_failure = str(error)
        log.warning("rank %d: saving failed: %s", member.rank, error)
        failed = CheckpointFailed(step=pending.step, rank=member.rank, message=str(error))
        coordination.report_event(member.generation, failed)
        return
    if not pending.commits or not done:
        pending.save.abandon()  # another rank's part failed, and must not come late
        return
    saved = pending.save.wait(0)
    if not saved.committed:
        context.save_failure = saved.reason or ""
        coordination.report_event(member.generation, CheckpointFailed(step=saved.step, message=context.save_failure))
        return
    context.saved_step = saved.step
    context.save_schedule = context.save_schedule.measured(saved.stall_seconds, saved.total_seconds)
    coordination.report_event(member.generation, _committed(saved))
    # Deleting takes a request per file on an object store: not in the training's way.
    threading.Thread(target=_retire, args=(context, pending.fence), name="raylm-retention", daemon=True).start()


def settle_save(context: RunContext, generation: Generation, seconds: float) -> None:
    """Let this body's part of the save under way reach storage before it ends, and report it where that commits it."""
    pending, context.pending = context.pending, None
    if pending is None:
        return
    try:
        saved = pending.save.wait(seconds)
    except (RaylmError, TimeoutError) as error:
        log.warning("a checkpoint under way was given up: %s", error)
        return
    if pending.commits and saved.committed:
        context.coordination.report_event(generation, _committed(saved))
        context.coordination.flush()  # before this process ends


def _committed(saved: Saved) -> CheckpointCommitted:
    return CheckpointCommitted(
        step=saved.step,
        seconds=round(saved.total_seconds, 3),
        stall_seconds=round(saved.stall_seconds, 4),
        bytes=saved.checkpoint_bytes,
    )


def _retire(context: RunContext, fence: int) -> None:
    from raylm.checkpoint.retention import apply_retention

    settings = context.job.checkpoint
    try:
        apply_retention(
            context.folder.checkpoints,
            fence=fence,
            newest=settings.keep,
            best=settings.keep_best,
        )
    except RaylmError as error:
        log.warning("old checkpoints could not be removed: %s", error)


def save_now(context: RunContext, active: ActiveGroup) -> bool:
    """Have the current step committed before returning; tries once more when the first save fails. Collective."""
    for _ in range(2):
        finish_save(context, active)
        if _is_saved(context, active):
            return True
        begin_state_save(context, active, asynchronous=False)
    finish_save(context, active)
    return _is_saved(context, active)


def _is_saved(context: RunContext, active: ActiveGroup) -> bool:
    """Whether the current step is committed, which only the rank that committed it knows. Collective."""
    saved = context.saved_step == context.progress.step
    return bool(active.group.all_reduce_sum([float(saved)])[0])
