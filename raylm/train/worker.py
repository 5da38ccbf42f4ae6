"""One worker of one attempt: forms the group, builds, restores, steps, saves, and leaves when asked.

Comes in: a job, a seat in the group, a desk to report to. Leaves: a finished run, or an exception that says why
this attempt ended. `work` knows nothing of Ray: `alone` runs it in one process or under torchrun, and
`ray_worker` is the function that Ray Train runs.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, cast

from raylm.config.load import resolved_yaml
from raylm.config.schema import Job
from raylm.errors import CheckpointError, RaylmError, StorageError, TrainingError
from raylm.records import Batch, Progress, StepReport
from raylm.storage import Place
from raylm.train.coordinator import STOP, Coordinator, Seat
from raylm.train.plan import micro_batches_per_rank

if TYPE_CHECKING:
    from raylm.checkpoint.policy import Cadence
    from raylm.checkpoint.save import PendingSave
    from raylm.stream.loader import StreamSource
    from raylm.train.engine import Engine
    from raylm.train.group import Group

log = logging.getLogger(__name__)

SIGNALS = {"grow": 1, "preemption_notice": 2, "stop": 3, "stale": 4}
REASONS = {number: reason for reason, number in SIGNALS.items()}
# Dense bf16 peak in FLOP/s by device name (vendors' data sheets), for MFU.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12, "B200": 2250e12}


class LeaveGroup(Exception):
    """The attempt ends on purpose, with its state saved; not an error of the run."""


class PeerLost(Exception):
    """The group could not be formed because somebody did not come; worth another attempt."""


class Desk(Protocol):
    """How a worker talks to the coordinator, wherever that lives."""

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Call without waiting."""

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call and wait for the answer."""


class LocalDesk:
    """A coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        getattr(self._coordinator, name)(*args, **kwargs)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._coordinator, name)(*args, **kwargs)


class SilentDesk:
    """For ranks of a run without Ray that are not the first: only rank 0 keeps the log."""

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        return None

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return None


@dataclass
class Session:
    """What one attempt holds while it runs."""

    job: Job
    seat: Seat
    desk: Desk
    group: Group
    engine: Engine
    sources: list[StreamSource]
    fingerprint: str
    progress: Progress
    run: Place
    model_config: dict[str, Any]
    cadence: Cadence
    pending: PendingSave | None = None
    saved_step: int = 0
    held_out: dict[int, float] = field(default_factory=dict)

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for the group."""
        return self.seat.rank == 0


def work(job: Job, seat: Seat, desk: Desk) -> None:
    """Train until the run is finished, or the group is asked to leave (LeaveGroup), or an error ends the attempt."""
    from raylm.train.group import leave_group

    session: Session | None = None
    try:
        session = _open(job, seat, desk)
        _train(session)
    except RaylmError as error:
        desk.ask("fail", seat.attempt, error)
        raise
    finally:
        if session is not None:
            session.engine.destroy()
            leave_group(session.group)


def _open(job: Job, seat: Seat, desk: Desk) -> Session:
    """Form the group, build the engine and bring it to the newest committed step."""
    marks = [("", time.monotonic())]
    import torch

    from raylm.model.build import build_model
    from raylm.train.engine import Engine
    from raylm.train.group import agree, form_group

    cuda = torch.cuda.is_available() and job.workers.gpu is not False
    marks.append(("import", time.monotonic()))
    torch.set_num_threads(job.workers.threads or max(1, int(job.workers.cpus)))
    try:
        group = form_group(
            address=seat.address,
            rank=seat.rank,
            size=seat.size,
            generation=seat.attempt,
            timeout_seconds=job.workers.collective_timeout_seconds,
            backend="nccl" if cuda else "gloo",
            local_rank=seat.local_rank,
        )
    except TrainingError as error:
        raise PeerLost(error.message) from error
    marks.append(("meet", time.monotonic()))
    sources = open_sources(job)
    manifest = sources[0].manifest
    run = Place(job.run_url, job.object_store.reach())
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
        micro=job.batch.micro,
        accumulation=micro_batches_per_rank(job.batch.lanes, seat.size),
    )
    session = Session(
        job, seat, desk, group, engine, sources, data_fingerprint(sources), Progress(), run, config, _cadence(job, desk)
    )
    marks.append(("build", time.monotonic()))
    found = _restore(session)
    agree(group, [0.0])  # nobody steps, and nobody is told of a start, before all hold the state
    marks.append(("restore", time.monotonic()))
    if session.first:
        phases = {name: at - before for (_, before), (name, at) in pairwise(marks)}
        desk.ask("started", seat.attempt, step=session.progress.step, checkpoint=found, phases=phases)
    return session


def _cadence(job: Job, desk: Desk) -> Cadence:
    """When to save, knowing the failures of earlier attempts."""
    from raylm.checkpoint.policy import Cadence

    failures, trained_seconds = desk.ask("history") or (0, 0.0)
    return Cadence(
        started=time.monotonic() - trained_seconds,
        every_steps=job.checkpoint.every_steps,
        every_seconds=job.checkpoint.every_seconds,
        first_guess_seconds=job.checkpoint.mean_time_between_failures_seconds,
        failures=failures,
    )


def open_sources(job: Job) -> list[StreamSource]:
    """The job's shard folders with their manifests."""
    from raylm.shards import read_manifest
    from raylm.stream.loader import StreamSource

    reach = job.object_store.reach()
    sources = []
    for source in job.data_sources:
        folder = Place(source.path, reach)
        stages = tuple((stage.step, stage.weight) for stage in source.stages)
        sources.append(StreamSource(folder=folder, manifest=read_manifest(folder), weight=source.weight, stages=stages))
    return sources


