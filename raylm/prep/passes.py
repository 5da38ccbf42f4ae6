"""The documents of a unit in passes through the operators: an operator that has to see all documents ends a pass.

A pass before the last writes the unit's documents and what its barrier gathers of them; the last one hands them to the
packer. Taking a unit through a pass again gives the same bytes, so it does not matter who does it how often.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raylm.config.job import Job
from raylm.config.prepare.steps import OperatorSettings
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators import Barrier, OperatorRecord, applied, barrier_of, operator_of, resources_for
from raylm.prep.operators.barrier import gathered
from raylm.prep.operators.base import batches
from raylm.prep.operators.dedup.decisions import write_table
from raylm.prep.operators.resources import Resources, most_of
from raylm.prep.readers.read import read_range
from raylm.prep.units import Unit
from raylm.records import Document
from raylm.shards import Shard
from raylm.storage import NotFound, StoragePath

WORK_FOLDER = "_work"
FITTED_FOLDER = "fitted"  # what operators learn before the units; it stays beside the shards that it shaped
_WRITTEN_BYTES = 4_000_000  # text written at once


@dataclass(frozen=True)
class Pass:
    """Operators that a unit's documents go through at once; `barrier` ends it, and is None in the last pass.

    first: the number of its first operator in the job. before: the pass whose documents it takes; None reads sources.
    """

    number: int
    first: int
    operators: tuple[OperatorSettings, ...]
    barrier: OperatorSettings | None
    before: Pass | None = None

    def documents(self, output: StoragePath) -> StoragePath:
        """The folder of what the pass's units leave for the next pass."""
        return self._folder(output) / "documents"

    def gathered(self, output: StoragePath) -> StoragePath:
        """The folder that the pass's barrier works on."""
        return self._folder(output) / "gathered"

    def markers(self, output: StoragePath) -> StoragePath:
        """The folder of markers: one says that a unit has been through the pass, and what it gave."""
        return self._folder(output) / "units"

    def resolved(self, output: StoragePath) -> StoragePath:
        """The file that says that the barrier has decided; it stays when what the decision needed goes."""
        return self._folder(output) / "resolved.json"

    def _folder(self, output: StoragePath) -> StoragePath:
        return output / WORK_FOLDER / f"pass-{self.number}"


