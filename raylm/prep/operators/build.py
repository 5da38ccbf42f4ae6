"""From a step's settings to the step itself. Libraries that only one step needs are imported in its own module."""

from __future__ import annotations

from raylm.config.decontaminate import Decontaminate
from raylm.config.quality import Quality
from raylm.config.steps import (
    Blocklist,
    Classifier,
    Counterfactual,
    ExactDuplicates,
    Fairness,
    Language,
    NearDuplicates,
    Normalise,
    PersonalData,
    Sample,
    StepSettings,
    Toxicity,
)
from raylm.errors import ConfigError
from raylm.prep.operators.barrier import Barrier
from raylm.prep.operators.blocklist import blocked
from raylm.prep.operators.classifier import classified, fit_classifier
from raylm.prep.operators.counterfactual import counterfactual
from raylm.prep.operators.decontaminate.operator import decontaminated, fit_decontaminate
from raylm.prep.operators.dedup.exact import ExactDuplicatesBarrier
from raylm.prep.operators.fairness import counted
from raylm.prep.operators.language import language_named
from raylm.prep.operators.dedup.near import NearDuplicatesBarrier
from raylm.prep.operators.normalize import normalised
from raylm.prep.operators.personal import personal_data_removed
from raylm.prep.operators.quality import judged
from raylm.prep.operators.record import Step
from raylm.prep.operators.sample import MixtureBarrier, sampled
from raylm.prep.operators.toxicity import toxicity
from raylm.storage import Place, Reach


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


def fit(step: StepSettings, folder: Place, reach: Reach) -> None:
    """What a step does once, before any unit: write to the folder what it learns, and refuse files that are wrong."""
    match step.settings:
        case Classifier() as settings:
            fit_classifier(settings, folder, reach)
        case Decontaminate() as settings:
            fit_decontaminate(settings, folder, reach)
        case Blocklist() | Counterfactual() | Fairness() | Language() | Normalise() | Quality() | Toxicity():
            step_of(step, reach, folder)


def step_of(step: StepSettings, reach: Reach, fitted: Place | None = None) -> Step:
    """The step as one that looks at one document at a time; `reach` is for files it reads, `fitted` is fit's folder."""
    match step.settings:
        case Blocklist() as settings:
            return blocked(settings, reach)
        case Classifier() as settings:
            assert fitted is not None  # only a job's own steps are built, and those are fitted first
            return classified(settings, fitted)
        case Counterfactual() as settings:
            return counterfactual(settings, reach)
        case Decontaminate() as settings:
            assert fitted is not None  # as above
            return decontaminated(settings, fitted)
        case Fairness() as settings:
            return counted(settings, reach)
        case Language() as settings:
            return language_named(settings)
        case Normalise() as settings:
            return normalised(settings)
        case Quality() as settings:
            return judged(settings)
        case Sample() as settings:
            return sampled(settings)
        case PersonalData() as settings:
            return personal_data_removed(settings)
        case Toxicity() as settings:
            return toxicity(settings, reach)
    raise ConfigError(f"step {step.name!r} cannot be built")  # each kind stands in one of the two functions
