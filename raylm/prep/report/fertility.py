"""How finely the tokenizer cuts texts: counts of a source's texts in a language, which add up over units.

Counts are taken while texts are packed and stand in the manifest; ratios are what people compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields

from raylm.prep.languages import UNKNOWN_LANGUAGE


@dataclass
class Fertility:
    """Counts of texts and of their tokens without the end of text.

    words: between white space; Chinese, Japanese and Thai write none, so look at characters and bytes there. partial:
    tokens that stand for a byte or two of a character. unknown: tokens that stand for what the tokenizer does not know.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    partial: int = 0
    unknown: int = 0

    def add(self, other: Fertility) -> None:
        """Take in other texts of the same kind."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_dict(self) -> dict[str, int]:
        """As a manifest holds it."""
        return asdict(self)

    @property
    def ratios(self) -> tuple[float, float, float, float, float]:
        """Tokens per word, bytes per token, characters per token, and the shares of partial and of unknown tokens."""
        tokens = max(1, self.tokens)
        return (
            self.tokens / max(1, self.words),
            self.bytes / tokens,
            self.characters / tokens,
            self.partial / tokens,
            self.unknown / tokens,
        )


Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # source → language → what Fertility.to_dict gives
RATIO_NAMES = ("tokens per word", "bytes per token", "characters per token", "partial characters", "unknown")


def summed_fertility(
    units: Iterable[tuple[str, Mapping[str, Mapping[str, int]]]],
) -> dict[str, dict[str, dict[str, int]]]:
    """The counts of all units, each given as its source and its counts by language."""
    sums: dict[str, dict[str, Fertility]] = {}
    for source, languages in units:
        there = sums.setdefault(source, {})
        for language, counts in languages.items():
            there.setdefault(language, Fertility()).add(Fertility(**counts))
    return {
        source: {language: one.to_dict() for language, one in sorted(languages.items())}
        for source, languages in sums.items()
    }


def by_language(counts: Counts) -> Iterator[tuple[str, str, Fertility]]:
    """Source, language and counts: each source as a whole, then its languages, the largest first, if it has several."""
    for source, languages in counts.items():
        each = {language: Fertility(**one) for language, one in languages.items()}
        whole = Fertility()
        for one in each.values():
            whole.add(one)
        only = next(iter(each)) if len(each) == 1 else "all"
        yield source, "" if only == UNKNOWN_LANGUAGE else only, whole
        if len(each) > 1:
            for language, one in sorted(each.items(), key=lambda item: (-item[1].tokens, item[0])):
                yield source, language, one
