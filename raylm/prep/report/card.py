"""card.md: what a person wants to know of a dataset, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from raylm import __version__
from raylm.config.prepare import PrepareSettings
from raylm.config.prepare.sources import SourceSettings
from raylm.prep.checks.requirements import Verdict
from raylm.prep.report.fairness import fairness_lines
from raylm.prep.report.fertility import RATIO_NAMES, Fertility, by_language
from raylm.prep.report.findings import Findings
from raylm.prep.report.totals import SourceCounts, steps_in
from raylm.shards import DatasetManifest


def data_card(
    name: str,
    settings: PrepareSettings,
    manifest: DatasetManifest,
    findings: Findings,
) -> str:
    """The card as Markdown."""
    tokens = manifest.train_tokens + manifest.held_out_tokens
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{manifest.train_rows:,} rows of {manifest.sequence_length:,} tokens to train on, "
            f"{manifest.held_out_rows:,} held out ({settings.held_out:.1%} of the documents, by hash of their text).",
            "",
            *_warnings(findings.warnings),
            "## Sources",
            "",
            "| source | files | license | documents | bytes | tokens | share |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *(_source(source, manifest, tokens) for source in settings.sources),
            "",
            *_requirements(findings.verdicts),
            *(["## Steps", "", *step_lines(manifest), ""] if steps_in(manifest) else []),
            "## Skipped while reading",
            "",
            *_skipped(findings),
            "",
            *_fairness(manifest),
            "## Tokenizer",
            "",
            f"{_tokenizer(settings)}; {manifest.vocab_size:,} tokens, end of text {manifest.eos_id}, fingerprint "
            f"`{manifest.tokenizer}`.",
            "",
            *_fertility(manifest),
            "## Made by",
            "",
            f"raylm {__version__}; fingerprint of the data `{manifest.fingerprint}`. manifest.json holds the settings "
            "and every count, skipped.json examples of what was skipped.",
            "",
        ]
    )


def _source(source: SourceSettings, manifest: DatasetManifest, all_tokens: int) -> str:
    counts = SourceCounts.of(manifest.sources.get(source.name, {}))
    files = f"{source.kind}, `{source.location}`"
    share = counts.tokens / max(1, all_tokens)
    license = source.license or "not stated"
    cells = [source.name, files, license, f"{counts.documents:,}", f"{counts.bytes:,}", f"{counts.tokens:,}"]
    cells.append(f"{share:.1%}")
    # A bar would end the cell.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _requirements(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    lines = [
        f"- {one.rule} is {one.measured:.4g}, required {one.allowed}{'' if one.met else ': NOT MET'}"
        for one in verdicts
    ]
    return ["## Requirements", "", *lines, ""]


def step_lines(manifest: DatasetManifest) -> list[str]:
    """What each step of a preparation did, a line each."""
    lines = []
    for number, step in enumerate(steps_in(manifest), 1):
        words = f"{number}. {step['name']}: {step['kept']:,} of {step['documents']:,} documents"
        for what in ("dropped", "changed"):
            counts = ", ".join(f"{times:,} {name}" for name, times in step[what].items())
            words += f"; {what} {counts}" if counts else ""
        lines.append(words.replace("_", " "))
    return lines


def _warnings(warnings: Sequence[str]) -> list[str]:
    return ["## Warnings", "", *(f"- {line}" for line in warnings), ""] if warnings else []


def _skipped(findings: Findings) -> list[str]:
    lines = [f"- {source}: {much} {reason}" for source, reason, much, _ in findings.left_out()]
    return lines or ["Nothing."]


def _fairness(manifest: DatasetManifest) -> list[str]:
    """A section for each step that counted groups."""
    counted = [step for step in manifest.steps if step["name"] == "fairness"]
    return [line for step in counted for line in ("## Fairness", "", *fairness_lines(step["tallies"]), "")]


def _fertility(manifest: DatasetManifest) -> list[str]:
    if not manifest.fertility:
        return []
    head = ["source", "language", "documents", *RATIO_NAMES]
    rows = [
        [source, language, f"{one.documents:,}", *(f"{ratio:.2f}" for ratio in one.ratios[:3]), *_shares(one)]
        for source, language, one in by_language(manifest.fertility)
    ]
    table = [head, ["---", "---", *(["---:"] * (len(head) - 2))], *rows]
    return [
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        "Words stand between white space; Chinese, Japanese and Thai write none, so compare characters and bytes "
        "there. Partial characters are tokens of a byte or two that are no character by themselves.",
        "",
    ]


def _shares(one: Fertility) -> list[str]:
    return [f"{share:.2%}" for share in one.ratios[3:]]


def _tokenizer(settings: PrepareSettings) -> str:
    if settings.tokenizer.path:
        return f"Copied from `{settings.tokenizer.path}`"
    return (
        f"{settings.tokenizer.trained_kind}, trained on up to {settings.tokenizer.sample_bytes:,} bytes of these texts"
    )
