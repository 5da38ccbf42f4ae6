"""Personal data: found by rules, and by a model where one is installed; replaced by placeholders or pseudonyms.

A document comes in and leaves with its spans replaced. Nothing is dropped. The rules look at the text's own letters
only, so that the same document gives the same bytes everywhere; benchmarks/pii.py says how much they find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from raylm.config.steps import PersonalData
from raylm.prep.operators.personal.internet import emails, ips, urls
from raylm.prep.operators.personal.model import loaded, named
from raylm.prep.operators.personal.numbers import cards, ibans, national_ids, stdnum
from raylm.prep.operators.personal.phones import check_regions, phones
from raylm.prep.operators.personal.pseudonym import is_made_up, pseudonym
from raylm.prep.operators.personal.span import Range, Span, Spans
from raylm.prep.operators.record import OperatorRecord, Step
from raylm.records import Document

__all__ = ["Span", "find", "personal_data_operator", "replaced"]

# Six digits with little between them: all numbers below have them, and most paragraphs do not.
_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,3}[0-9]){5,}")
_BEFORE, _AFTER = 16, 40  # characters: letters of a number before its digits, and after


def find(text: str, settings: PersonalData) -> list[Span]:
    """Personal data in the text, in order and without overlap; where two kinds claim letters, the surer has them."""
    found, kinds = Spans(), settings.kinds
    if "email" in kinds:
        found.claim(_spans("email", emails(text)))
    if "url" in kinds:
        found.claim(_spans("url", urls(text)))
    if "ip" in kinds:
        found.claim(_spans("ip", ips(text)))
    for window in _windows(text):
        if "iban" in kinds:
            found.claim(_spans("iban", ibans(text, window)))
        if "card" in kinds:
            found.claim(_spans("card", cards(text, window)))
        if "national_id" in kinds:
            found.claim(national_ids(text, window, settings.national_ids))
        if "phone" in kinds:
            found.claim(_spans("phone", phones(text, window, settings.regions)))
    if settings.model is not None:
        found.claim(named(text, settings.model, frozenset(settings.model_kinds)))
    if settings.replace_by == "pseudonym":
        # So that what was replaced stays as it is when it is looked at again.
        return [span for span in found.held() if not is_made_up(text[span.start : span.stop], span.kind)]
    return found.held()


def replaced(text: str, spans: Sequence[Span], settings: PersonalData) -> str:
    """The text with each span as its placeholder or pseudonym; spans as `find` gives them."""
    parts, done = [], 0
    for span in spans:
        parts += [text[done : span.start], _instead(text[span.start : span.stop], span, settings)]
        done = span.stop
    return "".join([*parts, text[done:]])


def personal_data_operator(settings: PersonalData) -> Step:
    """The step; what it needs is loaded now, so that a missing library or model is told before any work."""
    if {"iban", "national_id"} & set(settings.kinds):
        stdnum("iban")
    if "phone" in settings.kinds:
        check_regions(settings.regions)
    if settings.model is not None:
        loaded(settings.model)

    def step(document: Document, record: OperatorRecord) -> Iterable[Document]:
        spans = find(document.text, settings)
        for span in spans:
            record.change(span.kind)
        for kind in {span.kind for span in spans}:
            record.tally("personal_data", kind)
        return (replace(document, text=replaced(document.text, spans, settings)) if spans else document,)

    return step


def _spans(kind: str, ranges: Iterable[Range]) -> Iterator[Span]:
    return (Span(start, stop, kind) for start, stop in ranges)


def _windows(text: str) -> Iterator[Range]:
    """The parts of the text that hold numbers, apart from each other."""
    start, stop = 0, -1
    for digits in _DIGITS.finditer(text):
        if digits.start() - _BEFORE > stop:
            if stop >= 0:
                yield start, stop
            start = max(0, digits.start() - _BEFORE)
        stop = min(len(text), digits.end() + _AFTER)
    if stop >= 0:
        yield start, stop


def _instead(value: str, span: Span, settings: PersonalData) -> str:
    if settings.replace_by == "pseudonym":
        return pseudonym(value, span, settings.seed)
    return settings.placeholder.replace("{kind}", span.kind.upper())
