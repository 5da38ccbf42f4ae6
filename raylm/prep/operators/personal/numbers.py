"""Cards, IBANs and countries' numbers for people: a pattern proposes, a checksum decides, context helps the weak ones.

Numbers of which one in ten random ones would pass (a single check digit) count only near a word that says what they
are; those with a strong checksum or an unmistakable layout stand alone.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from raylm.prep.extras import not_installed
from raylm.prep.operators.personal.span import Range, Span

_NEAR = 60  # characters before a number in which a word may say what it is
_AFTER = 25

# (first digits from, to, lengths): which numbers card networks issue.
_ISSUERS: tuple[tuple[str, str, frozenset[int]], ...] = (
    ("4", "4", frozenset({16, 19})),  # Visa
    ("51", "55", frozenset({16})),  # Mastercard
    ("2221", "2720", frozenset({16})),
    ("34", "34", frozenset({15})),  # American Express
    ("37", "37", frozenset({15})),
    ("300", "305", frozenset({14, 16})),  # Diners Club
    ("36", "36", frozenset({14, 16})),
    ("38", "39", frozenset({14, 16})),
    ("6011", "6011", frozenset({16, 19})),  # Discover
    ("644", "659", frozenset({16, 19})),
    ("3528", "3589", frozenset({16, 19})),  # JCB
    ("62", "62", frozenset({16, 19})),  # UnionPay
    ("2200", "2204", frozenset({16})),  # Mir
    ("5018", "5018", frozenset({16})),  # Maestro
    ("5020", "5020", frozenset({16})),
    ("5038", "5038", frozenset({16})),
    ("5893", "5893", frozenset({16})),
    ("6304", "6304", frozenset({16})),
    ("6759", "6759", frozenset({16})),
    ("6761", "6763", frozenset({16})),
)
_COMMON_CARD = frozenset({14, 15, 16})
_CARD_STARTS = ("1800", "2", "3", "4", "5", "6")  # of any network, also of those that no longer issue
_GAP = "[ \u00a0\u2007\u2009-\u2011\u2013\u202f-]"
# Layouts as on the card; one kind of separator throughout.
_CARD = re.compile(
    r"(?<![0-9A-Za-z_+$€£#-])(?<![0-9][.,])"
    rf"(?:[0-9]{{12,19}}|[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{3}})?"
    rf"|[0-9]{{4}}({_GAP})[0-9]{{6}}\2[0-9]{{4,5}})(?![0-9A-Za-z_]|[-.,][0-9])"
)
_CARD_WORDS = re.compile(
    r"\b(?:(?:credit|debit|bank|kredit)?(?:card|karte|cart[ae]|carta|tarjeta|cartão)s?|cc|ccn|pan|visa|mastercard|maestro"
    r"|amex|american express|diners|discover|jcb|unionpay|mir)\b",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"://|www\.|^/|[?&=%]")
_OF_GAP = re.compile(_GAP)
_IBAN = re.compile(rf"(?<![0-9A-Za-z])[A-Za-z]{{2}}[0-9]{{2}}(?={_GAP}?[0-9A-Za-z]{{4}}{_GAP}?[0-9A-Za-z]{{2}})")
_IBAN_LETTERS = re.compile(rf"(?:{_GAP}?[0-9A-Za-z]){{11,30}}")


def cards(text: str, within: Range) -> Iterator[Range]:
    """Card numbers by Luhn's digit, an issuer's first digits and its lengths."""
    for match in _CARD.finditer(text, *within):
        digits = re.sub(r"[^0-9]", "", match[0])
        if luhn(digits) and not _in_address(text, match.start()):
            # A bare run of an odd length is an article or ticket number more often than a card.
            sure = (len(digits) in _COMMON_CARD or match[1]) and _is_issued(digits)
            if sure or (digits.startswith(_CARD_STARTS) and near(text, match.span(), _CARD_WORDS)):
                yield match.span()


def luhn(digits: str) -> bool:
    """Whether the last digit is the one that Luhn's rule gives."""
    doubled = ("0246813579"[int(digit)] for digit in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(map(int, doubled))) % 10 == 0


def ibans(text: str, within: Range) -> Iterator[Range]:
    """Account numbers by ISO 7064 (mod 97) and the country's own layout, written together or in groups."""
    iban = stdnum("iban")
    for match in _IBAN.finditer(text, *within):
        run = _IBAN_LETTERS.match(text, match.end())
        stops = range(run.end(), run.start() + 11, -1) if run else ()
        for stop in stops:
            behind = text[stop : stop + 1]
            if (behind.isascii() and behind.isalnum()) or not text[stop - 1].isalnum():
                continue
            if iban.is_valid(_OF_GAP.sub("", text[match.start() : stop]), check_country=False):
                yield match.start(), stop
                break


@dataclass(frozen=True)
class IdForm:
    """How one country's number for people looks. `words`: without one of them nearby it does not count."""

    pattern: re.Pattern[str]
    module: str = ""
    words: re.Pattern[str] | None = None

    def holds(self, value: str) -> bool:
        """Whether its checks pass."""
        return not self.module or bool(stdnum(self.module).is_valid(value))


