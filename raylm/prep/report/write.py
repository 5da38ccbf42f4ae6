"""What stands beside a dataset for people: card.md, report.html and skipped.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from raylm.config.job import Job
from raylm.prep.checks.requirements import Verdict
from raylm.prep.checks.skipped import Skipped
from raylm.prep.passes import UnitLog
from raylm.prep.report.card import data_card
from raylm.prep.report.html import data_page
from raylm.prep.report.totals import operator_records
from raylm.prep.units import WorkList
from raylm.shards import DatasetManifest
from raylm.storage import StoragePath

CARD_NAME = "card.md"
SKIPPED_NAME = "skipped.json"
REPORT_NAME = "report.html"


def write_report(
    job: Job,
    output: StoragePath,
    manifest: DatasetManifest,
    worklist: WorkList,
    logs: Sequence[Sequence[UnitLog]],
    verdicts: Sequence[Verdict],
) -> None:
    """Write for a person what the dataset is and what was skipped and dropped, with examples."""
    skipped = {unit.source: Skipped() for unit in worklist.units}
    for unit, log in zip(worklist.units, logs[0], strict=True):
        skipped[unit.source].add(log.skipped)
    records = operator_records(logs)
    content = {
        "sources": {
            source: {"reasons": _counted(one.reasons, one.examples), "broken_files": sorted(set(one.files))}
            for source, one in skipped.items()
        },
        "steps": [{"step": record.name, "dropped": _counted(record.dropped, record.examples)} for record in records],
    }
    (output / SKIPPED_NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (output / CARD_NAME).write_text(data_card(job.name, job.prepare, manifest, skipped, verdicts))
    (output / REPORT_NAME).write_text(data_page(job.name, job.prepare, manifest, records, skipped, verdicts))


def _counted(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> dict[str, object]:
    return {reason: {"count": counts[reason], "examples": examples.get(reason, [])} for reason in sorted(counts)}
