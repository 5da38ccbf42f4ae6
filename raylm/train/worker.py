"""One worker of one attempt: forms the group, builds, restores, steps, saves, and leaves when asked.

Comes in: a job, a seat in the group, a desk to report to. Leaves: a finished run, or an exception that says why
this attempt ended. `work` knows nothing of Ray: `alone` runs it in one process or under torchrun, and
`ray_worker` is the function that Ray Train runs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raylm.config.load import resolved_yaml
from raylm.config.schema import Job
from raylm.errors import CheckpointError, RaylmError, TrainingError
from raylm.records import Batch, Progress, StepReport
from raylm.storage import Place
from raylm.train.coordinator import STOP, Coordinator, Seat
from raylm.train.plan import micro_batches_per_rank

if TYPE_CHECKING:
    from raylm.checkpoint.save import PendingSave
    from raylm.stream.loader import StreamSource
    from raylm.train.engine import Engine
    from raylm.train.group import Group

SIGNALS = {"grow": 1, "preemption_notice": 2, "stop": 3, "stale": 4}
REASONS = {number: reason for reason, number in SIGNALS.items()}
# Dense bf16 peak in FLOP/s by device name (vendors' data sheets), for MFU.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12, "B200": 2250e12}


class LeaveGroup(Exception):
    """The attempt ends on purpose, with its state saved; not an error of the run."""


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
    pending: PendingSave | None = None
    saved_step: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for the group."""
        return self.seat.rank == 0


def work(job: Job, seat: Seat, desk: Desk) -> None:
    """Train until the run is finished, or the group is asked to leave (LeaveGroup), or an error ends the attempt."""
    from raylm.train.group import leave_group

    group: Group | None = None
    try:
        session = _open(job, seat, desk)
        group = session.group
        _train(session)
    except RaylmError as error:
        desk.ask("fail", error)
        raise
    finally:
        if group is not None:
            leave_group(group)


def _open(job: Job, seat: Seat, desk: Desk) -> Session:
    """Form the group, build the engine and bring it to the newest committed step."""
    began = time.monotonic()
    import torch

    from raylm.model.build import build_model
    from raylm.train.engine import Engine
    from raylm.train.group import agree, form_group

    cuda = torch.cuda.is_available() and job.workers.gpu is not False
    torch.set_num_threads(job.workers.threads or max(1, int(job.workers.cpus)))
    group = form_group(
        address=seat.address,
        rank=seat.rank,
        size=seat.size,
        generation=seat.attempt,
        timeout_seconds=job.workers.collective_timeout_seconds,
        backend="nccl" if cuda else "gloo",
        local_rank=seat.local_rank,
    )
    sources = open_sources(job)
    manifest = sources[0].manifest
    run = Place(job.run_url, job.object_store.reach())
    model = build_model(
        job.model, vocab_size=manifest.vocab_size, sequence_length=manifest.sequence_length, seed=job.train.seed
    )
    engine = Engine.build(
        model,
        group,
        zero=job.zero,
        optim=job.optim,
        model_settings=job.model,
        micro=job.batch.micro,
        accumulation=micro_batches_per_rank(job.batch.lanes, seat.size),
    )
    session = Session(job, seat, desk, group, engine, sources, data_fingerprint(sources), Progress(), run)
    found = _restore(session)
    agree(group, [0.0])  # nobody steps, and nobody is told of a start, before all hold the state
    if session.first:
        desk.ask(
            "started",
            seat.attempt,
            step=session.progress.step,
            checkpoint=found,
            seconds=time.monotonic() - began,
        )
    return session


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
    from raylm.checkpoint.restore import fill, newest
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
    fill(found, layout.wanted(session.engine.deepspeed))
    layout.adopted(session.engine.deepspeed, found.scalars)
    session.progress = Progress(**found.meta["progress"])
    session.saved_step = session.progress.step
    return found.place.url


def _committed(folder: Place) -> list[Any]:
    from raylm.checkpoint.restore import committed

    return list(committed(folder))


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
    from raylm.checkpoint.policy import Cadence
    from raylm.stream.loader import Stream
    from raylm.train.group import agree
    from raylm.train.loop import steps

    job, seat, desk = session.job, session.seat, session.desk
    cadence = Cadence(job.checkpoint, step=session.progress.step, now=time.monotonic())
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
                due = session.first and not last and cadence.should_save(report.step, time.monotonic())
                code, save = agree(session.group, [wish, float(due)])
                if job.evaluate.every_steps and (last or report.step % job.evaluate.every_steps == 0):
                    _evaluate(session)
                if last:
                    break
                if code:
                    _leave(session, REASONS[int(code)])
                    return
                if save:
                    _save(session, cadence, asynchronous=job.checkpoint.asynchronous)
        _finish(session, cadence)
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
        rows = [
            (micro.lane, int(row), int(epoch))
            for micro in batch.micro_batches
            for row, epoch in zip(micro.ids, micro.epochs, strict=True)
        ]
        desk.ask("audit", seat.attempt, report.step, rows)
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


