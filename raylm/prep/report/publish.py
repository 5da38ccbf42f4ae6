"""The manifest of a prepared dataset, and whether its shards are there for every node."""

from __future__ import annotations

from collections.abc import Sequence

from raylm.config.job import Job
from raylm.errors import DataError, StorageError
from raylm.prep.operators import OperatorRecord
from raylm.prep.passes import UnitLog, UnitResult
from raylm.prep.report.fertility import summed_fertility
from raylm.prep.report.totals import no_documents, operator_records
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.units import shaping_settings
from raylm.shards import TOKENIZER_FOLDER, Counts, DatasetManifest, Origin, RowFormat, check_shards
from raylm.storage import StoragePath


def manifest_of(
    job: Job, output: StoragePath, results: Sequence[UnitResult], logs: Sequence[Sequence[UnitLog]]
) -> DatasetManifest:
    """The manifest of what the last pass gave; `logs` of all passes' units, in the work list's order."""
    train = [result.train for result in results if result.train is not None]
    held_out = [result.held_out for result in results if result.held_out is not None]
    if not train and not held_out:
        raise no_documents(log for one in logs for log in one)
    if not train and job.prepare.held_out < 1:
        raise DataError(
            f"all documents fell to the held-out side (held_out={job.prepare.held_out})",
            hint="lower prepare.held_out, or give more documents: the split is by whole document; to evaluate only, "
            "set prepare.held_out to 1",
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
        fertility=summed_fertility((result.source, result.fertility) for result in results),
    )
    rows = RowFormat(job.prepare.sequence_length, facts.vocab_size, facts.fingerprint, facts.eos_id)
    return DatasetManifest.of(rows, train=train, held_out=held_out, counts=totals, origin=origin)


def _counts(record: OperatorRecord) -> dict[str, object]:
    left_out = ("seconds", "examples", "languages", "kept_languages")
    return {key: value for key, value in record.to_dict().items() if key not in left_out}


def check_shared(output: StoragePath, manifest: DatasetManifest) -> None:
    """Raise a StorageError when shards are not there: tasks on other nodes may have written to disks of their own."""
    try:
        check_shards(output, manifest)
    except DataError as error:
        raise StorageError(
            f"{output.url} is not the same folder on every node: {error}",
            hint="set prepare.output (or storage) to a bucket or a folder that all nodes share",
        ) from error
