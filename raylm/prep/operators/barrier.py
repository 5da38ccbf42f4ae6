"""Operators that look at all documents before they decide about one: gather in every unit, resolve once, then apply.

A barrier's folder holds what its units gathered (`000012.parquet`) and what was resolved; both can be written again at
any time with the same bytes, so that a task that is started over changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.resources import Resources
from raylm.records import Document
from raylm.storage import StoragePath

Item = TypeVar("Item")
Task: TypeAlias = Callable[[Item], str]  # picklable; the answer is JSON


class Runner(Protocol):
    """Runs a task for each item, in tasks of their own."""

    def __call__(self, task: Task[Item], items: Sequence[Item], resources: Resources | None = None) -> Iterator[str]:
        """The answers as they come, in any order. resources: what a task takes up; one CPU when not given."""


class Gatherer(Protocol):
    """Takes a unit's documents one by one."""

    def add(self, document: Document) -> None:
        """Look at the next document of the unit."""

    def table(self) -> Any:
        """What this unit adds to the decision, as a pyarrow Table; called once, at the end."""


class Barrier(Protocol):
    """An operator over all documents; one is known by its unit and its number (from 0) among those gathered there."""

    def gatherer(self) -> Gatherer:
        """A fresh one for a unit."""

    def resolve(self, folder: StoragePath, units: Sequence[int], run: Runner) -> None:
        """Decide, from what the units gathered in the folder, and write the decision there."""

    def applied(
        self, documents: Iterable[Document], folder: StoragePath, unit: int, record: OperatorRecord
    ) -> Iterator[Document]:
        """The unit's gathered documents as the decision leaves them."""


def gathered(folder: StoragePath, unit: int) -> StoragePath:
    """The file of what one unit gathered."""
    return folder / f"{unit:06d}.parquet"
