"""Rules of quality: datatrove's filters decide, and get their words from a tokenizer that remembers (words.py)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, field_validator

from raylm.config.base import Settings
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.languages import ENGLISH_CODES
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.language import CODES
from raylm.prep.operators.record import NOT_JUDGED, OperatorRecord, cut_out
from raylm.records import Document

_QUOTES = "”’»›」』“"  # in German “ ends what „ began
_WITHOUT_MARKS = frozenset(("th", "lo"))
_OF_IDEOGRAPHS = frozenset(("zh", "zho", "chi", "cmn", "yue", "wuu", "ja", "jpn"))  # a word has one or two of them
_WITHOUT_SPACES = _OF_IDEOGRAPHS | {"th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo"}
_CUT = "line-filter-"  # how the library names what it counts of lines that it cuts out


class GopherQuality(Settings):
    """Gopher's rules on words and lines; null switches one off."""

    min_doc_words: int | None = Field(50, description="Fewest words of a document.")
    max_doc_words: int | None = Field(100_000, description="Most words of a document.")
    min_avg_word_length: float | None = Field(
        3, description="Smallest mean length of a word, in characters; not asked of Chinese and Japanese."
    )
    max_avg_word_length: float | None = Field(10, description="Largest mean length of a word, in characters.")
    max_symbol_word_ratio: float | None = Field(0.1, description="Most # signs, and most ellipses, per word.")
    max_bullet_lines_ratio: float | None = Field(0.9, description="Largest share of lines that begin with a bullet.")
    max_ellipsis_lines_ratio: float | None = Field(0.3, description="Largest share of lines that end with an ellipsis.")
    max_non_alpha_words_ratio: float | None = Field(
        0.8, description="Least share of words with a letter in them, in spite of its name."
    )
    min_stop_words: int | None = Field(2, description="Fewest different stop words.")
    stop_words: list[str] | None = Field(
        None, description="Gopher's eight for English, spaCy's for other languages when not set."
    )


class GopherRepetition(Settings):
    """Gopher's rules on what comes again, in shares of lines, paragraphs or characters; null switches one off."""

    dup_line_frac: float | None = Field(0.3, description="Largest share of lines that come again.")
    dup_para_frac: float | None = Field(0.3, description="Largest share of paragraphs that come again.")
    dup_line_char_frac: float | None = Field(0.2, description="Largest share of characters in lines that come again.")
    dup_para_char_frac: float | None = Field(
        0.2, description="Largest share of characters in paragraphs that come again."
    )
    top_n_grams: dict[Annotated[int, Field(ge=1)], float] = Field(
        default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16}, description="Words → largest share of the most frequent."
    )
    dup_n_grams: dict[Annotated[int, Field(ge=1)], float] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="Words → largest share of all that come again.",
    )


class C4Quality(Settings):
    """C4's rules on lines and documents; -1 switches a number's rule off."""

    split_paragraph: bool = Field(True, description="Judge lines; false: sentences.")
    remove_citations: bool = Field(True, description="Cut Wikipedia's marks such as [1] and [citation needed].")
    filter_no_terminal_punct: bool | None = Field(
        None,
        description="Cut lines that end without a sentence's mark, of any script, or a quotation mark; when not set, "
        "in all languages but those that write none (Thai, Lao).",
    )
    min_num_sentences: int = Field(5, description="Fewest sentences of a document.")
    min_words_per_line: int = Field(
        3, description="Cut lines of fewer words; not asked of languages without spaces between words."
    )
    max_word_length: int = Field(1000, description="Cut lines with a longer word, in characters.")
    filter_lorem_ipsum: bool = Field(True, description="Drop documents that hold lorem ipsum.")
    filter_javascript: bool = Field(True, description="Cut lines that name JavaScript.")
    filter_curly_bracket: bool = Field(True, description="Drop documents that hold a curly bracket.")
    filter_policy: bool = Field(True, description="Cut lines that speak of cookies, terms of use or privacy policies.")


class FineWebQuality(Settings):
    """FineWeb's rules on lines."""

    line_punct_thr: float = Field(0.12, description="Smallest share of lines that end as sentences do.")
    line_punct_exclude_zero: bool = Field(False, description="Keep documents in which no line ends so.")
    stop_chars: list[str] | None = Field(None, description="What ends a sentence; every script's marks when not set.")
    short_line_thr: float = Field(0.67, description="Largest share of short lines.")
    short_line_length: int = Field(30, description="Characters up to which a line is short.")
    char_duplicates_ratio: float = Field(0.01, description="Largest share of characters in lines that come again.")
    new_line_ratio: float = Field(0.3, description="Most line breaks per word.")


QualityRule: TypeAlias = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]


class Quality(Settings):
    """Judge documents by the rules of Gopher, C4 and FineWeb, as datatrove's filters do."""

    rules: Annotated[list[QualityRule], Field(min_length=1)] = Field(
        default_factory=lambda: list(get_args(QualityRule)),
        description="Which rules, in which order; c4 also cuts lines out.",
    )
    gopher_quality: GopherQuality = Field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = Field(default_factory=GopherRepetition)
    c4: C4Quality = Field(default_factory=C4Quality)
    fineweb: FineWebQuality = Field(default_factory=FineWebQuality)
    language: str = Field("en", description="Of documents whose metadata name none; it decides what a word is.")
    without_words: Literal["drop", "keep", "stop"] = Field(
        "keep", description="What to do with a document in a language whose words cannot be told apart here."
    )

    @field_validator("rules")
    @classmethod
    def _each_once(cls, value: list[QualityRule]) -> list[QualityRule]:
        if len(value) != len(set(value)):
            raise ValueError(f"each rule may come once, got {value}")
        return value