def data_fingerprint(sources: list[StreamSource]) -> str:
    """One name for all the data of a run."""
    return "+".join(source.manifest.fingerprint for source in sources)


def _restore(session: Session) -> str | None:
    """Fill the engine from the newest committed checkpoint; returns its URL, None for a fresh start."""
    from raylm.checkpoint import layout
    from raylm.checkpoint.restore import fill, newest, open_checkpoint
    from raylm.train.group import agree

    job, folder = session.job, session.run / "checkpoints"
    # Rank 0 chooses: listings read by several ranks at several moments need not agree.
    found = newest(folder) if session.first else None
    step = int(agree(session.group, [float(found.step + 1) if found else 0.0])[0]) - 1
    if step < 0:
        return None
    if found is None:
        found = next((info for info in _committed(folder) if info.step == step), None)
        if found is None:
            raise CheckpointError(f"rank {session.seat.rank} does not see checkpoint step {step} in {folder.url}")
    check_meta(found.meta, job, session.fingerprint, found.place.url)
    fill(open_checkpoint(found), layout.wanted(session.engine.raw))
    layout.adopted(session.engine.raw, found.scalars)
    session.progress = Progress(**found.meta["progress"])
    session.saved_step = session.progress.step
    session.cadence = session.cadence.resumed(session.progress.step, time.monotonic())
    return found.place.url


def _committed(folder: Place) -> list[Any]:
    from raylm.checkpoint.restore import committed

    return list(committed(folder))


def publish(job: Job, run: Place) -> None:
    """Write what makes the run folder stand alone: its settings, and the tokenizer of its data."""
    from raylm.shards import TOKENIZER_FOLDER

    (run / "run.yaml").write_text(resolved_yaml(job))
    tokenizer = Place(job.data_sources[0].path, job.object_store.reach()) / TOKENIZER_FOLDER
    for file in tokenizer.list():
        (run / TOKENIZER_FOLDER / file.name).write_bytes(file.read_bytes())


def check_meta(meta: dict[str, Any], job: Job, fingerprint: str, url: str) -> None:
    """Refuse a checkpoint whose data or batch geometry is not the job's: its position would mean other sequences."""
    if meta["data_fingerprint"] != fingerprint and not job.data.accept_changed:
        raise CheckpointError(
            f"the data changed since {url}: fingerprint {meta['data_fingerprint']} then, {fingerprint} now",
            hint="point data.path at the shards of this run, start under another name, or pass "
            "--set data.accept_changed=true to go on with the new data (sequences may repeat or be skipped)",
        )
    then, now = meta["order"], order_settings(job)
    differing = [f"{key} was {then.get(key)}, is {value}" for key, value in now.items() if then.get(key) != value]
    if differing and not job.data.accept_changed:
        raise CheckpointError(
            f"the order of the data changed since {url}: {'; '.join(differing)}",
            hint="set them back, or start under another name; --set data.accept_changed=true goes on regardless",
        )


