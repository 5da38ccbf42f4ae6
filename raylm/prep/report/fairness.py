"""What the fairness step's tallies mean, for the data card: comes in sums over all units, leaves findings and Markdown.

Findings describe the texts, not people: words beside words. Whatever rests on few sentences is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from raylm.prep.operators.fairness import EVERYONE

Tallies = Mapping[str, Mapping[str, int]]

FEWEST_SENTENCES = 50  # below, a share is off by more than 14 points one time in twenty
FEWEST_TOGETHER = 10


@dataclass(frozen=True)
class Feeling:
    """Sentences that name a group, by sentiment. ratio: positive for each negative one; None without a negative one.

    against_all: that ratio over the ratio of all sentences; 1 is no difference.
    """

    group: str
    sentences: int
    positive: float
    negative: float
    ratio: float | None
    against_all: float | None


@dataclass(frozen=True)
class Association:
    """A group and an occupation in one sentence. pmi: log2 of how much oftener than if neither mattered to the other.

    Among the sentences that name some group of the property and some occupation, so that 0 means: as the others.
    """

    group: str
    occupation: str
    together: int
    pmi: float


def feelings(tallies: Tallies, fewest: int = FEWEST_SENTENCES) -> list[Feeling]:
    """The sentiment beside each group, the most negative first; groups of fewer sentences are left out."""
    counts: dict[str, Counter[str]] = {}
    for key, count in tallies.get("group_sentiment", {}).items():
        group, _, feeling = key.rpartition("|")
        counts.setdefault(group, Counter())[feeling] += count
    overall = _ratio(counts.get(EVERYONE, Counter()))
    found = []
    for group, feeling_counts in sorted(counts.items()):
        sentences = feeling_counts.total()
        if group == EVERYONE or sentences < fewest:
            continue
        ratio = _ratio(feeling_counts)
        shares = (feeling_counts["positive"] / sentences, feeling_counts["negative"] / sentences)
        against = None if ratio is None or not overall else ratio / overall
        found.append(Feeling(group, sentences, *shares, ratio, against))
    return sorted(found, key=lambda one: (math.inf if one.ratio is None else one.ratio, one.group))


def associations(tallies: Tallies, fewest: int = FEWEST_TOGETHER) -> list[Association]:
    """Groups and occupations found together, the strongest first; pairs found less often are left out."""
    together = {
        tuple(key.rpartition("|")[::2]): count for key, count in tallies.get("group_occupation", {}).items() if count
    }
    by_group, by_job, by_property = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    for (group, job), count in together.items():
        by_group[group] += count
        by_job[_property(group), job] += count
        by_property[_property(group)] += count
    found = []
    for (group, job), count in together.items():
        name = _property(group)
        expected = by_group[group] * by_job[name, job] / by_property[name]
        if count >= fewest:
            found.append(Association(group, job, count, math.log2(count / expected)))
    return sorted(found, key=lambda one: (-abs(one.pmi), one.group, one.occupation))


def fairness_lines(tallies: Tallies, most: int = 12) -> list[str]:
    """The findings as Markdown, for the data card."""
    mentions = tallies.get("group_mentions", {})
    documents = tallies.get("group_documents", {})
    felt = {one.group: one for one in feelings(tallies)}
    rows = [
        f"| {group} | {documents.get(group, 0):,} | {mentions[group]:,} | {_felt(felt.get(group))} |"
        for group in sorted(mentions)
    ]
    if not rows:
        return ["No document names a group of the lists."]
    lines = [
        "Counts of words beside words, sentence by sentence; sentiment is left out where fewer than "
        f"{FEWEST_SENTENCES} sentences name a group.",
        "",
        "| group | documents | mentions | positive | negative | positive to negative, against all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ]
    strongest = [one for one in associations(tallies) if one.pmi][:most]
    lines += [
        f"- {one.group} and {one.occupation}: {one.together:,} times, {2**one.pmi:.1f} times as often as groups and "
        "occupations are together at random"
        for one in strongest
    ]
    for name, title in (("language", "Languages"), ("spelling", "Spelling")):
        lines.append(f"- {title}: {_shares(tallies.get(name, {}))}")
    return lines


def _felt(one: Feeling | None) -> str:
    if one is None:
        return "| |"
    against = "" if one.against_all is None else f"{one.against_all:.2f}"
    return f"{one.positive:.0%} | {one.negative:.0%} | {against}"


def _shares(counts: Mapping[str, int]) -> str:
    whole = max(1, sum(counts.values()))
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {count / whole:.1%}" for name, count in ordered[:8]) or "not counted"


def _ratio(counts: Counter[str]) -> float | None:
    return counts["positive"] / counts["negative"] if counts["negative"] else None


def _property(group: str) -> str:
    return group.partition("/")[0]
