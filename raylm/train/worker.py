"""One worker: forms the group, builds, restores, steps, saves, and ends when asked.

`work` knows nothing of Ray: `without_ray` runs it in one process or under torchrun, `launch.ray_worker` on Ray Train.
A `RunContext` outlives a group, so that a process may pass it to `train_in_group` again as a member of another one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from raylm.config.job import Job
from raylm.errors import RaylmError, StorageError
from raylm.records import Batch, Progress, StepReport
from raylm.run.events import BadLoss, Evaluated, StepMetrics
from raylm.run.folder import RunFolder
from raylm.run.identity import identity_of
from raylm.train.accumulation import micro_batches_per_rank
from raylm.train.branching import weights_of_export
from raylm.train.context import ActiveGroup, GroupEnded, RunContext
from raylm.train.coordination import Coordination, Member, Reason
from raylm.train.saving import begin_state_save, report_save, restore, save_now, save_schedule_of
from raylm.train.sources import open_datasets, stream_settings

if TYPE_CHECKING:
    from raylm.train.engine import Engine
    from raylm.train.group import Group


def work(job: Job, member: Member, coordination: Coordination, *, tidy: bool = True) -> None:
    """Train until the run is finished or stopped, the group ends on purpose (GroupEnded), or an error ends it.

    tidy=False leaves engine and group standing: for a process that ends with the group, so that nobody waits.
    """
    phases = Phases()
    prepare_process(job)
    phases.ended("import")
    from raylm.train.group import GroupBroken

    try:
        train_in_group(open_run(job, coordination), member, phases, tidy=tidy)
    except GroupBroken:
        raise  # another group may go on
    except RaylmError as error:
        coordination.fail(member.generation, error)
        raise


class Phases:
    """Seconds of each part of a start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def ended(self, name: str) -> None:
        """The part since the end of the one before is over."""
        now = time.monotonic()
        self.seconds[name] = now - self._at
        self._at = now


def prepare_process(job: Job) -> None:
    """Import what training needs, before anybody waits for anybody, and set up torch; once in a process."""
    if not job.model.compile:
        # DeepSpeed decorates its Muon with torch.compile when it is imported, which loads Inductor: 1.4 s a start.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch

    import raylm.train.engine  # noqa: F401  # loads DeepSpeed and transformers

    torch.set_num_threads(job.workers.threads or max(1, int(job.workers.cpus)))


def open_run(job: Job, coordination: Coordination) -> RunContext:
    """What a worker needs of a run in any group."""
    datasets = open_datasets(job)
    return RunContext(
        job=job,
        folder=RunFolder.of(job),
        datasets=datasets,
        identity=identity_of(job, [dataset.manifest for dataset in datasets]),
        coordination=coordination,
        save_schedule=save_schedule_of(job, coordination),
    )


def train_in_group(context: RunContext, member: Member, phases: Phases, *, tidy: bool = True) -> None:
    """Form one group, bring its engine to the newest state, and train until the run or the group ends."""
    from raylm.train.group import leave_group

    group: Group | None = None
    active: ActiveGroup | None = None
    try:
        group = _form(context.job, member)
        phases.ended("meet")
        active = ActiveGroup(member, group, _build(context, group))
        phases.ended("build")
        _resume(context, active, phases)
        _train(context, active)
    finally:
        if active is not None and tidy:
            active.engine.destroy()
        if group is not None and tidy:
            leave_group(group)


def _form(job: Job, member: Member) -> Group:
    import torch

    from raylm.train.group import Rendezvous, form_group

    cuda = torch.cuda.is_available() and job.workers.gpu is not False
    return form_group(
        Rendezvous(
            address=member.address,
            rank=member.rank,
            size=member.size,
            generation=member.generation,
            timeout_seconds=job.workers.collective_timeout_seconds,
            backend="nccl" if cuda else "gloo",
            local_rank=member.local_rank,
        )
    )


def _build(context: RunContext, group: Group) -> Engine:
    """The model as the job describes it, under ZeRO on this group."""
    from raylm.model.build import build_model, config_dict
    from raylm.objectives import objective_of
    from raylm.train.engine import Engine, EngineSettings

    job, manifest = context.job, context.datasets[0].manifest
    model = build_model(
        job.model,
        vocab_size=manifest.vocab_size,
        sequence_length=manifest.sequence_length,
        seed=job.train.seed,
        eos_id=manifest.eos_id,
        auto_class=job.objective.auto_class,
    )
    weights_of_export(context, model)
    context.model_config = config_dict(cast(Any, model).config)
    return Engine.build(model, group, objective_of(job), EngineSettings.of(job, group.size))


def _resume(context: RunContext, active: ActiveGroup, phases: Phases) -> None:
    """Bring the engine to the newest committed step, and report the start."""
    checkpoint = restore(context, active)
    active.group.barrier()  # nobody steps, and no start is reported, before all hold the state
    phases.ended("restore")
    if active.first:
        context.coordination.started(
            active.member.generation, step=context.progress.step, checkpoint=checkpoint, phases=phases.seconds
        )


def _train(context: RunContext, active: ActiveGroup) -> None:
    """Consume the loop: record, evaluate, save, and end when asked."""
    from raylm.stream.loader import Stream
    from raylm.train.loop import steps

    job, member, group = context.job, active.member, active.group
    stream = Stream(
        context.datasets,
        stream_settings(job),
        rank=member.rank,
        world_size=member.size,
        start_step=context.progress.step,
    )
    try:
        with _stop_requests(context, active) as requested:
            for batch, report in steps(active.engine, stream, optim=job.optim, train=job.train):
                context.progress = _after(context.progress, report, job)
                _record(context, active, report, batch)
                last = report.step >= job.train.steps
                wish = requested() if active.first else None
                due = active.first and not last and context.save_schedule.should_save(report.step, time.monotonic())
                reason, save = group.all_reduce_sum([float(wish or 0), float(due)])
                if job.evaluate.every_steps and (last or report.step % job.evaluate.every_steps == 0):
                    _evaluate(context, active)
                if last:
                    break
                if reason:
                    _stop(context, active, Reason(int(reason)))
                    return
                if save:
                    begin_state_save(context, active, asynchronous=job.checkpoint.asynchronous)
                elif active.first and active.pending is not None and active.pending.done():
                    report_save(context, active)
        _finish(context, active)
    finally:
        stream.close()


