"""What only the whole job shows: settings that are right alone and cannot work together.

Asked before anything is spent, and not when a job is made: a program may make one job from another in several steps.
"""

from __future__ import annotations

from collections.abc import Callable

from raylm.config.job import Job
from raylm.errors import ConfigError


def refuse_mismatched(job: Job) -> None:
    """Raise a ConfigError for settings of several sections that do not fit each other."""
    for check in _CHECKS:
        error = check(job)
        if error is not None:
            raise error


def changes_never_reached(job: Job) -> list[str]:
    """Changes of a mixture's weights that lie behind the run's last step, in words."""
    return [
        f"data.mixture.{number}.weight_schedule changes a weight to {change.weight:g} at step {change.step:,}, which "
        f"the run of train.steps={job.train.steps} never reaches"
        for number, entry in enumerate(job.mixture)
        for change in entry.weight_schedule
        if change.step >= job.train.steps
    ]


def refuse_no_sources(job: Job) -> None:
    """Raise a ConfigError where there is nothing to prepare; a job that trains on prepared data needs no sources."""
    if not job.prepare.sources:
        raise ConfigError(
            "the job names no texts to prepare: prepare.sources is empty",
            hint="name them, for example --set 'prepare.sources=[{name: mine, glob: texts/*.txt}]'; `raylm jobs` lists "
            "jobs to begin with",
            key="prepare.sources",
        )


def _schedule_fits(job: Job) -> ConfigError | None:
    steps, warmup, decay = job.train.steps, job.optim.warmup_steps, job.optim.decay_steps
    if warmup > steps:
        return ConfigError(
            f"optim.warmup_steps={warmup} is longer than the run of train.steps={steps}: the learning rate would never "
            "reach its peak",
            hint=f"raise train.steps, or set optim.warmup_steps to {steps // 10} or so",
            key="optim.warmup_steps",
        )
    if job.optim.schedule == "wsd" and decay is not None and warmup + decay > steps:
        return ConfigError(
            f"optim.warmup_steps={warmup} and optim.decay_steps={decay} are together longer than the run of "
            f"train.steps={steps}",
            hint=f"raise train.steps, or set optim.decay_steps to {steps - warmup} or less",
            key="optim.decay_steps",
        )
    return None


def _something_is_held_out(job: Job) -> ConfigError | None:
    own = job.data.path is None and not job.data.mixture
    if job.evaluate.every_steps is not None and own and job.prepare.held_out == 0:
        return ConfigError(
            f"evaluate.every_steps={job.evaluate.every_steps}, but prepare.held_out=0 keeps nothing to evaluate on",
            hint="raise prepare.held_out, or set evaluate.every_steps to null",
            key="evaluate.every_steps",
        )
    return None


def _best_is_measured(job: Job) -> ConfigError | None:
    if job.checkpoint.keep_best and job.evaluate.every_steps is None:
        return ConfigError(
            f"checkpoint.keep_best={job.checkpoint.keep_best} needs held-out losses: evaluate.every_steps is not set",
            hint="set evaluate.every_steps, or checkpoint.keep_best to 0",
            key="checkpoint.keep_best",
        )
    return None


_CHECKS: tuple[Callable[[Job], ConfigError | None], ...] = (
    _schedule_fits,
    _something_is_held_out,
    _best_is_measured,
)
