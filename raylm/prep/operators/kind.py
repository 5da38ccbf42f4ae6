"""What raylm knows of a kind of operator: its name in job files, its settings, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from raylm.config.base import Settings
from raylm.prep.operators.base import Operator
from raylm.prep.operators.resources import Resources
from raylm.storage import Connection, StoragePath

if TYPE_CHECKING:
    from raylm.prep.operators.barrier import Barrier

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class OperatorContext:
    """What an operator is made with beside its settings. folder: where its `fit` wrote, for kinds that have one."""

    connection: Connection
    folder: StoragePath | None = None

    def fitted(self) -> StoragePath:
        """The folder of what `fit` learned."""
        assert self.folder is not None  # a job's operators have one; only a kind without `fit` is made without
        return self.folder


def _no_barrier(_: Settings) -> Barrier | None:
    return None


def _whatever_language(_: Settings, _languages: Sequence[str]) -> list[str]:
    return []


@dataclass(frozen=True)
class OperatorKind(Generic[S]):
    """One kind of operator; its settings class stands beside its code, and `OPERATORS` or `register_operator` name it.

    name: as job files write it. summary: one line for tables. make: the operator, in every task and once before any
    work, so that a missing library or a wrong file is refused early; None where `barrier` always gives one.
    fit: learns once, before any unit, and writes to the context's folder. barrier: the operator as one that has to see
    all documents before it decides about one; None, or an answer of None, where it need not. resources: what a task
    takes up in which it works, or a function of the settings that says so. languages: what it drops or leaves alone for
    its language, in words; it is given the languages that may come, none where any may.
    """

    name: str
    settings: type[S]
    summary: str
    make: Callable[[S, OperatorContext], Operator] | None = None
    fit: Callable[[S, OperatorContext], None] | None = None
    barrier: Callable[[S], Barrier | None] = field(default=_no_barrier)
    resources: Resources | Callable[[S], Resources] = field(default_factory=Resources)
    languages: Callable[[S, Sequence[str]], list[str]] = field(default=_whatever_language)

    def resources_for(self, settings: S) -> Resources:
        """What a task takes up in which an operator of these settings works."""
        return self.resources if isinstance(self.resources, Resources) else self.resources(settings)