def _after(progress: Progress, report: StepReport, job: Job) -> Progress:
    return Progress(
        step=report.step,
        tokens_seen=progress.tokens_seen + report.tokens,
        sequences_seen=progress.sequences_seen + job.batch.sequences,
    )


def _record(context: RunContext, active: ActiveGroup, report: StepReport, batch: Batch) -> None:
    """Report one step: rank 0 its metrics, every rank what it trained on when audited."""
    coordination, generation = context.coordination, active.member.generation
    if context.job.train.audit:
        rows = _gather_rows(context.job, active.group, batch)
        if active.first:
            coordination.report_audit(generation, report.step, rows)
    if not active.first:
        return
    coordination.report_metric(
        generation,
        StepMetrics(
            step=report.step,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens=report.tokens,
            tokens_per_second=report.tokens / report.seconds,
            step_seconds=report.seconds,
            workers=active.member.size,
            tokens_seen=context.progress.tokens_seen,
            mfu=_mfu(context, active, report),
            more=report.metrics,
        ),
    )
    if report.skipped:
        coordination.report_event(generation, BadLoss(step=report.step, loss=str(report.loss)))


def _gather_rows(job: Job, group: Group, batch: Batch) -> list[tuple[int, int, int]]:
    """On rank 0, (lane, sequence id, epoch) of everything the group trained on in this step; empty elsewhere."""
    import torch

    mine = [
        (micro.lane, int(row), int(epoch))
        for micro in batch.micro_batches
        for row, epoch in zip(micro.ids, micro.epochs, strict=True)
    ]
    table = torch.full((micro_batches_per_rank(job.batch.lanes, group.size) * job.batch.micro_batch, 3), -1)
    table[: len(mine)] = torch.tensor(mine)
    return [(lane, row, epoch) for one in group.gather(table) for lane, row, epoch in one.tolist() if lane >= 0]


def _mfu(context: RunContext, active: ActiveGroup, report: StepReport) -> float | None:
    """Model FLOPs over the devices' peak, where the peak is known."""
    import torch

    if not active.group.device.startswith("cuda"):
        return None
    from raylm.model.flops import flops_per_token, peak_flops, shape_of

    peak = peak_flops(torch.cuda.get_device_name())
    if peak is None:
        return None
    job, manifest = context.job, context.datasets[0].manifest
    shape = shape_of(job.model, manifest.vocab_size, manifest.sequence_length, job.objective.auto_class)
    per_token = flops_per_token(shape, manifest.sequence_length)
    return per_token * report.tokens / report.seconds / (peak * active.member.size)


def _evaluate(context: RunContext, active: ActiveGroup) -> None:
    """Held-out loss over the same sequences at any number of workers."""
    from raylm.stream.held_out import held_out

    job, member = context.job, active.member
    began = time.monotonic()
    dealt = held_out(
        context.datasets,
        stream_settings(job),
        rank=member.rank,
        world_size=member.size,
        sequences=job.evaluate.sequences,
    )
    sums = active.engine.evaluate(dealt)
    if sums.weight <= 0:
        return
    loss = sums.loss_sum / sums.weight
    context.held_out[context.progress.step] = loss
    if active.first:
        evaluated = Evaluated(
            step=context.progress.step,
            held_out_loss=loss,
            tokens=sums.tokens,
            seconds=round(time.monotonic() - began, 3),
            more=sums.means(),
        )
        context.coordination.report_event(member.generation, evaluated)


def _stop(context: RunContext, active: ActiveGroup, reason: Reason) -> None:
    """Save what is not saved, report it, and end the group; returns when the run is to end with it."""
    if reason is Reason.STALE:
        raise GroupEnded(reason)
    save_now(context, active)
    if active.first:
        context.coordination.stopped(active.member.generation, reason, context.progress.step)
    # Nobody raises before rank 0 has committed and reported: the first error ends every worker of the group.
    active.group.barrier()
    if reason is not Reason.STOP:
        raise GroupEnded(reason)


def _finish(context: RunContext, active: ActiveGroup) -> None:
    progress = context.progress
    if not save_now(context, active):
        raise StorageError(
            f"the finished model of step {progress.step} could not be saved in "
            f"{context.folder.checkpoints}" + (f": {context.save_failure}" if context.save_failure else ""),
            hint="mend that; the same command resumes from the newest checkpoint",
        )
    if active.first:
        context.coordination.finish(
            active.member.generation, progress.step, tokens=progress.tokens_seen, sequences=progress.sequences_seen
        )


@contextmanager
def _stop_requests(
    context: RunContext, active: ActiveGroup, period_seconds: float = 0.2
) -> Iterator[Callable[[], Reason | None]]:
    """On rank 0, ask in the background whether the group should end; yields what returns the newest answer."""
    newest: list[Reason | None] = [None]
    closed = threading.Event()

    def ask() -> None:
        while not closed.wait(period_seconds):
            newest[0] = context.coordination.stop_requested(active.member.generation)

    if active.first:
        threading.Thread(target=ask, name="raylm-stop-requests", daemon=True).start()
    try:
        yield lambda: newest[0]
    finally:
        closed.set()
