"""The way of documents through the steps, in stages: a step that has to see all documents ends a stage.

Comes in: a unit. A stage before the last writes the unit's documents and what its barrier gathers of them; the last
one hands them to the packer. Doing a unit's stage again gives the same, so it does not matter who does it how often.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raylm.config.job import Job
from raylm.config.steps import OperatorSettings
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators import Barrier, OperatorRecord, applied, barrier_of, operator_of
from raylm.prep.operators.barrier import gathered
from raylm.prep.operators.dedup.decisions import write_table
from raylm.prep.readers.read import read_range
from raylm.prep.units import Unit
from raylm.records import Document
from raylm.shards import Shard
from raylm.storage import NotFound, StoragePath

WORK_FOLDER = "_work"
FITTED_FOLDER = "fitted"  # what steps learn before the units; it stays beside the shards that it shaped
_WRITTEN_BYTES = 4_000_000  # text written at once


@dataclass(frozen=True)
class Pass:
    """Steps that are done in one pass over a unit; `barrier` ends it, and is None in the last stage.

    first: the number of its first step in the job.
    """

    number: int
    first: int
    steps: tuple[OperatorSettings, ...]
    barrier: OperatorSettings | None

    def documents(self, output: StoragePath) -> StoragePath:
        """The folder of what the stage's units leave for the next stage."""
        return self._folder(output) / "documents"

    def gathered(self, output: StoragePath) -> StoragePath:
        """The folder that the stage's barrier works on."""
        return self._folder(output) / "gathered"

    def units(self, output: StoragePath) -> StoragePath:
        """The folder of markers: one says that a unit has been through the stage, and what it gave."""
        return self._folder(output) / "units"

    def resolved(self, output: StoragePath) -> StoragePath:
        """The file that says that the barrier has decided; it stays when what the decision needed goes."""
        return self._folder(output) / "resolved.json"

    def _folder(self, output: StoragePath) -> StoragePath:
        return output / WORK_FOLDER / f"stage-{self.number}"


@dataclass
class UnitLog:
    """What reading a unit left out, and what each step of a stage did to it."""

    skipped: Skipped = field(default_factory=Skipped)
    steps: list[OperatorRecord] = field(default_factory=list)

    def step(self, settings: OperatorSettings | None) -> OperatorRecord:
        """A fresh record for the next step."""
        assert settings is not None  # only the last stage has no barrier, and nothing comes after it
        self.steps.append(OperatorRecord(settings.name))
        return self.steps[-1]

    def to_dict(self) -> dict[str, Any]:
        """As a marker holds it."""
        return {"skipped": self.skipped.to_dict(), "steps": [record.to_dict() for record in self.steps]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> UnitLog:
        """What to_dict gave."""
        return cls(
            Skipped.from_dict(content["skipped"]), [OperatorRecord.from_dict(record) for record in content["steps"]]
        )


def passes_of(steps: Sequence[OperatorSettings]) -> tuple[Pass, ...]:
    """The steps cut after each one that has to see all documents; the last stage has none of those."""
    stages: list[Pass] = []
    run: list[OperatorSettings] = []
    for number, step in enumerate(steps):
        if barrier_of(step) is None:
            run.append(step)
        else:
            stages.append(Pass(len(stages), number - len(run), tuple(run), step))
            run = []
    return (*stages, Pass(len(stages), len(steps) - len(run), tuple(run), None))


def fitted(output: StoragePath, number: int, step: OperatorSettings) -> StoragePath:
    """The folder of what the job's step of this number learned before the units."""
    return output / FITTED_FOLDER / f"{number:02d}-{step.name}"


def pass_documents(
    job: Job, output: StoragePath, stages: Sequence[Pass], unit: Unit, log: UnitLog
) -> Iterator[Document]:
    """The unit's documents as they leave the last of these stages' steps; the stages before it are done."""
    stage = stages[-1]
    if stage.number == 0:
        documents = _read(job, unit, log.skipped)
    else:
        before = stages[-2]
        kept = _stored(before.documents(output) / f"{unit.number:06d}.parquet", unit.source)
        record = log.step(before.barrier)
        documents = barrier_in(before).applied(kept, before.gathered(output), unit.number, record)
    for number, settings in enumerate(stage.steps, stage.first):
        step = operator_of(settings, job.object_store.connection(), fitted(output, number, settings))
        documents = applied(step, documents, log.step(settings))
    return documents


@dataclass(frozen=True)
class UnitResult:
    """What a stage made of a unit.

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


def marker(output: StoragePath, stage: Pass, number: int) -> StoragePath:
    """The file that says that a unit has been through a stage."""
    return stage.units(output) / f"{number:06d}.json"


def finished(output: StoragePath, stage: Pass, number: int) -> UnitResult | None:
    """What the stage made of the unit, if it is done."""
    try:
        return UnitResult.from_json(marker(output, stage, number).read_text())
    except NotFound:
        return None


def clean_unit(job: Job, output: StoragePath, stages: Sequence[Pass], unit: Unit) -> UnitResult:
    """Take the unit through the last of these stages, which a barrier ends."""
    stage = stages[-1]
    assert stage.barrier is not None  # the last stage is packed instead
    log = UnitLog()
    gatherer = barrier_in(stage).gatherer()

    def seen() -> Iterator[Document]:
        for document in pass_documents(job, output, stages, unit, log):
            gatherer.add(document)
            yield document

    _store(stage.documents(output) / f"{unit.number:06d}.parquet", seen())
    write_table(gathered(stage.gathered(output), unit.number), gatherer.table())
    return UnitResult(unit.number, unit.source, log)


def barrier_in(stage: Pass) -> Barrier:
    """The barrier at the stage's end."""
    barrier = barrier_of(stage.barrier) if stage.barrier is not None else None
    assert barrier is not None  # passes_of cut here because of it
    return barrier


def _read(job: Job, unit: Unit, skipped: Skipped) -> Iterator[Document]:
    (source,) = (source for source in job.prepare.sources if source.name == unit.source)
    for piece in unit.pieces:
        yield from read_range(source, piece, job.object_store.connection(), skipped)


def batches(documents: Iterable[Document], max_bytes: int) -> Iterator[list[Document]]:
    """Neighbouring documents, together about this many letters."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text)
        if held >= max_bytes:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _store(place: StoragePath, documents: Iterable[Document]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Offsets of 64 bits: one document may be larger than what 32 can count.
    schema = pa.schema({"id": pa.string(), "text": pa.large_string(), "meta": pa.string()})
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(place.open_write())
        writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(stream, mode="w"), schema, compression="zstd"))
        for batch in batches(documents, _WRITTEN_BYTES):
            columns = {
                "id": [document.id for document in batch],
                "text": [document.text for document in batch],
                "meta": [json.dumps(dict(document.meta), sort_keys=True) for document in batch],
            }
            writer.write_table(pa.table(columns, schema=schema))


def _stored(place: StoragePath, source: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        file = pq.ParquetFile(stream)
        for batch in file.iter_batches(256, use_threads=False):
            for identity, text, meta in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Document(identity, text, source, json.loads(meta))