def order_settings(job: Job) -> dict[str, Any]:
    """Every setting that decides which sequences are in global batch t."""
    return {
        "batch.sequences": job.batch.sequences,
        "batch.micro": job.batch.micro,
        "train.seed": job.train.seed,
        "data.chunk_rows": job.data.chunk_rows,
        "data.window_chunks": job.data.window_chunks,
        "data.weights": [[s.weight, [[t.step, t.weight] for t in s.stages]] for s in job.data_sources],
    }


def _train(session: Session) -> None:
    """Consume the loop: record, evaluate, save, and leave when asked."""
    from raylm.stream.loader import Stream
    from raylm.train.group import agree
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
        deliver=job.data.deliver,
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
                due = session.first and not last and session.cadence.should_save(report.step, time.monotonic())
                code, save = agree(session.group, [wish, float(due)])
                if job.evaluate.every_steps and (last or report.step % job.evaluate.every_steps == 0):
                    _evaluate(session)
                if last:
                    break
                if code:
                    _leave(session, REASONS[int(code)])
                    return
                if save:
                    _begin_save(session, asynchronous=job.checkpoint.asynchronous)
                elif session.first and session.pending is not None and session.pending.done():
                    _settled(session)
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
    import torch.distributed as dist

    mine = [
        (micro.lane, int(row), int(epoch))
        for micro in batch.micro_batches
        for row, epoch in zip(micro.ids, micro.epochs, strict=True)
    ]
    size = session.seat.size
    table = torch.full((micro_batches_per_rank(session.job.batch.lanes, size) * session.job.batch.micro, 3), -1)
    table[: len(mine)] = torch.tensor(mine)
    tables = [torch.empty_like(table) for _ in range(size)] if session.first else None
    if size == 1:
        return mine
    dist.gather(table, tables)
    return [(lane, row, epoch) for one in tables or [] for lane, row, epoch in one.tolist() if lane >= 0]


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


def _begin_save(session: Session, *, asynchronous: bool) -> None:
    """Start saving the state of the current step; every rank calls it at the same step."""
    from raylm.checkpoint import layout
    from raylm.checkpoint.save import begin_save, tied_names

    job, seat = session.job, session.seat
    settle(session)
    session.pending = begin_save(
        session.run / "checkpoints",
        step=session.progress.step,
        attempt=seat.attempt,
        rank=seat.rank,
        world_size=seat.size,
        held=layout.owned(session.engine.raw),
        scalars=layout.scalars(session.engine.raw),
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
    session.cadence = session.cadence.saving(session.progress.step, time.monotonic())


def settle(session: Session) -> bool:
    """Wait for the save under way, if any; returns whether it was committed. Collective.

    A rank that could not write its part lets nobody wait for it: the save is given up by all, and training goes on
    from the checkpoint before.
    """
    from raylm.train.group import agree

    while True:
        # Rank 0 may have taken its ended save off the desk already; it still takes part.
        done, error = _outcome(session.pending)
        finished, failed = agree(session.group, [float(done), float(error is not None)])
        if failed or finished == session.seat.size:
            break
        time.sleep(0.02)
    if session.pending is not None:
        _settled(session)
    return not failed


def _outcome(pending: PendingSave | None) -> tuple[bool, Exception | None]:
    if pending is None:
        return True, None
    if not pending.done():
        return False, None
    try:
        pending.wait(0)
    except CheckpointError as error:
        return True, error
    except StorageError as error:
        return True, error
    return True, None


def _settled(session: Session) -> None:
    """Take the ended save off the desk and tell what became of it."""
    pending, session.pending = session.pending, None
    assert pending is not None
    done, error = _outcome(pending)
    seat, desk = session.seat, session.desk
    if error is not None:
        log.warning("rank %d: saving failed: %s", seat.rank, error)
        fields = {"step": session.progress.step, "rank": seat.rank, "message": str(error)}
        desk.tell("event", seat.attempt, "checkpoint_failed", fields)
        return
    if not session.first or not done:
        pending.abandon()  # another rank's part failed, and must not come late
        return
    saved = pending.wait(0)
    if not saved.committed:
        desk.tell("event", seat.attempt, "checkpoint_failed", {"step": saved.step, "message": saved.reason})
        return
    session.saved_step = saved.step
    session.cadence = session.cadence.measured(saved.stall_seconds, saved.total_seconds)
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
            session.run / "checkpoints", attempt=session.seat.attempt, newest=settings.keep, best=settings.keep_best
        )
    except RaylmError as error:
        log.warning("old checkpoints could not be removed: %s", error)


