"""From a step's settings to the step itself. Libraries that only one step needs are imported in its own module."""

from __future__ import annotations

from raylm.config.steps import ExactDuplicates, NearDuplicates, Sample, StepSettings
from raylm.errors import ConfigError
from raylm.prep.steps.barrier import Barrier
from raylm.prep.steps.exact_duplicates import ExactDuplicatesBarrier
from raylm.prep.steps.near_duplicates import NearDuplicatesBarrier
from raylm.prep.steps.record import Step
from raylm.prep.steps.sample import MixtureBarrier, sampled
from raylm.storage import Reach


def barrier_of(step: StepSettings) -> Barrier | None:
    """The step as one that has to see all documents first; None when it looks at one at a time."""
    match step.settings:
        case ExactDuplicates() as settings:
            return ExactDuplicatesBarrier(settings)
        case NearDuplicates() as settings:
            return NearDuplicatesBarrier(settings)
        case Sample(shares=shares) as settings if shares:
            return MixtureBarrier(settings)
    return None


def step_of(step: StepSettings, reach: Reach) -> Step:
    """The step as one that looks at one document at a time; `reach` is for files that it reads."""
    match step.settings:
        case Sample() as settings:
            return sampled(settings)
    raise ConfigError(f"step {step.name!r} cannot be built")  # each kind stands in one of the two functions
