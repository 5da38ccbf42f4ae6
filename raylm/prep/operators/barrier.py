"""Steps that look at all documents before they decide about one: gather in every unit, resolve once, then apply.

A barrier's folder holds what its units gathered (`000012.parquet`) and what was resolved; both can be written again at
any time with the same bytes, so that a task that is started over changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document
from raylm.storage import StoragePath

# Run a picklable function for each number, in tasks of their own; its answers (JSON) as they come, in any order.
Task: TypeAlias = Callable[[int], str]
Runner: TypeAlias = Callable[[Task, Sequence[int]], Iterator[str]]


class Gatherer(Protocol):
    """Takes a unit's documents one by one."""

    def add(self, document: Document) -> None:
        """DatasetSample at the next document of the unit."""

    def table(self) -> Any:
        """What this unit adds to the decision, as a pyarrow Table; called once, at the end."""


class Barrier(Protocol):
    """A step over all documents. A document is known by its unit and its number (from 0) among those gathered there."""

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
