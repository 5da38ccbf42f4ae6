"""What stands beside a dataset for people: card.md, report.html and skipped.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from raylm.config.job import Job
from raylm.prep.checks.plausible import nothing_held_out, warnings_on
from raylm.prep.checks.requirements import Verdict
from raylm.prep.passes import UnitLog
from raylm.prep.report.card import data_card
from raylm.prep.report.findings import Findings
from raylm.prep.report.html import data_page
from raylm.prep.report.totals import accounts, documents_in, operator_records
from raylm.prep.units import WorkList
from raylm.shards import DatasetManifest
from raylm.storage import NotFound, StoragePath

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
) -> tuple[str, ...]:
    """Write for a person what the dataset is and what was skipped and dropped, with examples; the warnings in it."""
    sources = accounts(manifest, worklist.units, logs)
    skipped = {one.source: one.skipped for one in sources}
    records = operator_records(logs)
    split = nothing_held_out(job.prepare.held_out, documents_in(manifest), manifest.held_out_rows)
    findings = Findings(skipped, verdicts, (*warnings_on(sources), *split))
    content = {
        "warnings": findings.warnings,
        "sources": {
            source: {
                "reasons": _counted(one.reasons, one.examples),
                "broken_files": sorted(set(one.files)),
                "characters": one.characters,
                "removed": _counted(one.removed, one.examples, "characters"),
            }
            for source, one in skipped.items()
        },
        "steps": [
            {
                "step": record.name,
                "dropped": _counted(record.dropped, record.examples),
                "changed": _counted(record.changed, record.examples),
            }
            for record in records
        ],
    }
    (output / SKIPPED_NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (output / CARD_NAME).write_text(data_card(job.name, job.prepare, manifest, findings))
    (output / REPORT_NAME).write_text(data_page(job.name, job.prepare, manifest, records, findings))
    return findings.warnings


def warnings_in(output: StoragePath) -> tuple[str, ...]:
    """The warnings that stand beside a finished dataset."""
    try:
        return tuple(json.loads((output / SKIPPED_NAME).read_text()).get("warnings", ()))
    except NotFound:
        return ()


def _counted(counts: Mapping[str, int], examples: Mapping[str, list[str]], what: str = "count") -> dict[str, object]:
    return {reason: {what: counts[reason], "examples": examples.get(reason, [])} for reason in sorted(counts)}
