"""The rules of a job held against what was measured: a verdict on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylm.config.prepare.requirements import Bounds, Requirements
from raylm.errors import DataError
from raylm.prep.report.fertility import Counts


@dataclass(frozen=True)
class Verdict:
    """A rule, the value it was held against, and whether that is allowed; `allowed` in words."""

    rule: str
    measured: float
    allowed: str
    met: bool


def judged(require: Requirements, measured: Mapping[str, float]) -> list[Verdict]:
    """Hold what was measured against each rule; a language of which there is nothing has a share of 0."""
    verdicts = []
    for rule, bounds in require.rules().items():
        value = measured.get(rule, 0.0) if rule.startswith("language.") else measured[rule]
        low = bounds.min is None or value >= bounds.min
        high = bounds.max is None or value <= bounds.max
        verdicts.append(Verdict(rule, value, _in_words(bounds), low and high))
    return verdicts


def refuse_unmet(verdicts: Sequence[Verdict], report: str) -> None:
    """Raise a DataError that names each rule that is not met."""
    unmet = [verdict for verdict in verdicts if not verdict.met]
    if unmet:
        what = "; ".join(f"{one.rule} is {one.measured:.4g}, required {one.allowed}" for one in unmet)
        raise DataError(
            f"{len(unmet)} of {len(verdicts)} requirements are not met, so nothing is published: {what}",
            hint=f"see {report}; change the steps, or the rules under prepare.require, and run it again",
        )


def refuse_unspelled(fertility: Counts, most: float) -> None:
    """Raise a DataError for the first source of whose tokens more stand for what the tokenizer cannot spell."""
    for source, languages in fertility.items():
        unknown, tokens = (sum(counts[name] for counts in languages.values()) for name in ("unknown", "tokens"))
        share = unknown / max(1, tokens + unknown)
        if share > most:
            raise DataError(
                f"the tokenizer cannot spell {share:.1%} of the text of source {source!r}, more than {most:.1%}, so "
                "nothing is published",
                hint="use a tokenizer that knows the text's characters or spells bytes, or raise "
                "prepare.tokenizer.max_unknown",
            )


def _in_words(bounds: Bounds) -> str:
    words = [f"at least {bounds.min:g}"] if bounds.min is not None else []
    words += [f"at most {bounds.max:g}"] if bounds.max is not None else []
    return " and ".join(words)