Rule: TypeAlias = tuple[QualityRule, Any]


def quality_operator(settings: Quality, context: OperatorContext) -> Operator:
    """The operator that drops what a rule refuses, the reason in the library's words; c4 also cuts lines out."""
    cut: Counter[str] = Counter()
    rules_for = functools.cache(functools.partial(_rules, settings, cut))
    rules_for(settings.language)  # what is not installed is found before any unit

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        if not document.text.strip():
            record.drop("empty", document)
            return ()
        language = str(document.meta.get("language", settings.language))
        rules = rules_for(language)
        if rules is None:
            return _without_words(settings, language, document, record)
        kept = _kept(rules, document, record)
        for kind, count in cut.items():
            wanted = kept and record.wants_example(kind)
            record.cut(kind, document, cut_out(document.text, kept[0].text) if wanted else "", count)
        cut.clear()
        return kept

    return per_document(look)


def _kept(rules: Sequence[Rule], document: Document, record: OperatorRecord) -> tuple[Document, ...]:
    from datatrove.data import Document as Judged

    judged = Judged(text=document.text, id=document.id)
    for name, rule in rules:
        verdict = rule.filter(judged)
        good, why = verdict if isinstance(verdict, tuple) else (verdict, "")
        if not good:
            record.drop(f"{name}_{why.removeprefix('gopher_')}", document)
            return ()
    return (document if judged.text == document.text else replace(document, text=judged.text),)


def _without_words(
    settings: Quality, language: str, document: Document, record: OperatorRecord
) -> tuple[Document, ...]:
    if settings.without_words == "stop":
        raise DataError(
            f"{document.id} is in {language!r}, whose words no installed library tells apart",
            hint="keep fewer languages with the step `language`, or set quality.without_words to keep or drop",
        )
    record.tally(NOT_JUDGED, language)
    if settings.without_words == "keep":
        return (document,)
    record.drop("language_without_words", document, language)
    return ()


def _rules(settings: Quality, cut: Counter[str], language: str) -> tuple[Rule, ...] | None:
    """The filters for one language, in order; None when its words cannot be told apart."""
    try:
        from datatrove.pipeline.filters import (
            C4QualityFilter,
            FineWebQualityFilter,
            GopherQualityFilter,
            GopherRepetitionFilter,
        )

        from raylm.prep.operators.spacy_words import stop_words_of, tokenizer_of
    except ImportError as error:
        raise not_installed("step quality", error) from error

    words = tokenizer_of(language)
    if words is None:
        return None

    def gopher_quality() -> Any:
        given = settings.gopher_quality.model_dump()
        if given["stop_words"] is None and language not in ENGLISH_CODES:
            given["stop_words"] = sorted(stop_words_of(language))
            # Where nothing is known of a language's frequent words, none can be asked for.
            given["min_stop_words"] = given["min_stop_words"] if given["stop_words"] else None
        if language in _OF_IDEOGRAPHS:
            given["min_avg_word_length"] = None
        return GopherQualityFilter(**given, language=words)

    def gopher_repetition() -> Any:
        given = settings.gopher_repetition.model_dump()
        for name in ("top_n_grams", "dup_n_grams"):
            given[name] = tuple(sorted(given[name].items()))
        return GopherRepetitionFilter(**given, language=words)

    def c4() -> Any:
        given = settings.c4.model_dump()
        if given["filter_no_terminal_punct"] is None:
            given["filter_no_terminal_punct"] = language not in _WITHOUT_MARKS
        if language in _WITHOUT_SPACES:
            given["min_words_per_line"] = -1  # the library counts what stands between spaces
        made = C4QualityFilter(**given, language=words)
        made.filter = _with_all_marks(made)
        return made

    def fineweb() -> Any:
        given = settings.fineweb.model_dump()
        given["stop_chars"] = given["stop_chars"] and tuple(given["stop_chars"])
        return FineWebQualityFilter(**given, language=words)

    made: dict[QualityRule, Callable[[], Any]] = {
        "gopher_quality": gopher_quality,
        "gopher_repetition": gopher_repetition,
        "c4": c4,
        "fineweb": fineweb,
    }
    rules = tuple((name, made[name]()) for name in settings.rules)
    for name, rule in rules:
        rule.stat_update = functools.partial(_count_lines, cut, name)
    return rules


def _with_all_marks(rule: Any) -> Callable[[Any], Any]:
    """The library's own judgement of a document, with every script's marks in place of English ones."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    judge = type(rule).filter
    ends = tuple(sorted({*judge.__globals__["END_PUNCTUATION"], *TERMINAL_PUNCTUATION, *_QUOTES}))
    own = FunctionType(judge.__code__, {**judge.__globals__, "END_PUNCTUATION": ends}, judge.__name__)
    return MethodType(own, rule)


def _count_lines(cut: Counter[str], rule: str, *labels: str, **_: Any) -> None:
    """In place of the library's own counts of what it does to lines."""
    for label in labels:
        if label.startswith(_CUT):
            cut[f"{rule}_line_{label.removeprefix(_CUT)}"] += 1


def _on_languages(settings: Quality, languages: Sequence[str]) -> list[str]:
    try:
        from raylm.prep.operators.spacy_words import without_words
    except ImportError:
        return []  # making the step says what is missing
    found = without_words(languages or CODES)
    what = {"keep": "leaves documents alone", "drop": "drops documents", "stop": "stops at documents"}
    why = "whose words no installed library tells apart"
    return [f"{what[settings.without_words]} in {', '.join(found)}, {why}"] if found else []


OPERATOR = OperatorKind(
    name="quality",
    settings=Quality,
    summary="the rules of Gopher, C4 and FineWeb, by datatrove's filters",
    make=quality_operator,
    languages=_on_languages,
)
