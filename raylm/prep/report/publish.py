"""Comes in: what all units gave. Leaves: the manifest, and beside it what a person wants to know of the data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from raylm.config.job import Job
from raylm.errors import DataError, StorageError
from raylm.prep.checks.measures import summed
from raylm.prep.checks.requirements import Verdict, judged
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators import OperatorRecord
from raylm.prep.passes import UnitLog, UnitResult
from raylm.prep.report import fertility
from raylm.prep.report.card import data_card
from raylm.prep.report.html import data_page
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.units import WorkList, shaping_settings
from raylm.shards import TOKENIZER_FOLDER, Counts, DatasetManifest, Origin, RowFormat, check_shards
from raylm.storage import StoragePath

CARD_NAME = "card.md"
SKIPPED_NAME = "skipped.json"
REPORT_NAME = "report.html"


def manifest_of(
    job: Job, output: StoragePath, results: Sequence[UnitResult], logs: Sequence[Sequence[UnitLog]]
) -> DatasetManifest:
    """The manifest of what the last pass gave; `logs` of all passes' units, in the work list's order."""
    train = [result.train for result in results if result.train is not None]
    held_out = [result.held_out for result in results if result.held_out is not None]
    if not train and not held_out:
        raise no_documents(log for one in logs for log in one)
    if not train:
        raise DataError(
            f"all documents fell to the held-out side (held_out={job.prepare.held_out})",
            hint="lower prepare.held_out, or give more documents: the split is by whole document",
        )
    sources: dict[str, dict[str, int]] = {}
    for result, log in zip(results, logs[0], strict=True):
        counts = sources.setdefault(result.source, {})
        for key, value in {**result.counts, **log.skipped.counts()}.items():
            counts[key] = counts.get(key, 0) + value
    _, facts = load_tokenizer(output / TOKENIZER_FOLDER)
    totals = Counts(
        train_tokens=sum(counts["tokens"] for counts in sources.values()),
        held_out_tokens=sum(counts["held_out_tokens"] for counts in sources.values()),
        held_out_bytes=sum(counts["held_out_bytes"] for counts in sources.values()),
    )
    origin = Origin(
        sources=sources,
        settings=shaping_settings(job),
        steps=tuple(_counts(record) for record in operator_records(logs)),
        fertility=fertility.summed((result.source, result.fertility) for result in results),
    )
    rows = RowFormat(job.prepare.sequence_length, facts.vocab_size, facts.fingerprint, facts.eos_id)
    return DatasetManifest.of(rows, train=train, held_out=held_out, counts=totals, origin=origin)


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


def _counts(record: OperatorRecord) -> dict[str, object]:
    return {key: value for key, value in record.to_dict().items() if key not in ("seconds", "examples")}


def verdicts_on(
    job: Job, manifest: DatasetManifest, results: Sequence[UnitResult], logs: Sequence[Sequence[UnitLog]]
) -> list[Verdict]:
    """Hold the data set against the job's rules."""
    records = operator_records(logs)
    documents = sum(one["documents"] + one["held_out_documents"] for one in manifest.sources.values())
    read = records[0].documents if len(records) > 1 else documents
    measured = summed(result.measures for result in results) | {
        "documents": documents,
        "tokens": manifest.train_tokens + manifest.held_out_tokens,
        "kept": documents / max(1, read),
    }
    return judged(job.prepare.require, measured)


def write_record(
    job: Job,
    output: StoragePath,
    manifest: DatasetManifest,
    worklist: WorkList,
    logs: Sequence[Sequence[UnitLog]],
    verdicts: Sequence[Verdict],
) -> None:
    """Say for a person what the data set is and what was left out of it and dropped, with examples."""
    skipped = {unit.source: Skipped() for unit in worklist.units}
    for unit, log in zip(worklist.units, logs[0], strict=True):
        skipped[unit.source].add(log.skipped)
    records = operator_records(logs)
    content = {
        "sources": {
            source: {"reasons": _told(one.reasons, one.examples), "broken_files": sorted(set(one.files))}
            for source, one in skipped.items()
        },
        "steps": [{"step": record.name, "dropped": _told(record.dropped, record.examples)} for record in records],
    }
    (output / SKIPPED_NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (output / CARD_NAME).write_text(data_card(job.name, job.prepare, manifest, skipped, verdicts))
    (output / REPORT_NAME).write_text(data_page(job.name, job.prepare, manifest, records, skipped, verdicts))


def _told(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> dict[str, object]:
    return {reason: {"count": counts[reason], "examples": examples.get(reason, [])} for reason in sorted(counts)}


def check_shared(output: StoragePath, manifest: DatasetManifest) -> None:
    """Raise a StorageError when shards are not there: tasks on other nodes may have written to disks of their own."""
    try:
        check_shards(output, manifest)
    except DataError as error:
        raise StorageError(
            f"{output.url} is not the same folder on every node: {error}",
            hint="set prepare.output (or storage) to a bucket or a folder that all nodes share",
        ) from error


def no_documents(logs: Iterable[UnitLog]) -> DataError:
    """What to raise when nothing is left to train on; it says what reading left out and what steps dropped."""
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
        f"the sources hold no document: every file is empty, or every document was left out or dropped{why}",
        hint="check prepare.sources (kind, glob, column, document) and prepare.steps",
    )
