"""The state of a run on its way to storage and back: begun, settled, told of, and found again by the next attempt."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.errors import CheckpointError, RaylmError, StorageError
from raylm.records import Progress
from raylm.run.folder import RunFolder
from raylm.storage import StoragePath
from raylm.train.context import Desk, LeaveGroup, Session
from raylm.train.sources import order_settings

if TYPE_CHECKING:
    from raylm.checkpoint.save import PendingSave
    from raylm.checkpoint.save_schedule import SaveSchedule
    from raylm.checkpoint.sources import StateSource
    from raylm.train.engine import Engine

log = logging.getLogger(__name__)


def save_schedule_of(job: Job, desk: Desk) -> SaveSchedule:
    """When to save, knowing the failures of earlier attempts."""
    from raylm.checkpoint.save_schedule import SaveSchedule

    failures, trained_seconds = desk.ask("history") or (0, 0.0)
    return SaveSchedule(
        started=time.monotonic() - trained_seconds,
        every_steps=job.checkpoint.every_steps,
        every_seconds=job.checkpoint.every_seconds,
        first_guess_seconds=job.checkpoint.mean_time_between_failures_seconds,
        failures=failures,
    )


def restore(session: Session) -> str | None:
    """Fill the engine from the newest committed checkpoint; returns its URL, None for a fresh start."""
    from raylm.checkpoint.restore import newest
    from raylm.checkpoint.sources import StoredCheckpoint

    job, folder = session.job, RunFolder(session.run).checkpoints
    # Rank 0 chooses: listings read by several ranks at several moments need not agree.
    found = newest(folder) if session.first else None
    step = int(session.group.all_reduce_sum([float(found.step + 1) if found else 0.0])[0]) - 1
    if step < 0:
        return None
    if found is None:
        found = next((info for info in _committed(folder) if info.step == step), None)
        if found is None:
            raise CheckpointError(f"rank {session.seat.rank} does not see checkpoint step {step} in {folder.url}")
    check_meta(found.meta, job, session.fingerprint, found.place.url)
    fill_engine(session.engine, StoredCheckpoint(found))
    session.progress = Progress(**found.meta["progress"])
    session.saved_step = session.progress.step
    session.save_schedule = session.save_schedule.resumed(session.progress.step, time.monotonic())
    return found.place.url


def fill_engine(engine: Engine, source: StateSource) -> None:
    """Give an engine the state that a source holds; collective over the engine's group."""
    from raylm.checkpoint import zero_state

    with engine.group.watched():
        source.fill(zero_state.wanted(engine.raw))
        zero_state.after_fill(engine.raw, source.scalars)


def _committed(folder: StoragePath) -> list[Any]:
    from raylm.checkpoint.restore import committed

    return list(committed(folder))


def check_meta(meta: dict[str, Any], job: Job, fingerprint: str, url: str) -> None:
    """Refuse a checkpoint whose data or batch geometry is not the job's: its position would mean other sequences."""
    if meta["data_fingerprint"] != fingerprint and not job.data.allow_changed:
        raise CheckpointError(
            f"the data changed since {url}: fingerprint {meta['data_fingerprint']} then, {fingerprint} now",
            hint="point data.path at the shards of this run, start under another name, or pass "
            "--set data.allow_changed=true to go on with the new data (sequences may repeat or be skipped)",
        )
    then, now = meta["order"], order_settings(job)
    differing = [f"{key} was {then.get(key)}, is {value}" for key, value in now.items() if then.get(key) != value]
    if differing and not job.data.allow_changed:
        raise CheckpointError(
            f"the order of the data changed since {url}: {'; '.join(differing)}",
            hint="set them back, or start under another name; --set data.allow_changed=true goes on regardless",
        )


