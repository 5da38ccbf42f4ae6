"""One worker of one attempt: forms the group, builds, restores, steps, saves, and leaves when asked.

Comes in: a job, a seat in the group, a desk to report to. Leaves: a finished run, or an exception that says why
this attempt ended. `work` knows nothing of Ray: `alone` runs it in one process or under torchrun, and
`launch.ray_worker` under Ray Train.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from raylm.config.job import Job
from raylm.errors import RaylmError, StorageError
from raylm.records import Batch, Progress, StepReport
from raylm.run.folder import RunFolder
from raylm.train.accumulation import micro_batches_per_rank
from raylm.train.context import Desk, LeaveGroup, Session
from raylm.train.coordinator import STOP, Seat
from raylm.train.saving import begin_state_save, restore, save_now, save_schedule_of, take_settled
from raylm.train.sources import data_fingerprint, open_datasets

if TYPE_CHECKING:
    from raylm.train.group import Group

SIGNALS = {"grow": 1, "preemption_notice": 2, "stop": 3, "stale": 4}
REASONS = {number: reason for reason, number in SIGNALS.items()}
# Dense bf16 peak in FLOP/s by device name (vendors' data sheets), for MFU.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}


def work(job: Job, seat: Seat, desk: Desk, *, tidy: bool = True) -> None:
    """Train until the run is finished, or the group is asked to leave (LeaveGroup), or an error ends the attempt.

    tidy=False leaves engine and group standing: for a process that ends with the attempt, so that nobody waits.
    """
    from raylm.train.group import GroupBroken, leave_group

    group: Group | None = None
    session: Session | None = None
    try:
        marks = [("", time.monotonic())]
        group = _meet(job, seat, marks)
        session = _open(job, seat, desk, group, marks)
        _train(session)
    except GroupBroken:
        raise  # another group may go on
    except RaylmError as error:
        desk.ask("fail", seat.attempt, error)
        raise
    finally:
        if session is not None and tidy:
            session.engine.destroy()
        if group is not None and tidy:
            leave_group(group)


def _meet(job: Job, seat: Seat, marks: list[tuple[str, float]]) -> Group:
    """Import what training needs and form the group."""
    if not job.model.compile:
        # DeepSpeed decorates its Muon with torch.compile when it is imported, which loads Inductor: 1.4 s a start.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch

    from raylm.train import engine  # noqa: F401  # DeepSpeed and transformers load before anybody waits for anybody
    from raylm.train.group import Rendezvous, form_group

    marks.append(("import", time.monotonic()))
    cuda = torch.cuda.is_available() and job.workers.gpu is not False
    torch.set_num_threads(job.workers.threads or max(1, int(job.workers.cpus)))
    group = form_group(
        Rendezvous(
            address=seat.address,
            rank=seat.rank,
            size=seat.size,
            generation=seat.attempt,
            timeout_seconds=job.workers.collective_timeout_seconds,
            backend="nccl" if cuda else "gloo",
            local_rank=seat.local_rank,
        )
    )
    marks.append(("meet", time.monotonic()))
    return group


def _open(job: Job, seat: Seat, desk: Desk, group: Group, marks: list[tuple[str, float]]) -> Session:
    """Build the engine and bring it to the newest committed step."""
    from raylm.model.build import build_model
    from raylm.train.engine import Engine

    sources = open_datasets(job)
    manifest = sources[0].manifest
    run = RunFolder.of(job).path
    model = build_model(
        job.model,
        vocab_size=manifest.vocab_size,
        sequence_length=manifest.sequence_length,
        seed=job.train.seed,
        eos_id=manifest.eos_id,
    )
    config: dict[str, Any] = cast(Any, model).config.to_dict()
    engine = Engine.build(
        model,
        group,
        zero=job.zero,
        optim=job.optim,
        model_settings=job.model,
        micro_batch=job.batch.micro_batch,
        accumulation=micro_batches_per_rank(job.batch.lanes, seat.size),
    )
    session = Session(
        job,
        seat,
        desk,
        group,
        engine,
        sources,
        data_fingerprint(sources),
        Progress(),
        run,
        config,
        save_schedule_of(job, desk),
    )
    marks.append(("build", time.monotonic()))
    found = restore(session)
    group.barrier()  # nobody steps, and nobody is told of a start, before all hold the state
    marks.append(("restore", time.monotonic()))
    if session.first:
        phases = {name: at - before for (_, before), (name, at) in pairwise(marks)}
        desk.ask("started", seat.attempt, step=session.progress.step, checkpoint=found, phases=phases)
    return session


def _train(session: Session) -> None:
    """Consume the loop: record, evaluate, save, and leave when asked."""
    from raylm.stream.loader import Stream
    from raylm.train.loop import steps

    job, seat = session.job, session.seat
    stream = Stream(
        session.sources,
        batch=job.batch,
        data=job.data,
        seed=job.train.seed,
        rank=seat.rank,
        world_size=seat.size,
        start_step=session.progress.step,
        reader=job.data.reader,
        document_attention=job.model.document_attention,
    )
    seen: list[Batch] = []
    try:
        with _signals(session) as signal:
            watched = _remember(stream, seen)
            for report in steps(session.engine, watched, group=session.group, optim=job.optim, train=job.train):
                session.progress = _after(session.progress, report, job)
                _record(session, report, seen.pop())
                last = report.step >= job.train.steps
                wish = 0.0 if not session.first else float(SIGNALS.get(signal() or "", 0))
                due = session.first and not last and session.save_schedule.should_save(report.step, time.monotonic())
                code, save = session.group.all_reduce_sum([wish, float(due)])
                if job.evaluate.every_steps and (last or report.step % job.evaluate.every_steps == 0):
                    _evaluate(session)
                if last:
                    break
                if code:
                    _leave(session, REASONS[int(code)])
                    return
                if save:
                    begin_state_save(session, asynchronous=job.checkpoint.asynchronous)
                elif session.first and session.pending is not None and session.pending.done():
                    take_settled(session)
        _finish(session)
    finally:
        stream.close()


def _remember(batches: Iterator[Batch], seen: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        seen[:] = [batch]
        yield batch


def _after(progress: Progress, report: StepReport, job: Job) -> Progress:
    return Progress(
        step=report.step,
        tokens_seen=progress.tokens_seen + report.tokens,
        sequences_seen=progress.sequences_seen + job.batch.sequences,
    )


def _record(session: Session, report: StepReport, batch: Batch) -> None:
    """Report one step: rank 0 its metrics, every rank what it trained on when audited."""
    seat, desk = session.seat, session.desk
    if session.job.train.audit:
        rows = _gather_rows(session, batch)
        if session.first:
            desk.tell("audit", seat.attempt, report.step, rows)
    if not session.first:
        return
    line: dict[str, Any] = {
        "step": report.step,
        "loss": report.loss,
        "lr": report.lr,
        "grad_norm": report.grad_norm,
        "tokens": report.tokens,
        "tokens_per_second": report.tokens / report.seconds,
        "step_seconds": report.seconds,
        "workers": seat.size,
        "tokens_seen": session.progress.tokens_seen,
    }
    mfu = _mfu(session, report)
    if mfu is not None:
        line["mfu"] = mfu
    desk.tell("metric", seat.attempt, line)
    if report.skipped:
        desk.tell("event", seat.attempt, "bad_loss", {"step": report.step, "loss": str(report.loss)})


def _gather_rows(session: Session, batch: Batch) -> list[tuple[int, int, int]]:
    """On rank 0, (lane, sequence id, epoch) of everything the group trained on in this step; empty elsewhere."""
    import torch

    mine = [
        (micro.lane, int(row), int(epoch))
        for micro in batch.micro_batches
        for row, epoch in zip(micro.ids, micro.epochs, strict=True)
    ]
    size = session.seat.size
    table = torch.full((micro_batches_per_rank(session.job.batch.lanes, size) * session.job.batch.micro_batch, 3), -1)
    table[: len(mine)] = torch.tensor(mine)
    tables = session.group.gather(table)
    return [(lane, row, epoch) for one in tables for lane, row, epoch in one.tolist() if lane >= 0]


def _mfu(session: Session, report: StepReport) -> float | None:
    """Model FLOPs over the devices' peak, where the peak is known."""
    import torch

    if not session.group.device.startswith("cuda"):
        return None
    from raylm.model.budget import flops_per_token, shape_of

    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    if peak is None:
        return None
    manifest = session.sources[0].manifest
    shape = shape_of(session.job.model, manifest.vocab_size, manifest.sequence_length)
    per_token = flops_per_token(shape, manifest.sequence_length)
    return per_token * report.tokens / report.seconds / (peak * session.seat.size)