def _save_now(session: Session) -> bool:
    """Have the current step committed before returning; tries once more when the first save fails."""
    from raylm.train.group import agree

    for _ in range(2):
        settle(session)
        # Only rank 0 knows what is committed.
        if agree(session.group, [float(session.first and session.saved_step == session.progress.step)])[0]:
            return True
        _begin_save(session, asynchronous=False)
    settle(session)
    return bool(agree(session.group, [float(session.first and session.saved_step == session.progress.step)])[0])


def _leave(session: Session, reason: str) -> None:
    """Save what is not saved, tell the coordinator, and end the attempt."""
    from raylm.train.group import agree

    if reason == "stale":
        raise LeaveGroup("a newer attempt has begun")
    _save_now(session)
    if session.first:
        session.desk.ask("left", session.seat.attempt, reason, session.progress.step)
    # Nobody raises before rank 0 has committed and told: the first error ends every worker of the group.
    agree(session.group, [0.0])
    if reason != STOP:
        raise LeaveGroup(reason)


def _finish(session: Session) -> None:
    if not _save_now(session):
        raise StorageError(
            f"the finished model of step {session.progress.step} could not be saved in {session.run.url}/checkpoints",
            hint="see the checkpoint_failed events; the same command resumes from the newest checkpoint",
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


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def alone(job: Job) -> Coordinator | None:
    """Train without Ray: in this process, or as one rank of torchrun. Returns the coordinator on rank 0."""
    from raylm.checkpoint.save import claim_attempt

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    run = Place(job.run_url, job.object_store.reach())
    coordinator: Coordinator | None = None
    desk: Desk = SilentDesk()
    attempt, address = 1, f"127.0.0.1:{free_port()}"
    if rank == 0:
        publish(job, run)
        coordinator = Coordinator(
            run, job.workers, audit=job.train.audit, claim=lambda: claim_attempt(run / "checkpoints")
        )
        attempt = coordinator.begin(size)
        desk = LocalDesk(coordinator)
    if size > 1:
        attempt, address = _meet_through_torchrun(rank, attempt)
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    try:
        work(job, Seat(rank, size, attempt, address, local_rank, socket.gethostname()), desk)
    finally:
        if coordinator is not None:
            coordinator.close()
    return coordinator


def _meet_through_torchrun(rank: int, attempt: int) -> tuple[int, str]:
    """Hand rank 0's attempt number and a port of its own to every rank, through torchrun's store."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: Any = dist.TCPStore(host, port, is_master=rank == 0 and not served)  # type: ignore[attr-defined]
    if rank == 0:
        store.set("raylm/attempt", str(attempt))
        store.set("raylm/address", f"{host}:{free_port()}")
    return int(store.get("raylm/attempt")), store.get("raylm/address").decode()


# Calls that write the run's record: carried out one by one in the order they were made, so that a flush before a
# commit holds every step before it. The others must not wait behind a slow upload.
RECORDING = {"metric", "audit", "event", "flush", "started", "left", "finish", "fail", "close"}


class ActorDesk:
    """A coordinator behind a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._send(name, args, kwargs)

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        method = self._actor.record if name in RECORDING else self._actor.call
        return method.remote(name, *args, **kwargs)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(self._send(name, args, kwargs))
        except RayTaskError as error:
            if isinstance(error.cause, RaylmError):
                raise error.cause from None  # Ray's wrapper would show a person a traceback
            raise


def ray_worker(config: dict[str, Any]) -> None:
    """The function Ray Train runs on each worker: take a seat, then work."""
    import ray
    import ray.train

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    desk = ActorDesk(config["coordinator"])
    attempt = desk.ask("attempt")
    node = ray.get_runtime_context().get_node_id()
    address = None
    if rank == 0:
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    desk.ask("sit", attempt, rank, node, address)
    deadline = time.monotonic() + 60
    while address is None:
        address = desk.ask("address", attempt)
        if address is None:
            if time.monotonic() > deadline:
                raise TrainingError(f"rank 0 of attempt {attempt} did not say within 60 s where the group meets")
            time.sleep(0.02)
    work(config["job"], Seat(rank, size, attempt, address, context.get_local_rank(), node), desk)


def main(arguments: list[str]) -> None:
    """`python -m raylm.train.worker JOB [key=value …]`, also under torchrun: train without Ray."""
    from raylm.config.load import load_job

    alone(load_job(arguments[0], arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