@dataclass
class UnitLog:
    """What reading a unit left out, and what each operator of a pass did to it."""

    skipped: Skipped = field(default_factory=Skipped)
    records: list[OperatorRecord] = field(default_factory=list)

    def record_of(self, settings: OperatorSettings) -> OperatorRecord:
        """A fresh record for the next operator."""
        self.records.append(OperatorRecord(settings.name))
        return self.records[-1]

    def to_dict(self) -> dict[str, Any]:
        """As a marker holds it."""
        return {"skipped": self.skipped.to_dict(), "records": [record.to_dict() for record in self.records]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> UnitLog:
        """What to_dict gave."""
        return cls(
            Skipped.from_dict(content["skipped"]), [OperatorRecord.from_dict(record) for record in content["records"]]
        )


def passes_of(steps: Sequence[OperatorSettings]) -> tuple[Pass, ...]:
    """The job's steps cut after each one that has to see all documents; the last pass has none of those."""
    passes: list[Pass] = []
    run: list[OperatorSettings] = []
    for number, step in enumerate(steps):
        if barrier_of(step) is None:
            run.append(step)
        else:
            passes.append(Pass(len(passes), number - len(run), tuple(run), step, passes[-1] if passes else None))
            run = []
    return (*passes, Pass(len(passes), len(steps) - len(run), tuple(run), None, passes[-1] if passes else None))


def fitted_folder(output: StoragePath, number: int, step: OperatorSettings) -> StoragePath:
    """The folder of what the job's step of this number learned before the units."""
    return output / FITTED_FOLDER / f"{number:02d}-{step.name}"


def pass_documents(job: Job, output: StoragePath, current: Pass, unit: Unit, log: UnitLog) -> Iterator[Document]:
    """The unit's documents as they leave the operators of a pass; the passes before it are done."""
    before = current.before
    if before is None:
        documents = _read(job, unit, log.skipped)
    else:
        assert before.barrier is not None  # passes_of cut there because of it
        kept = _stored(before.documents(output) / f"{unit.number:06d}.parquet", unit.source)
        record = log.record_of(before.barrier)
        documents = barrier_in(before).applied(kept, before.gathered(output), unit.number, record)
    for number, settings in enumerate(current.operators, current.first):
        operator = operator_of(settings, job.object_store.connection(), fitted_folder(output, number, settings))
        documents = applied(operator, documents, log.record_of(settings))
    return documents


@dataclass(frozen=True)
class UnitResult:
    """What a pass made of a unit.

    Only of the last one: counts of documents, bytes and tokens a side, shards, measures for prepare.require, and
    how finely texts are cut in each language.
    """

    number: int
    source: str
    log: UnitLog
    train: Shard | None = None
    held_out: Shard | None = None
    counts: dict[str, int] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    fertility: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """As the marker holds it."""
        content = asdict(self) | {"log": self.log.to_dict()}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> UnitResult:
        """What to_json wrote."""
        content = json.loads(text)
        for side in ("train", "held_out"):
            content[side] = Shard(**content[side]) if content[side] else None
        return cls(**content | {"log": UnitLog.from_dict(content["log"])})


def marker(output: StoragePath, current: Pass, number: int) -> StoragePath:
    """The file that says that a unit has been through a pass."""
    return current.markers(output) / f"{number:06d}.json"


def finished(output: StoragePath, current: Pass, number: int) -> UnitResult | None:
    """What the pass made of the unit, if it is done."""
    try:
        return UnitResult.from_json(marker(output, current, number).read_text())
    except NotFound:
        return None


def clean_unit(job: Job, output: StoragePath, current: Pass, unit: Unit) -> UnitResult:
    """Take the unit through a pass that a barrier ends."""
    log = UnitLog()
    gatherer = barrier_in(current).gatherer()

    def seen() -> Iterator[Document]:
        for document in pass_documents(job, output, current, unit, log):
            gatherer.add(document)
            yield document

    _store(current.documents(output) / f"{unit.number:06d}.parquet", seen())
    write_table(gathered(current.gathered(output), unit.number), gatherer.table())
    return UnitResult(unit.number, unit.source, log)


def barrier_in(current: Pass) -> Barrier:
    """The barrier at the pass's end."""
    barrier = barrier_of(current.barrier) if current.barrier is not None else None
    assert barrier is not None  # passes_of cut here because of it
    return barrier


def resources_of(current: Pass) -> Resources:
    """What a task takes up that carries a unit through the pass."""
    before = current.before.barrier if current.before is not None else None
    steps = [step for step in (before, *current.operators, current.barrier) if step is not None]
    return most_of(resources_for(step) for step in steps)


def _read(job: Job, unit: Unit, skipped: Skipped) -> Iterator[Document]:
    (source,) = (source for source in job.prepare.sources if source.name == unit.source)
    for part in unit.ranges:
        yield from read_range(source, part, job.object_store.connection(), skipped)


def _store(path: StoragePath, documents: Iterable[Document]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Offsets of 64 bits: one document may be larger than what 32 can count.
    schema = pa.schema({"id": pa.string(), "text": pa.large_string(), "meta": pa.string()})
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(path.open_write())
        writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(stream, mode="w"), schema, compression="zstd"))
        for batch in batches(documents, _WRITTEN_BYTES):
            columns = {
                "id": [document.id for document in batch],
                "text": [document.text for document in batch],
                "meta": [json.dumps(dict(document.meta), sort_keys=True) for document in batch],
            }
            writer.write_table(pa.table(columns, schema=schema))


def _stored(path: StoragePath, source: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with path.open_read() as stream:
        file = pq.ParquetFile(stream)
        for batch in file.iter_batches(256, use_threads=False):
            for identity, text, meta in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Document(identity, text, source, json.loads(meta))
