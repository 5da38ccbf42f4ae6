"""A body's work in one group: form it, build, take over or restore the state, step, save, and end when asked.

Nothing here knows of Ray: `without_ray` runs it in one process or under torchrun, `body` in one group after another. A
`RunContext` outlives a group, so that a process may pass it to `train_in_group` again as a member of another one.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from raylm.config.job import Job
from raylm.coordination.contract import Coordination, Member, Reason
from raylm.coordination.stragglers import RankTimes
from raylm.errors import RaylmError, StorageError
from raylm.records import Batch, Progress, StepReport
from raylm.run.events import BadLoss, Evaluated
from raylm.run.folder import RunFolder
from raylm.run.identity import identity_of
from raylm.run.metrics import StepMetrics
from raylm.train.accumulation import micro_batches_per_rank
from raylm.train.branching import weights_of_new_run
from raylm.train.context import ActiveGroup, GroupEnded, RunContext, StepLine, Tenure
from raylm.train.host_memory import copy_if_due, copy_now, keep_copies, take_over
from raylm.train.nccl import without_flight_recorder
from raylm.train.saving import (
    begin_state_save,
    config_where_absent,
    report_save,
    restore,
    save_now,
    save_schedule_of,
)
from raylm.train.sources import open_datasets, stream_settings

if TYPE_CHECKING:
    from raylm.train.engine import Engine
    from raylm.train.group import Group
    from raylm.train.stored_state import StoredState


def work(job: Job, member: Member, coordination: Coordination) -> None:
    """Train in one group until the run is finished, the group ends on purpose (GroupEnded), or an error ends it."""
    phases = Phases()
    prepare_process(job)
    phases.ended("import")
    from raylm.train.group import GroupBroken

    try:
        train_in_group(open_run(job, coordination), Tenure(member), phases)
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
    without_flight_recorder()
    import torch

    import raylm.train.engine  # noqa: F401  # loads DeepSpeed and transformers

    # More threads than the machine has cores would only wait for each other.
    torch.set_num_threads(job.workers.threads or max(1, min(int(job.workers.cpus), os.cpu_count() or 1)))


def open_run(job: Job, coordination: Coordination) -> RunContext:
    """What a body needs of a run in any group."""
    from raylm.checkpoint.copy_schedule import CopySchedule

    datasets, folder = open_datasets(job), RunFolder.of(job)
    return RunContext(
        job=job,
        folder=folder,
        model_config=config_where_absent(job, folder),
        datasets=datasets,
        identity=identity_of(job, [dataset.manifest for dataset in datasets]),
        coordination=coordination,
        save_schedule=save_schedule_of(job, coordination),
        copy_schedule=CopySchedule(job.workers.copy_every_steps),
    )


def train_in_group(context: RunContext, tenure: Tenure, phases: Phases) -> None:
    """Form one group, bring its engine to the newest state, and train until the run or the group ends."""
    from raylm.train.group import leave_group
    from raylm.train.stored_state import newest_for_all

    group: Group | None = None
    active: ActiveGroup | None = None
    try:
        group = _form(context.job, tenure.member)
        phases.ended("form")
        times = RankTimes(group.size, context.job.workers.straggler_seconds)
        found = newest_for_all(context.folder.checkpoints, group) if tenure.member.resume is None else None
        engine = _build(context, tenure.member, group, found)
        tenure.under_way = lambda: engine.under_way
        active = ActiveGroup(tenure, group, engine, times)
        phases.ended("build")
        _resume(context, active, found, phases)
        _train(context, active)
    finally:
        tenure.ending = True
        if not tenure.abandoned:  # else another group of this process has begun, and these are its globals
            if active is not None:
                active.engine.destroy()
            if group is not None:
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
            serve=None if member.serve else False,
        )
    )


def _build(context: RunContext, member: Member, group: Group, found: StoredState | None) -> Engine:
    """The model as the job describes it, under ZeRO on this group; only a new run's has first weights.

    found: the checkpoint that fills it, if one does.
    """
    from raylm.model.build import config_dict, standing_settings, unfilled_model
    from raylm.model.first_weights import FirstWeights, Nothing
    from raylm.objectives import objective_of
    from raylm.train.engine import Engine, EngineSettings

    job, manifest = context.job, context.datasets[0].manifest
    model = unfilled_model(
        standing_settings(job.model, found.info.state.model_config if found is not None else context.model_config),
        vocab_size=manifest.vocab_size,
        sequence_length=manifest.sequence_length,
        eos_id=manifest.eos_id,
        auto_class=job.objective.auto_class,
    )
    filled_later = member.resume is not None or found is not None
    weights: FirstWeights = Nothing() if filled_later else weights_of_new_run(context, model)
    context.model_config = config_dict(cast(Any, model).config)
    return Engine.build(model, group, objective_of(job), EngineSettings.of(job, group.size), weights)


def _resume(context: RunContext, active: ActiveGroup, found: StoredState | None, phases: Phases) -> None:
    """Bring the engine to the newest state, in memory or in the checkpoint found, and report the start."""
    member, coordination = active.member, context.coordination
    checkpoint = None
    if member.resume is not None:
        take_over(context, active, member.resume)
        context.saved_step = max(context.saved_step, member.committed)
    else:
        checkpoint = restore(context, active, found)
    phases.ended("state")
    keep_copies(context, active)
    active.group.barrier()  # nobody steps, and no start is reported, before all hold the state and its copy
    phases.ended("copy")
    if active.first:
        for line in context.lines:  # of steps whose rank 0 died before it had told them
            if member.told < line.metrics.step <= context.progress.step:
                _tell(context, active, line)
        coordination.started(
            member.generation, step=context.progress.step, checkpoint=checkpoint, phases=phases.seconds
        )
    if member.resume is not None and member.evaluated < context.progress.step and _evaluate_if_due(context, active):
        begin_state_save(context, active, asynchronous=context.job.checkpoint.asynchronous)


def _train(context: RunContext, active: ActiveGroup) -> None:
    """Consume the loop: copy, record, evaluate, save, and end when asked."""
    from raylm.stream.loader import Stream
    from raylm.train.loop import steps

    job, member = context.job, active.member
    stream = Stream(
        context.datasets,
        stream_settings(job),
        rank=member.rank,
        world_size=member.size,
        start_step=context.progress.step,
    )
    try:
        for batch, report in steps(active.engine, stream, optim=job.optim, train=job.train):
            context.progress = _after(context.progress, report, job)
            line = _line(context, active, report, batch)
            copying = copy_if_due(context, active)
            reason, save = _agree(context, active, copying, report)
            _tell(context, active, line, copying)
            save = _evaluate_if_due(context, active) or save
            if report.step >= job.train.steps:
                break
            if save and reason in (None, Reason.REGROUP):  # one that is begun outlives a regroup
                begin_state_save(context, active, asynchronous=job.checkpoint.asynchronous)
            elif _committed(context):
                report_save(context, active)
            if reason:
                _leave(context, active, reason)
                return
        _finish(context, active)
    finally:
        stream.close()


def _agree(context: RunContext, active: ActiveGroup, copying: float, report: StepReport) -> tuple[Reason | None, bool]:
    """What all do at this boundary, as rank 0 wishes: leave, and why; save. After it every rank holds the step.

    copying: seconds of this rank's, from whose mean all decide when the next copy is due.
    """
    rank, size = active.member.rank, active.member.size
    wish = active.tenure.wish if active.first else None
    due = active.first and context.save_schedule.should_save(context.progress.step, time.monotonic())
    times = [0.0] * (2 * size)
    times[rank], times[size + rank] = report.waiting_seconds, report.computing_seconds
    numbers = [float(wish or 0), float(due), copying, report.seconds, *times]
    reason, save, copying, stepping, *times = active.group.all_reduce_sum(numbers)
    if copying:
        context.copy_schedule = context.copy_schedule.measured(copying / size, stepping / size)
    active.times.add(times[:size], times[size:], stepping / size)
    return (Reason(int(reason)) if reason else None), bool(save)


def _committed(context: RunContext) -> bool:
    """Whether this rank commits the save under way, and has."""
    return context.pending is not None and context.pending.commits and context.pending.save.done()


def _after(progress: Progress, report: StepReport, job: Job) -> Progress:
    return Progress(
        step=report.step,
        tokens_seen=progress.tokens_seen + report.tokens,
        sequences_seen=progress.sequences_seen + job.batch.sequences,
    )


def _line(context: RunContext, active: ActiveGroup, report: StepReport, batch: Batch) -> StepLine:
    """What is to be recorded of a step; every rank keeps it, and what every rank trained on when that is audited."""
    metrics = StepMetrics(
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
    )
    rows = _gather_rows(context.job, active.group, batch) if context.job.train.audit else []
    line = StepLine(metrics, rows, str(report.loss) if report.skipped else None)
    context.lines.append(line)
    return line


def _tell(context: RunContext, active: ActiveGroup, line: StepLine, copying: float | None = None) -> None:
    """Report one step, as rank 0."""
    if not active.first:
        return
    coordination, generation, step = context.coordination, active.member.generation, line.metrics.step
    if context.job.train.audit:
        coordination.report_audit(generation, step, line.rows)
    copy_seconds = None if copying is None else round(copying, 4)
    metrics = replace(line.metrics, copy_seconds=copy_seconds, rank_seconds=active.times.newest())
    coordination.report_metric(generation, metrics)
    if line.bad_loss is not None:
        coordination.report_event(generation, BadLoss(step=step, loss=line.bad_loss))


def _gather_rows(job: Job, group: Group, batch: Batch) -> list[tuple[int, int, int]]:
    """(lane, sequence id, epoch) of everything the group trained on in this step."""
    import torch

    mine = [
        (micro.lane, int(row), int(epoch))
        for micro in batch.micro_batches
        for row, epoch in zip(micro.ids, micro.epochs, strict=True)
    ]
    table = torch.full((micro_batches_per_rank(job.batch.lanes, group.size) * job.batch.micro_batch, 3), -1)
    table[: len(mine)] = torch.tensor(mine)
    return [(lane, row, epoch) for one in group.all_gather(table) for lane, row, epoch in one.tolist() if lane >= 0]


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


def _evaluate_if_due(context: RunContext, active: ActiveGroup) -> bool:
    """Held-out loss over the same sequences at any number of workers, every so many steps and at the last.

    Returns whether this state is to be saved for it, the same on every rank.
    """
    step, every = context.progress.step, context.job.evaluate.every_steps
    if not every or not step or (step % every and step < context.job.train.steps):
        return False
    from raylm.train.evaluating import evaluate, is_among_best

    began = time.monotonic()
    found = evaluate(context, active)
    if found is None:
        return False
    context.held_out[step] = found.loss
    if active.first:
        evaluated = Evaluated(
            step=step,
            held_out_loss=found.loss,
            tokens=found.tokens,
            seconds=round(time.monotonic() - began, 3),
            by_source=found.by_source,
            more=found.metrics,
        )
        context.coordination.report_event(active.member.generation, evaluated)
    return is_among_best(context, active, found.loss)


def _leave(context: RunContext, active: ActiveGroup, reason: Reason) -> None:
    """End the group, as asked; returns when the run is to end with it.

    The state goes on in memory, where this step's copy is made now if it was not its turn, or to storage.
    """
    if reason is Reason.STALE:
        raise GroupEnded(reason)
    if reason is Reason.REGROUP:
        if active.tenure.keeper is None:
            save_now(context, active)
        copy_now(context, active)
        active.group.barrier()
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
    active.group.barrier()  # the end of a body before that report would count as a loss
