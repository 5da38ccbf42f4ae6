"""From a step of the job to the operator that does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raylm.config.prepare.sources import SourceSettings
from raylm.config.prepare.steps import OPERATORS, OperatorSettings
from raylm.prep.operators.barrier import Barrier
from raylm.prep.operators.base import Operator
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.language import Language
from raylm.prep.operators.quality import Quality
from raylm.prep.operators.resources import Resources
from raylm.storage import Connection, StoragePath


def register_operator(kind: OperatorKind[Any], *, replace: bool = False) -> None:
    """Make a kind of operator known, so that `prepare.steps` of a job may name it.

    Call it at the top level of the module that defines the kind, and name that module under `plugins` of the job.
    """
    OPERATORS.register(kind.name, kind, replace=replace)


def kind_of(step: OperatorSettings) -> OperatorKind[Any]:
    """What is known of the step's kind of operator."""
    return OPERATORS.get(step.name)


def barrier_of(step: OperatorSettings) -> Barrier | None:
    """The step as one that has to see all documents first; None when it need not."""
    return kind_of(step).barrier(step.settings)


def resources_for(step: OperatorSettings) -> Resources:
    """What a task takes up in which the step is done."""
    return kind_of(step).resources_for(step.settings)


def operator_of(step: OperatorSettings, connection: Connection, folder: StoragePath | None = None) -> Operator:
    """The operator that does the step; `connection` is for files it reads, `folder` is where it was fitted."""
    kind = kind_of(step)
    assert kind.make is not None  # only a kind whose settings always give a barrier has none
    return kind.make(step.settings, OperatorContext(connection, folder))


def fit(step: OperatorSettings, folder: StoragePath, connection: Connection) -> None:
    """What is done once, before any unit: learn, and make the operator, so that what is missing or wrong is refused."""
    kind = kind_of(step)
    if kind.fit is not None:
        kind.fit(step.settings, OperatorContext(connection, folder))
    barrier = kind.barrier(step.settings)
    if barrier is not None:
        barrier.gatherer()
    else:
        operator_of(step, connection, folder)


def language_notes(steps: Sequence[OperatorSettings], sources: Sequence[SourceSettings]) -> list[str]:
    """What each step will drop, or leave alone, for its language; and where nobody says which it is."""
    notes: list[str] = []
    coming: list[str] = []
    unsaid = [source.name for source in sources if _says_no_language(source)]
    for number, step in enumerate(steps, 1):
        words = f"step {number}, {step.name.replace('_', ' ')}, "
        settings = step.settings
        if isinstance(settings, Quality) and unsaid:
            named = ", ".join(map(repr, unsaid))
            notes.append(
                f"{words}judges documents of {named} by the rules for {settings.language!r}, as nothing says their "
                "language: put the step language before it, or name the column under `meta`"
            )
        notes += [words + note for note in kind_of(step).languages(settings, coming)]
        if isinstance(settings, Language):
            coming, unsaid = settings.keep or coming, []
    return notes


def _says_no_language(source: SourceSettings) -> bool:
    """Whether a source's documents surely name no language; archives, dumps and books may."""
    return source.kind == "text" or "language" not in getattr(source, "meta", ["language"])


def operator_rows() -> Iterator[tuple[str, str]]:
    """(name, what it does) of every kind of operator, for tables."""
    for name, kind in OPERATORS.items():
        yield name, kind.summary