def _evaluate(session: Session) -> None:
    """Held-out loss over the same sequences at any number of workers."""
    from raylm.stream.loader import held_out, held_out_turns

    job, seat = session.job, session.seat
    began = time.monotonic()
    batches = held_out(
        session.sources,
        batch=job.batch,
        rank=seat.rank,
        world_size=seat.size,
        sequences=job.evaluate.sequences,
        document_attention=job.model.document_attention,
    )
    turns = held_out_turns(session.sources, batch=job.batch, world_size=seat.size, sequences=job.evaluate.sequences)
    loss_sum, tokens = session.engine.evaluate((micro for round_ in batches for micro in round_), turns)
    if tokens:
        session.held_out[session.progress.step] = loss_sum / tokens
    if session.first and tokens:
        session.desk.tell(
            "event",
            seat.attempt,
            "evaluated",
            {
                "step": session.progress.step,
                "held_out_loss": loss_sum / tokens,
                "tokens": tokens,
                "seconds": round(time.monotonic() - began, 3),
            },
        )


def _leave(session: Session, reason: str) -> None:
    """Save what is not saved, tell the coordinator, and end the attempt."""
    if reason == "stale":
        raise LeaveGroup("a newer attempt has begun")
    save_now(session)
    if session.first:
        session.desk.ask("left", session.seat.attempt, reason, session.progress.step)
    # Nobody raises before rank 0 has committed and told: the first error ends every worker of the group.
    session.group.barrier()
    if reason != STOP:
        raise LeaveGroup(reason)


def _finish(session: Session) -> None:
    if not save_now(session):
        raise StorageError(
            f"the finished model of step {session.progress.step} could not be saved in "
            f"{RunFolder(session.run).checkpoints}" + (f": {session.save_failure}" if session.save_failure else ""),
            hint="mend that; the same command resumes from the newest checkpoint",
        )
    if session.first:
        session.desk.ask(
            "finish",
            session.seat.attempt,
            session.progress.step,
            {"tokens": session.progress.tokens_seen, "sequences": session.progress.sequences_seen},
        )


@contextmanager
def _signals(session: Session, period_seconds: float = 0.2) -> Iterator[Any]:
    """On rank 0, ask the coordinator in the background whether to leave; yields a function that tells the newest."""
    newest: list[str | None] = [None]
    stop = threading.Event()

    def listen() -> None:
        while not stop.wait(period_seconds):
            newest[0] = session.desk.ask("signal", session.seat.attempt)

    thread = threading.Thread(target=listen, name="raylm-signals", daemon=True)
    if session.first:
        thread.start()
    try:
        yield lambda: newest[0]
    finally:
        stop.set()
