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
    Normalize,
    OperatorSettings,
    PersonalData,
    Sample,
    Toxicity,
)
from raylm.errors import ConfigError
from raylm.prep.operators.barrier import Barrier
from raylm.prep.operators.blocklist import blocklist_operator
from raylm.prep.operators.classifier import classifier_operator, fit_classifier
from raylm.prep.operators.counterfactual import counterfactual
from raylm.prep.operators.decontaminate.operator import decontaminate_operator, fit_decontaminate
from raylm.prep.operators.dedup.exact import ExactDuplicatesBarrier
from raylm.prep.operators.dedup.near import NearDuplicatesBarrier
from raylm.prep.operators.fairness import counted
from raylm.prep.operators.language import language_operator
from raylm.prep.operators.normalize import normalize_operator
from raylm.prep.operators.personal import personal_data_operator
from raylm.prep.operators.quality import quality_operator
from raylm.prep.operators.record import Step
from raylm.prep.operators.sample import MixtureBarrier, sample_operator
from raylm.prep.operators.toxicity import toxicity
from raylm.storage import Connection, StoragePath


def barrier_of(step: OperatorSettings) -> Barrier | None:
    """The step as one that has to see all documents first; None when it looks at one at a time."""
    match step.settings:
        case ExactDuplicates() as settings:
            return ExactDuplicatesBarrier(settings)
        case NearDuplicates() as settings:
            return NearDuplicatesBarrier(settings)
        case Sample(shares=shares) as settings if shares:
            return MixtureBarrier(settings)
    return None


def fit(step: OperatorSettings, folder: StoragePath, connection: Connection) -> None:
    """What a step does once, before any unit: write to the folder what it learns, and refuse files that are wrong."""
    match step.settings:
        case Classifier() as settings:
            fit_classifier(settings, folder, connection)
        case Decontaminate() as settings:
            fit_decontaminate(settings, folder, connection)
        case Blocklist() | Counterfactual() | Fairness() | Language() | Normalize() | Quality() | Toxicity():
            operator_of(step, connection, folder)


def operator_of(step: OperatorSettings, connection: Connection, fitted: StoragePath | None = None) -> Step:
    """The step as one that looks at one document at a time; `reach` is for files it reads, `fitted` is fit's folder."""
    match step.settings:
        case Blocklist() as settings:
            return blocklist_operator(settings, connection)
        case Classifier() as settings:
            assert fitted is not None  # only a job's own steps are built, and those are fitted first
            return classifier_operator(settings, fitted)
        case Counterfactual() as settings:
            return counterfactual(settings, connection)
        case Decontaminate() as settings:
            assert fitted is not None  # as above
            return decontaminate_operator(settings, fitted)
        case Fairness() as settings:
            return counted(settings, connection)
        case Language() as settings:
            return language_operator(settings)
        case Normalize() as settings:
            return normalize_operator(settings)
        case Quality() as settings:
            return quality_operator(settings)
        case Sample() as settings:
            return sample_operator(settings)
        case PersonalData() as settings:
            return personal_data_operator(settings)
        case Toxicity() as settings:
            return toxicity(settings, connection)
    raise ConfigError(f"step {step.name!r} cannot be built")  # each kind stands in one of the two functions
