"""The page report.html of a dataset: the card's figures, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from raylm.config.prepare import PrepareSettings
from raylm.html import frame, table, text_of, tiles
from raylm.humanize import count, size
from raylm.prep.checks.requirements import Verdict
from raylm.prep.operators import OperatorRecord
from raylm.prep.report.findings import Findings
from raylm.prep.report.totals import SourceCounts, documents_in, steps_of
from raylm.shards import DatasetManifest

MOST_BARS = 24  # values of a tally that get a bar of their own


def data_page(
    name: str,
    settings: PrepareSettings,
    manifest: DatasetManifest,
    records: Sequence[OperatorRecord],
    findings: Findings,
) -> str:
    """The page; `records` of all steps in order."""
    body = [
        f"<header><h1>{escape(name)}</h1><p>{escape(_status(manifest, findings.verdicts))}</p></header>",
        _tiles(manifest, records),
        _warnings(findings.warnings),
        _verdicts(findings.verdicts),
        _sources(settings, manifest),
        _steps(records),
        *(_step(number, record) for number, record in enumerate(records, 1)),
        _reading(findings),
        f"<footer>Data {manifest.fingerprint}, tokenizer {manifest.tokenizer}</footer>",
    ]
    return frame(f"{name}, data", body, style=text_of("raylm.prep.report", "report.css"))


def _status(manifest: DatasetManifest, verdicts: Sequence[Verdict]) -> str:
    unmet = sum(not verdict.met for verdict in verdicts)
    state = f"not published: {unmet} of {len(verdicts)} requirements are not met; " if unmet else ""
    return f"{state}{manifest.train_rows:,} rows of {manifest.sequence_length:,} tokens to train on"


def _tiles(manifest: DatasetManifest, records: Sequence[OperatorRecord]) -> str:
    documents = documents_in(manifest)
    stored = sum(shard.bytes for shard in (*manifest.train, *manifest.held_out))
    read = records[0].documents if steps_of(records) else documents
    return tiles(
        [
            ("documents", count(documents), f"of {count(read)} read"),
            ("tokens", count(manifest.train_tokens), f"{count(manifest.held_out_tokens)} held out"),
            ("shards", str(len(manifest.train) + len(manifest.held_out)), size(stored)),
            ("vocabulary", f"{manifest.vocab_size:,}", f"stored as {manifest.dtype}"),
        ]
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    rows = [
        (verdict.rule, f"{verdict.measured:.4g}", verdict.allowed, "met" if verdict.met else "not met")
        for verdict in verdicts
    ]
    return f"<h2>Requirements</h2>{table(('rule', 'measured', 'required', ''), rows, numbers=(1,))}"


def _sources(settings: PrepareSettings, manifest: DatasetManifest) -> str:
    rows = []
    for source in settings.sources:
        counts = SourceCounts.of(manifest.sources.get(source.name, {}))
        figures = (f"{counts.documents:,}", size(counts.bytes), count(counts.tokens))
        rows.append((source.name, source.kind, source.license or "", *figures))
    head = ("source", "kind", "license", "documents", "text", "tokens")
    return f"<h2>Sources</h2>{table(head, rows, numbers=(3, 4, 5))}"


def _steps(records: Sequence[OperatorRecord]) -> str:
    if not steps_of(records):
        return ""
    most = max(record.documents for record in records) or 1
    bars = "".join(
        _bar(record.name.replace("_", " "), record.kept / most, f"{record.kept:,} of {record.documents:,}")
        for record in steps_of(records)
    )
    return f'<h2>Documents after each step</h2><div class="bars">{bars}</div>'


def _step(number: int, record: OperatorRecord) -> str:
    parts = []
    if record.dropped:
        parts.append(_bars(record.dropped, "dropped"))
    if record.changed:
        rows = [(kind.replace("_", " "), f"{changes:,}") for kind, changes in sorted(record.changed.items())]
        parts.append(table(("changed", "times"), rows, numbers=(1,)))
    parts += [f"<h3>{escape(name)}</h3>{_bars(values)}" for name, values in sorted(record.tallies.items())]
    parts += [
        f"<details><summary>{escape(reason.replace('_', ' '))}: examples</summary>"
        f"{''.join(f'<p>{escape(example)}</p>' for example in examples)}</details>"
        for reason, examples in sorted(record.examples.items())
    ]
    if not parts:
        return ""
    return f"<section><h2>{number}. {escape(record.name.replace('_', ' '))}</h2>{''.join(parts)}</section>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return f"<h2>Warnings</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in warnings)}</ul>"


def _reading(findings: Findings) -> str:
    rows = list(findings.left_out())
    if not rows:
        return ""
    head = ("source", "reason", "how much", "examples")
    return f"<h2>Skipped while reading</h2>{table(head, rows, numbers=(2,))}"


def _bars(values: Mapping[str, int], style: str = "") -> str:
    """A bar a value: numbers in their order, words by how often they came; the rare ones together."""
    numeric = all(_is_number(value) for value in values)
    ordered = sorted(values, key=float) if numeric else sorted(values, key=lambda value: (-values[value], value))
    shown, rest = ordered[:MOST_BARS], ordered[MOST_BARS:]
    counts = [(value.replace("_", " "), values[value]) for value in shown]
    if rest:
        counts.append((f"{len(rest)} more", sum(values[value] for value in rest)))
    most = max(times for _, times in counts) or 1
    bars = "".join(_bar(value, times / most, f"{times:,}", style) for value, times in counts)
    return f'<div class="bars">{bars}</div>'


def _bar(label: str, share: float, words: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<b>{escape(label)}</b><i{kind} style="width:{share:.2%}"></i><span>{escape(words)}</span>'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
