"""Personal data: found by rules, and by a model where one is installed; replaced by placeholders or pseudonyms.

A document comes in and leaves with its spans replaced. Nothing is dropped. The rules look at the text's own characters
only, so that the same document gives the same bytes everywhere; benchmarks/pii.py says how much they find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from raylm.config.base import Settings
from raylm.config.paths import NameOrPath
from raylm.prep.operators.base import Operator, in_batches, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.personal.internet import emails, ips, urls
from raylm.prep.operators.personal.model import loaded, named
from raylm.prep.operators.personal.numbers import cards, ibans, national_ids, stdnum
from raylm.prep.operators.personal.phones import check_regions, phones
from raylm.prep.operators.personal.pseudonym import is_made_up, pseudonym
from raylm.prep.operators.personal.span import Range, Span, Spans
from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document

# Six digits with little between them: all numbers below have them, and most paragraphs do not.
_DIGITS = re.compile(r"[0-9](?:[^0-9\n]{0,3}[0-9]){5,}")
_BEFORE, _AFTER = 16, 40  # characters: letters of a number before its digits, and after


PersonalKind = Literal["email", "phone", "ip", "card", "iban", "national_id", "url"]


ModelKind = Literal["name", "address", "organization", "place"]


NationalId = Literal[
    "br_cpf",
    "ca_sin",
    "ch_ahv",
    "de_idnr",
    "es_dni",
    "es_nie",
    "fi_hetu",
    "fr_nir",
    "gb_nhs",
    "gb_nino",
    "in_aadhaar",
    "it_codice_fiscale",
    "mx_curp",
    "nl_bsn",
    "no_fodselsnummer",
    "pl_pesel",
    "se_personnummer",
    "us_ssn",
    "za_id",
]


class PersonalData(Settings):
    """Find personal data and put a placeholder, or a made-up value of the same kind, in its place."""

    kinds: list[PersonalKind] = Field(
        ["email", "phone", "ip", "card", "iban", "national_id"], description="What rules look for."
    )
    regions: list[Annotated[str, Field(pattern="^[A-Z]{2}$")]] = Field(
        ["US", "GB"], description="Countries whose phone numbers are known without their country's code, as GB."
    )
    national_ids: list[NationalId] = Field(
        default_factory=lambda: list(get_args(NationalId)), description="Countries' numbers for people."
    )
    model: NameOrPath | None = Field(
        None, min_length=1, description="An installed spaCy pipeline, or its folder; it finds what no rule can."
    )
    model_kinds: list[ModelKind] = Field(
        ["name", "address", "organization"], min_length=1, description="What is taken from the model, if there is one."
    )
    replace_by: Literal["placeholder", "pseudonym"] = Field(
        "placeholder", description="A pseudonym is made up, and the same wherever the value stands."
    )
    placeholder: str = Field("[{kind}]", description="Its {kind} becomes the kind in capitals, as in [EMAIL].")
    seed: int = Field(
        0, ge=0, description="For pseudonyms. Whoever has it can check a guess at a value, but cannot read one off."
    )

    @field_validator("placeholder")
    @classmethod
    def _has_no_other_field(cls, value: str) -> str:
        rest = value.replace("{kind}", "")
        if "{" in rest or "}" in rest:
            raise ValueError(f"only {{kind}} may stand in braces, got {value!r}")
        return value

    @model_validator(mode="after")
    def _something_to_find(self) -> Self:
        if not self.kinds and self.model is None:
            raise ValueError("there is nothing to find: name kinds, or a model")
        return self


def find(text: str, settings: PersonalData) -> list[Span]:
    """Personal data in the text, in order and without overlap; where two kinds overlap, the surer one counts."""
    return find_all([text], settings)[0]


def find_all(texts: Sequence[str], settings: PersonalData) -> list[list[Span]]:
    """The same for each of several texts, which a model looks at together."""
    found = [_by_rules(text, settings) for text in texts]
    if settings.model is not None:
        for spans, more in zip(found, named(texts, settings.model, frozenset(settings.model_kinds)), strict=True):
            spans.claim(more)
    if settings.replace_by == "placeholder":
        return [spans.held() for spans in found]
    # So that what was replaced stays as it is when it is looked at again.
    return [
        [span for span in spans.held() if not is_made_up(text[span.start : span.stop], span.kind)]
        for text, spans in zip(texts, found, strict=True)
    ]


def _by_rules(text: str, settings: PersonalData) -> Spans:
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
    return found


def replaced(text: str, spans: Sequence[Span], settings: PersonalData) -> str:
    """The text with each span as its placeholder or pseudonym; spans as `find` gives them."""
    parts, done = [], 0
    for span in spans:
        parts += [text[done : span.start], _instead(text[span.start : span.stop], span, settings)]
        done = span.stop
    return "".join([*parts, text[done:]])


def personal_data_operator(settings: PersonalData, context: OperatorContext) -> Operator:
    """The operator that replaces personal data; what it needs is loaded when it is made."""
    if {"iban", "national_id"} & set(settings.kinds):
        stdnum("iban")
    if "phone" in settings.kinds:
        check_regions(settings.regions)

    def clean(document: Document, spans: Sequence[Span], record: OperatorRecord) -> Document:
        for span in spans:
            record.change(span.kind)
        for kind in {span.kind for span in spans}:
            record.tally("personal_data", kind)
        return replace(document, text=replaced(document.text, spans, settings)) if spans else document

    if settings.model is None:
        return per_document(lambda document, record: (clean(document, find(document.text, settings), record),))
    loaded(settings.model)

    def look(batch: Sequence[Document], record: OperatorRecord) -> Iterator[Document]:
        found = find_all([document.text for document in batch], settings)
        for document, spans in zip(batch, found, strict=True):
            yield clean(document, spans, record)

    return in_batches(look)


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


OPERATOR = OperatorKind(
    name="personal_data",
    settings=PersonalData,
    summary="puts placeholders or pseudonyms for mail addresses, phones, IPs, cards, IBANs, national ids",
    make=personal_data_operator,
)
