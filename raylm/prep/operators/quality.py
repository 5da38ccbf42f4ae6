"""Rules of quality: datatrove's filters decide, and get their words from a tokenizer that remembers (words.py)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from raylm.config.quality import Quality, QualityRule
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.operators.record import OperatorRecord, Step
from raylm.records import Document

_ENGLISH = ("en", "eng")
_CUT = "line-filter-"  # how the library names what it counts of lines that it cuts out

Rule = tuple[QualityRule, Any]


def quality_operator(settings: Quality) -> Step:
    """The step that drops what a rule refuses, the reason in the library's words; c4 also cuts lines out."""
    cut: Counter[str] = Counter()
    rules_for = functools.cache(functools.partial(_rules, settings, cut))
    rules_for(settings.language)  # what is not installed is said before any unit

    def step(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        if not document.text.strip():
            record.drop("empty", document)
            return ()
        language = str(document.meta.get("language", settings.language))
        rules = rules_for(language)
        if rules is None:
            return _without_words(settings, language, document, record)
        kept = _kept(rules, document, record)
        for kind, count in cut.items():
            record.change(kind, count)
        cut.clear()
        return kept

    return step


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
    record.tally("not judged, for want of words", language)
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
        if given["stop_words"] is None and language not in _ENGLISH:
            given["stop_words"] = sorted(stop_words_of(language))
            # Where nothing is known of a language's frequent words, none can be asked for.
            given["min_stop_words"] = given["min_stop_words"] if given["stop_words"] else None
        return GopherQualityFilter(**given, language=words)

    def gopher_repetition() -> Any:
        given = settings.gopher_repetition.model_dump()
        for name in ("top_n_grams", "dup_n_grams"):
            given[name] = tuple(sorted(given[name].items()))
        return GopherRepetitionFilter(**given, language=words)

    def c4() -> Any:
        return C4QualityFilter(**settings.c4.model_dump(), language=words)

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
        rule.stat_update = functools.partial(_note, cut, name)
    return rules


def _note(cut: Counter[str], rule: str, *labels: str, **_: Any) -> None:
    """In place of the library's own counts of what it does to lines."""
    for label in labels:
        if label.startswith(_CUT):
            cut[f"{rule}_line_{label.removeprefix(_CUT)}"] += 1
