"""What an operator is: documents in, documents out, and a record of what it did.

Most operators look at one document at a time (`per_document`); those that run a model look at several (`in_batches`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document

_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 1_000_000


class Operator(Protocol):
    """A step of preparation in one task."""

    def __call__(self, documents: Iterable[Document], record: OperatorRecord) -> Iterator[Document]:
        """The documents that it lets through, changed or multiplied, in their order; the record takes notes.

        What comes out must not depend on anything but the documents of this unit and the settings.
        """


def per_document(look: Callable[[Document, OperatorRecord], Iterable[Document]]) -> Operator:
    """The operator that looks at one document at a time; `look` returns none to drop it, or several."""

    def operator(documents: Iterable[Document], record: OperatorRecord) -> Iterator[Document]:
        for document in documents:
            yield from look(document, record)

    return operator


def in_batches(
    look: Callable[[Sequence[Document], OperatorRecord], Iterable[Document]],
    *,
    documents: int = _BATCH_DOCUMENTS,
    characters: int = _BATCH_CHARACTERS,
) -> Operator:
    """The operator that looks at neighboring documents together: so many at most, or those that reach `characters`.

    `look` returns what leaves, in the order of the batch. No batch outlives its unit.
    """
    most_documents, most_characters = documents, characters

    def operator(documents: Iterable[Document], record: OperatorRecord) -> Iterator[Document]:
        for batch in batches(documents, most_characters, most_documents):
            yield from look(batch, record)

    return operator


def batches(documents: Iterable[Document], characters: int, most: int | None = None) -> Iterator[list[Document]]:
    """Neighboring documents that together reach so many characters, and at most `most` documents."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text)
        if held >= characters or len(batch) == most:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def applied(operator: Operator, documents: Iterable[Document], record: OperatorRecord) -> Iterator[Document]:
    """The documents that the operator lets through; the record counts them, and the operator's own time."""
    waited = 0.0  # for documents to come: other operators' time

    def coming() -> Iterator[Document]:
        nonlocal waited
        began = time.perf_counter()
        for document in documents:
            record.take_in(document)
            waited += time.perf_counter() - began
            yield document
            began = time.perf_counter()
        waited += time.perf_counter() - began

    kept = operator(coming(), record)
    while True:
        began, waited_before = time.perf_counter(), waited
        document = next(kept, None)
        record.seconds += time.perf_counter() - began - (waited - waited_before)
        if document is None:
            return
        record.let_out(document)
        yield document
