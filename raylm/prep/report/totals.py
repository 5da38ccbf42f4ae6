"""Sums over all units of a preparation: what each source gave, and what each operator did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylm.errors import DataError
from raylm.prep.checks.plausible import Account
from raylm.prep.checks.skipped import SKIPPED, Skipped
from raylm.prep.operators import OperatorRecord
from raylm.prep.passes import UnitLog
from raylm.prep.units import Unit
from raylm.shards import DatasetManifest


@dataclass(frozen=True)
class SourceCounts:
    """What a dataset holds of a source, held-out documents included, and what reading skipped, by reason."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> SourceCounts:
        """The counts of a source as a manifest holds them."""
        documents, size, tokens = (
            counts.get(name, 0) + counts.get(f"held_out_{name}", 0) for name in ("documents", "bytes", "tokens")
        )
        skipped = {key.removeprefix(SKIPPED): count for key, count in counts.items() if key.startswith(SKIPPED)}
        return cls(documents, size, tokens, skipped)


def counts_by_source(manifest: DatasetManifest) -> dict[str, SourceCounts]:
    """The counts of each source of a dataset."""
    return {name: SourceCounts.of(counts) for name, counts in manifest.sources.items()}


def documents_in(manifest: DatasetManifest) -> int:
    """The documents of a dataset, held-out ones included."""
    return sum(counts.documents for counts in counts_by_source(manifest).values())


def skipped_in(manifest: DatasetManifest) -> dict[str, int]:
    """Reason → documents or records that reading skipped, of all sources."""
    skipped: Counter[str] = Counter()
    for counts in counts_by_source(manifest).values():
        skipped.update(counts.skipped)
    return dict(sorted(skipped.items()))


def steps_in(manifest: DatasetManifest) -> Sequence[Mapping[str, Any]]:
    """What the job's steps did, without the last record, which is that of tokenizing."""
    return manifest.steps[:-1]


def steps_of(records: Sequence[OperatorRecord]) -> Sequence[OperatorRecord]:
    """The records of the job's steps, without the last one, which is that of tokenizing."""
    return records[:-1]


def operator_records(logs: Sequence[Sequence[UnitLog]]) -> list[OperatorRecord]:
    """What each step did to all units, in the order of the steps."""
    records: list[OperatorRecord] = []
    for units in logs:
        totals = [OperatorRecord(record.name) for record in units[0].records]
        for log in units:
            for whole, record in zip(totals, log.records, strict=True):
                whole.add(record)
        records += totals
    return records


def accounts(manifest: DatasetManifest, units: Sequence[Unit], logs: Sequence[Sequence[UnitLog]]) -> list[Account]:
    """What became of each source, in the order of the work list; `logs` of all passes' units."""
    counts, found = counts_by_source(manifest), []
    for source in dict.fromkeys(unit.source for unit in units):
        mine = [number for number, unit in enumerate(units) if unit.source == source]
        skipped = Skipped()
        for number in mine:
            skipped.add(logs[0][number].skipped)
        files = {part.url for number in mine for part in units[number].ranges}
        records = steps_of(operator_records([[one[number] for number in mine] for one in logs]))
        found.append(Account(source, len(files), counts.get(source, SourceCounts()).documents, skipped, records))
    return found


def no_documents(logs: Iterable[UnitLog]) -> DataError:
    """What to raise when nothing is left to train on; it says what reading skipped and what steps dropped."""
    counts: dict[str, int] = {}
    examples: list[str] = []
    for log in logs:
        for reasons, shown in [(log.skipped.reasons, log.skipped.examples)] + [
            (record.dropped, record.examples) for record in log.records
        ]:
            for reason, count in reasons.items():
                counts[reason] = counts.get(reason, 0) + count
                examples += shown.get(reason, [])[:1]
    listed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
    why = f" ({listed}{'; such as ' + examples[0] if examples else ''})" if listed else ""
    return DataError(
        f"the sources hold no document: every file is empty, or every document was skipped or dropped{why}",
        hint="check prepare.sources (kind, glob, column, document) and prepare.steps",
    )