def begin_state_save(session: Session, *, asynchronous: bool) -> None:
    """Start saving the state of the current step; every rank calls it at the same step."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.save import begin_save, tied_names

    job, seat = session.job, session.seat
    settle(session)
    session.pending = begin_save(
        RunFolder(session.run).checkpoints,
        step=session.progress.step,
        attempt=seat.attempt,
        rank=seat.rank,
        world_size=seat.size,
        held=zero_state.state_to_save(session.engine.raw),
        scalars=zero_state.scalars(session.engine.raw),
        meta={
            "progress": asdict(session.progress),
            "data_fingerprint": session.fingerprint,
            "order": order_settings(job),
            "model_config": session.model_config,
            "model": job.model.model_dump(mode="json"),
            "tied": tied_names(session.engine.model),
            "zero_stage": job.zero.stage,
            "held_out_loss": session.held_out.get(session.progress.step),
        },
        before_commit=lambda: session.desk.ask("flush"),
        asynchronous=asynchronous,
    )
    session.save_schedule = session.save_schedule.saving(session.progress.step, time.monotonic())


def settle(session: Session) -> bool:
    """Wait for the save under way, if any; returns whether it was committed. Collective.

    A rank that could not write its part lets nobody wait for it: the save is given up by all, and training goes on
    from the checkpoint before.
    """
    while True:
        # Rank 0 may have taken its ended save off the desk already; it still takes part.
        done, error = _outcome(session.pending)
        finished, failed = session.group.all_reduce_sum([float(done), float(error is not None)])
        if failed or finished == session.seat.size:
            break
        time.sleep(0.02)
    if session.pending is not None:
        take_settled(session)
    return not failed


def _outcome(pending: PendingSave | None) -> tuple[bool, Exception | None]:
    from raylm.checkpoint.save import StaleAttempt

    if pending is None:
        return True, None
    if not pending.done():
        return False, None
    try:
        pending.wait(0)
    except StaleAttempt as error:
        raise LeaveGroup(error.message) from error
    except CheckpointError as error:
        return True, error
    except StorageError as error:
        return True, error
    return True, None


def take_settled(session: Session) -> None:
    """Take the ended save off the desk and tell what became of it."""
    pending, session.pending = session.pending, None
    assert pending is not None
    done, error = _outcome(pending)
    seat, desk = session.seat, session.desk
    if error is not None:
        session.save_failure = str(error)
        log.warning("rank %d: saving failed: %s", seat.rank, error)
        fields = {"step": session.progress.step, "rank": seat.rank, "message": str(error)}
        desk.tell("event", seat.attempt, "checkpoint_failed", fields)
        return
    if not session.first or not done:
        pending.abandon()  # another rank's part failed, and must not come late
        return
    saved = pending.wait(0)
    if not saved.committed:
        session.save_failure = saved.reason or ""
        desk.tell("event", seat.attempt, "checkpoint_failed", {"step": saved.step, "message": saved.reason})
        return
    session.saved_step = saved.step
    session.save_schedule = session.save_schedule.measured(saved.stall_seconds, saved.total_seconds)
    desk.tell(
        "event",
        seat.attempt,
        "checkpoint_committed",
        {
            "step": saved.step,
            "seconds": round(saved.total_seconds, 3),
            "stall_seconds": round(saved.stall_seconds, 4),
            "bytes": saved.checkpoint_bytes,
        },
    )
    # Deleting takes a request a file on an object store: not in the training's way.
    threading.Thread(target=_retire, args=(session,), name="raylm-retention", daemon=True).start()


def _retire(session: Session) -> None:
    from raylm.checkpoint.retention import apply_retention

    settings = session.job.checkpoint
    try:
        apply_retention(
            RunFolder(session.run).checkpoints,
            attempt=session.seat.attempt,
            newest=settings.keep,
            best=settings.keep_best,
        )
    except RaylmError as error:
        log.warning("old checkpoints could not be removed: %s", error)


def save_now(session: Session) -> bool:
    """Have the current step committed before returning; tries once more when the first save fails."""
    for _ in range(2):
        settle(session)
        # Only rank 0 knows what is committed.
        if session.group.all_reduce_sum([float(session.first and session.saved_step == session.progress.step)])[0]:
            return True
        begin_state_save(session, asynchronous=False)
    settle(session)
    return bool(session.group.all_reduce_sum([float(session.first and session.saved_step == session.progress.step)])[0])
