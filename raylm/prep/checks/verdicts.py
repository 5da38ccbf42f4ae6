"""A finished preparation held against the rules of its job."""

from __future__ import annotations

from collections.abc import Sequence

from raylm.config.job import Job
from raylm.prep.checks.measures import summed
from raylm.prep.checks.requirements import Verdict, judged
from raylm.prep.passes import UnitLog, UnitResult
from raylm.prep.report.totals import documents_in, operator_records, steps_of
from raylm.shards import DatasetManifest


def verdicts_on(
    job: Job, manifest: DatasetManifest, results: Sequence[UnitResult], logs: Sequence[Sequence[UnitLog]]
) -> list[Verdict]:
    """Hold the dataset against the job's rules."""
    records = operator_records(logs)
    documents = documents_in(manifest)
    read = records[0].documents if steps_of(records) else documents
    measured = summed(result.measures for result in results) | {
        "documents": documents,
        "tokens": manifest.train_tokens + manifest.held_out_tokens,
        "kept": documents / max(1, read),
    }
    return judged(job.prepare.require, measured)