def _mfu(session: Session, report: StepReport) -> float | None:
    """Model FLOPs over the devices' peak, where the peak is known."""
    import torch

    if not session.group.device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    if peak is None:
        return None
    per_token = session.engine.flops_per_token(session.sources[0].manifest.sequence_length)
    return per_token * report.tokens / report.seconds / (peak * session.seat.size)


def _evaluate(session: Session) -> None:
    """Held-out loss over the same sequences at any number of workers."""
    from raylm.stream.loader import held_out

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
    loss_sum, tokens = session.engine.evaluate(batches)
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


def _save(session: Session, cadence: Any, *, asynchronous: bool) -> None:
    """Save the state of the current step; every rank calls it at the same step."""
    from raylm.checkpoint import layout
    from raylm.checkpoint.save import begin_save

    job, seat, desk, step = session.job, session.seat, session.desk, session.progress.step
    settle(session)
    began = time.monotonic()
    session.pending = begin_save(
        session.run / "checkpoints",
        step=step,
        attempt=seat.attempt,
        rank=seat.rank,
        world_size=seat.size,
        held=layout.owned(session.engine.deepspeed),
        scalars=layout.scalars(session.engine.deepspeed),
        meta={
            "progress": asdict(session.progress),
            "data_fingerprint": session.fingerprint,
            "order": order_settings(job),
            "model_config": session.engine.model_config,
            "model": job.model.model_dump(),
            "zero_stage": job.zero.stage,
            "world_size": seat.size,
        },
        before_commit=(lambda: desk.ask("flush")) if session.first else None,
        asynchronous=asynchronous,
        on_commit=(lambda saved: _committed_event(session, saved)) if session.first else None,
    )
    session.saved_step = step
    if cadence is not None:
        mtbf = job.checkpoint.mean_time_between_failures_seconds
        if session.first and not (job.checkpoint.every_steps or job.checkpoint.every_seconds):
            mtbf = desk.ask("mean_time_between_failures", mtbf) or mtbf
        cadence.saved(step, time.monotonic(), stall_seconds=time.monotonic() - began, mtbf_seconds=mtbf)


def _committed_event(session: Session, saved: Any) -> None:
    """Runs on rank 0 when a checkpoint has its manifest: tell it, then drop what retention no longer keeps."""
    from raylm.checkpoint.policy import apply_retention

    session.desk.tell(
        "event",
        session.seat.attempt,
        "checkpoint_committed",
        {
            "step": saved.step,
            "seconds": round(saved.total_seconds, 3),
            "stall_seconds": round(saved.stall_seconds, 3),
            "bytes": saved.bytes,
        },
    )
    apply_retention(session.run / "checkpoints", session.job.checkpoint, attempt=session.seat.attempt)


def settle(session: Session) -> None:
    """Wait for the save under way, if any."""
    if session.pending is not None:
        pending, session.pending = session.pending, None
        pending.wait()


def _leave(session: Session, reason: str) -> None:
    """Save what is not saved, tell the coordinator, and end the attempt."""
    from raylm.train.group import agree

    if reason == "stale":
        raise LeaveGroup("a newer attempt has begun")
    settle(session)
    if session.saved_step != session.progress.step:
        _save(session, None, asynchronous=False)
        settle(session)
    if session.first:
        session.desk.ask("left", session.seat.attempt, reason, session.progress.step)
    # Nobody raises before rank 0 has committed and told: the first error ends every worker of the group.
    agree(session.group, [0.0])
    if reason != STOP:
        raise LeaveGroup(reason)


def _finish(session: Session, cadence: Any) -> None:
    settle(session)
    if session.saved_step != session.progress.step:
        _save(session, cadence, asynchronous=False)
        settle(session)
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
    """Train without Ray: in this process, or as one rank of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    from raylm.checkpoint.save import claim_attempt

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT') or free_port()}"
    run = Place(job.run_url, job.object_store.reach())
    coordinator: Coordinator | None = None
    desk: Desk = SilentDesk()
    attempt = 1
    if rank == 0:
        (run / "run.yaml").write_text(resolved_yaml(job))
        coordinator = Coordinator(
            run, job.workers, audit=job.train.audit, claim=lambda: claim_attempt(run / "checkpoints")
        )
        attempt = coordinator.begin(size)
        desk = LocalDesk(coordinator)
    if size > 1:
        attempt = _attempt_of_rank_0(address, rank, attempt)
    seat = Seat(rank, size, attempt, address, int(os.environ.get("LOCAL_RANK", rank)), socket.gethostname())
    try:
        work(job, seat, desk)
    finally:
        if coordinator is not None:
            coordinator.close()
    return coordinator


def _attempt_of_rank_0(address: str, rank: int, attempt: int) -> int:
    """Hand rank 0's attempt number to every rank, through torchrun's own store."""
    from torch.distributed import TCPStore

    host, port = address.rsplit(":", 1)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(host, int(port), is_master=rank == 0 and not agent)
    if rank == 0:
        store.set("raylm/attempt", str(attempt))
    return int(store.get("raylm/attempt"))


class ActorDesk:
    """A coordinator behind a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._actor.call.remote(name, *args, **kwargs)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(self._actor.call.remote(name, *args, **kwargs))
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
