"""A share of the documents, or a mixture of groups in wanted proportions; chosen by hash, the same ones each time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings, Share
from raylm.errors import DataError
from raylm.prep.operators.barrier import Runner, gathered
from raylm.prep.operators.base import Operator, applied, per_document
from raylm.prep.operators.dedup.decisions import read_table
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document
from raylm.storage import StoragePath

_RATES = "rates.json"


class Sample(Settings):
    """Keep a share of the documents, or reach a mixture: by hash of the document's id, so the same ones each time."""

    rate: Share | None = Field(None, description="Share of the documents to keep.")
    by: str = Field("source", description="For shares: the source, or a key of the metadata such as language.")
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Bytes wanted of each group, in proportion; groups not named are dropped."
    )
    max_copies: float = Field(
        1.0, ge=1, description="With shares: a scarce group's documents may be repeated this often on average."
    )
    seed: int = Field(0, ge=0, description="Decides, with a document's id, which documents are kept.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.rate is None) == (not self.shares):
            raise ValueError("give either rate or shares")
        return self


def sample_operator(settings: Sample, context: OperatorContext) -> Operator:
    """The operator that keeps documents at settings.rate."""
    assert settings.rate is not None  # the schema asks for one of the two ways
    return _copies_at({}, settings, default=settings.rate)


def mixture_barrier(settings: Sample) -> MixtureBarrier | None:
    """What reaches settings.shares; None where a rate is given, for which no other document matters."""
    return MixtureBarrier(settings) if settings.shares else None


def rates_of(available: Mapping[str, int], shares: Mapping[str, float], max_copies: float) -> dict[str, float]:
    """How often each group's documents are wanted on average, for the largest mixture in these proportions.

    available: bytes there are of each group. No rate exceeds `max_copies`.
    """
    scale = min(max_copies * available[group] / share for group, share in shares.items())
    return {group: scale * share / available[group] for group, share in shares.items()}


class MixtureBarrier:
    """Reaches `shares` of bytes by group."""

    def __init__(self, settings: Sample) -> None:
        self._settings = settings

    def gatherer(self) -> _Sizes:
        """A fresh one for a unit."""
        return _Sizes(self._settings.by)

    def resolve(self, folder: StoragePath, units: Sequence[int], run: Runner) -> None:
        """Compute each group's rate from what there is of it."""
        available: Counter[str] = Counter()
        for unit in units:
            table = read_table(gathered(folder, unit))
            available.update(dict(zip(table["group"].to_pylist(), table["bytes"].to_pylist(), strict=True)))
        missing = [group for group in self._settings.shares if not available[group]]
        if missing:
            there = ", ".join(sorted(available)) or "nothing"
            raise DataError(
                f"step sample wants a share of {self._settings.by} {missing[0]!r}, of which there is no document; "
                f"there is: {there}",
                hint="correct the names in `shares`, or take that group out",
            )
        rates = rates_of(available, self._settings.shares, self._settings.max_copies)
        (folder / _RATES).write_text(json.dumps(rates, sort_keys=True))

    def applied(
        self, documents: Iterable[Document], folder: StoragePath, unit: int, record: OperatorRecord
    ) -> Iterator[Document]:
        """Each document as often as its group's rate and its hash say."""
        rates = json.loads((folder / _RATES).read_text())
        yield from applied(_copies_at(rates, self._settings, default=0.0), documents, record)


def _copies_at(rates: Mapping[str, float], settings: Sample, default: float) -> Operator:
    def look(document: Document, record: OperatorRecord) -> Iterable[Document]:
        rate = rates.get(_group(document, settings.by), default)
        copies = int(rate + hash_uniform(document.id, settings.seed))
        if copies == 0:
            record.drop("not_sampled", document)
        record.change("copied", max(0, copies - 1))
        for copy in range(copies):
            yield document if copy == 0 else replace(document, id=f"{document.id}+{copy}")

    return per_document(look)


def hash_uniform(identity: str, seed: int) -> float:
    """A number in [0, 1) that only the document and the seed decide."""
    digest = hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _group(document: Document, by: str) -> str:
    return document.source if by == "source" else str(document.meta.get(by, ""))


class _Sizes:
    """Bytes of each group in a unit."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._bytes: Counter[str] = Counter()

    def add(self, document: Document) -> None:
        """Look at the next document of the unit."""
        self._bytes[_group(document, self._by)] += len(document.text.encode())

    def table(self) -> Any:
        """Rows of (group, bytes)."""
        import pyarrow as pa

        groups = sorted(self._bytes)
        return pa.table(
            {
                "group": pa.array(groups, type=pa.string()),
                "bytes": pa.array([self._bytes[group] for group in groups], type=pa.int64()),
            }
        )


OPERATOR = OperatorKind(
    name="sample",
    settings=Sample,
    summary="keeps a share, or reaches a mixture by source, language or any other key",
    make=sample_operator,
    barrier=mixture_barrier,
)
