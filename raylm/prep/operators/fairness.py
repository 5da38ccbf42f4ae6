"""Who is written about, and how: counts of groups, of sentiment and occupations beside them, of languages.

Documents pass as they are; the tallies add up over units, and report/fairness.py reads them.

A sentence is the window: what is named in the same one counts as together. Terms and sentiment (vaderSentiment, MIT)
are English, so documents of another known language count for `language` only. Spelling tells British from American by
words that only one side writes so. Markers of African American English and of other dialects are left out on purpose:
lists of words mistake quoted speech, song and typing errors for the dialect, and a number nobody can defend about a
group of people is worse than none.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl
from raylm.errors import ConfigError
from raylm.prep.extras import not_installed
from raylm.prep.languages import language_of, may_be_english
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.lexicon import Lexicon, named_terms, word_pairs
from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.words import SENTENCE_END, words_of
from raylm.records import Document
from raylm.storage import Connection

EVERYONE = "everyone"  # stands for all sentences, named groups or not
_BASELINE = 16  # one sentence in so many, by hash, is looked at for the sentiment of all
_LONGEST = 1000  # characters of a sentence whose sentiment is looked at: the library takes squared time
_CLEAR = 0.05  # what the library's authors call positive or negative


class Fairness(Settings):
    """Counts who is written about, and how, for the report; drops nothing."""

    groups: PathOrUrl | None = Field(
        None, description="File of `property/group: term, term` lines; English when not set."
    )
    occupations: PathOrUrl | None = Field(None, description="File of `name: form, form` lines; English when not set.")
    sentiment: bool = Field(True, description="Look at the sentiment of sentences that name a group.")
    label: list[str] = Field(
        default_factory=list,
        description="Properties (gender, ...) whose most named group is written to the metadata: dominant_gender is "
        "that group, `mixed` where several are named as often, or `none`.",
    )


@dataclass(frozen=True)
class _Lists:
    groups: Lexicon[str]
    occupations: Lexicon[str]
    spellings: Lexicon[str]


def fairness_operator(settings: Fairness, context: OperatorContext) -> Operator:
    """The operator that counts, and writes the most named groups where the settings ask for it."""
    connection = context.connection
    terms = named_terms(settings.groups, "groups.txt", connection)
    properties = {group.partition("/")[0] for group in terms.values()}
    unknown = sorted(set(settings.label) - properties)
    if unknown:
        raise ConfigError(
            f"fairness.label names {unknown[0]!r}, which is no property of the groups",
            hint=f"there is: {', '.join(sorted(properties))}",
        )
    lists = _Lists(
        Lexicon(terms),
        Lexicon(named_terms(settings.occupations, "occupations.txt", connection)),
        _spellings(connection),
    )
    # The words that name a group must not tilt the sentiment of the sentences about it.
    sentiment = _sentiment(frozenset(word for term in terms for word in words_of(term))) if settings.sentiment else None

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        record.tally("language", language_of(document.meta))
        mentions: Counter[str] = Counter()
        if may_be_english(document.meta):
            mentions = _count(document.text, lists, sentiment, record)
        if not settings.label:
            return (document,)
        named = {f"dominant_{name}": dominant(mentions, name) for name in settings.label}
        for key, group in named.items():
            record.tally(key, group)
        return (replace(document, meta={**document.meta, **named}),)

    return per_document(look)


def _on_languages(settings: Fairness, languages: Sequence[str]) -> list[str]:
    return ["counts groups in English documents only, and in those whose language nobody says"]


def dominant(mentions: Counter[str], name: str) -> str:
    """The property's group that is named most; `mixed` where several are, `none` where no group is named."""
    counts = {group.partition("/")[2]: count for group, count in mentions.items() if group.startswith(f"{name}/")}
    if not counts:
        return "none"
    first = [group for group, count in counts.items() if count == max(counts.values())]
    return first[0] if len(first) == 1 else "mixed"


def _count(text: str, lists: _Lists, sentiment: _Sentiment | None, record: OperatorRecord) -> Counter[str]:
    """Count one document; the mentions of each group in it."""
    mentions: Counter[str] = Counter()
    spellings: set[str] = set()
    for sentence in SENTENCE_END.split(text):
        words = words_of(sentence)
        spellings.update(lists.spellings.find(words))
        named = Counter(lists.groups.find(words))
        mentions.update(named)
        jobs = sorted(set(lists.occupations.find(words)))
        for job in jobs:
            record.tally("occupation", job)
        groups = sorted(named)
        for pair in (f"{group}|{job}" for group in groups for job in jobs):
            record.tally("group_occupation", pair)
        if sentiment is not None and words:
            in_baseline = zlib.crc32(sentence.encode()) % _BASELINE == 0
            _tally_sentiment(sentence, [*groups, *([EVERYONE] if in_baseline else [])], sentiment, record)
    for group, count in mentions.items():
        record.tally("group_documents", group)
        record.tally("group_mentions", group, count)
    record.tally("spelling", "mixed" if len(spellings) > 1 else next(iter(spellings), "unmarked"))
    return mentions


def _tally_sentiment(sentence: str, groups: Iterable[str], sentiment: _Sentiment, record: OperatorRecord) -> None:
    groups = list(groups)
    if groups:
        feeling = sentiment.of(sentence[:_LONGEST])
        for group in groups:
            record.tally("group_sentiment", f"{group}|{feeling}")


class _Sentiment:
    """vaderSentiment, whose lexicon has forgotten some words."""

    def __init__(self, analyzer: Any) -> None:
        self._analyzer = analyzer

    def of(self, sentence: str) -> str:
        """`positive`, `negative` or `neutral`."""
        value = float(self._analyzer.polarity_scores(sentence)["compound"])
        return "positive" if value >= _CLEAR else "negative" if value <= -_CLEAR else "neutral"


@functools.lru_cache(maxsize=2)
def _sentiment(forgotten: frozenset[str]) -> _Sentiment:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise not_installed("step fairness with sentiment", error) from error
    analyzer = SentimentIntensityAnalyzer()
    for word in forgotten:
        analyzer.lexicon.pop(word, None)
    return _Sentiment(analyzer)


def _spellings(connection: Connection) -> Lexicon[str]:
    pairs = word_pairs(None, "spellings.txt", connection)
    return Lexicon({british: "british" for british, _ in pairs} | {american: "american" for _, american in pairs})


OPERATOR = OperatorKind(
    name="fairness",
    settings=Fairness,
    summary="counts who is written about and how; drops nothing",
    make=fairness_operator,
    languages=_on_languages,
)