def _form(pattern: str, module: str = "", words: str = "") -> IdForm:
    whole = re.compile(rf"(?<![0-9A-Za-z_/$€£#+-])(?<![0-9][.,])(?:{pattern})(?![0-9A-Za-z_]|[-.,/][0-9])")
    return IdForm(whole, module, re.compile(rf"\b(?:{words})\b", re.IGNORECASE) if words else None)


_ID_FORMS: dict[str, tuple[IdForm, ...]] = {
    "br_cpf": (
        _form(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", "br.cpf"),
        _form(r"[0-9]{11}", "br.cpf", "cpf"),
    ),
    "ca_sin": (_form(r"[0-9]{3}([ -]?)[0-9]{3}\1[0-9]{3}", "ca.sin", "sin|nas|social insurance"),),
    "ch_ahv": (_form(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", "ch.ssn"),),
    "de_idnr": (
        _form(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "de.idnr", "idnr|steuer-?id\\w*|steuernummer|tin|tax id"),
    ),
    "es_dni": (_form(r"[0-9]{8}[ -]?[A-Za-z]", "es.dni", "dni|nif|documento nacional"),),
    "es_nie": (_form(r"[XYZxyz][ -]?[0-9]{7}[ -]?[A-Za-z]", "es.nie"),),
    "fi_hetu": (_form(r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-Y]", "fi.hetu"),),
    "fr_nir": (
        _form(r"[1278] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|[2-9][0-9]) ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", "fr.nir"),
    ),
    "gb_nhs": (_form(r"[0-9]{3}([ -]?)[0-9]{3}\1[0-9]{4}", "gb.nhs", "nhs"),),
    "gb_nino": (
        # HMRC's letters: D, F, I, Q, U, V stand nowhere in the prefix, O not second, and some pairs were never given.
        _form(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} [0-9]{2} [0-9]{2} ?[A-D]"),
        _form(
            r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]",
            words="nino|ni|national insurance|insurance number",
        ),
    ),
    "in_aadhaar": (_form(r"[2-9][0-9]{3}([ -]?)[0-9]{4}\1[0-9]{4}", "in_.aadhaar", "aadhaar|aadhar|uidai?"),),
    "it_codice_fiscale": (_form(r"[A-Za-z]{6}[0-9]{2}[A-Za-z][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z]", "it.codicefiscale"),),
    "mx_curp": (_form(r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", "mx.curp"),),
    "nl_bsn": (_form(r"[0-9]{4}\.?[0-9]{2}\.?[0-9]{2,3}", "nl.bsn", "bsn|burgerservicenummer|sofi-?nummer"),),
    "no_fodselsnummer": (_form(r"[0-9]{6} ?[0-9]{5}", "no.fodselsnummer", "fødselsnummer|fodselsnummer|fnr"),),
    "pl_pesel": (_form(r"[0-9]{11}", "pl.pesel", "pesel"),),
    "se_personnummer": (_form(r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}", "se.personnummer"),),
    "us_ssn": (
        _form(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", "us.ssn"),
        _form(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}", "us.ssn", "ssn|social security|socials?"),
    ),
    "za_id": (_form(r"[0-9]{6} ?[0-9]{4} ?[0-9]{3}", "za.idnr", "id|identity"),),
}


def national_ids(text: str, within: Range, names: Sequence[str]) -> Iterator[Span]:
    """Countries' numbers for people, of the countries that are named."""
    for name in names:
        for form in _ID_FORMS[name]:
            for match in form.pattern.finditer(text, *within):
                if form.words is not None and not near(text, match.span(), form.words):
                    continue
                if form.holds(match[0]) and not _in_address(text, match.start()):
                    yield Span(*match.span(), "national_id", name)


def id_holds(name: str, value: str) -> bool:
    """Whether the value passes one of the form's checks."""
    return any(form.pattern.fullmatch(value) and form.holds(value) for form in _ID_FORMS[name])


def near(text: str, at: Range, words: re.Pattern[str]) -> bool:
    """Whether one of the words stands shortly before, or right after."""
    before = text[max(0, at[0] - _NEAR) : at[0]]
    return bool(words.search(before) or words.search(text[at[1] : at[1] + _AFTER]))


@functools.cache
def stdnum(name: str) -> ModuleType:
    """The module of python-stdnum that knows this number."""
    try:
        return importlib.import_module(f"stdnum.{name}")
    except ImportError as error:
        raise not_installed("step personal_data", error) from error


def _is_issued(digits: str) -> bool:
    return any(len(digits) in lengths and first <= digits[: len(first)] <= last for first, last, lengths in _ISSUERS)


def _in_address(text: str, start: int) -> bool:
    """Whether the number is part of a web address: articles and pictures have long numbers too."""
    word = max(text.rfind(space, max(0, start - 200), start) for space in (" ", "\n", "\t")) + 1
    return bool(_ADDRESS.search(text[word:start]))
