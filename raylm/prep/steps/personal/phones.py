"""Phone numbers. Three grounds, from strong to weak: the international form, a layout and a numbering plan, a word.

phonenumbers knows the plans. Its own matcher reads 0.3 MB/s of web text, so candidates come from a pattern; and it
refuses numbers outside today's plans, which people write down all the same: beside a word such as `phone:` or `fax`
seven to fifteen digits in a phone's layout are enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import ModuleType

from raylm.prep.extras import not_installed
from raylm.prep.steps.personal.span import Range

_GAP = r"(?:[ \u00a0]?[-\u2010-\u2013./][ \u00a0]?|[ \u00a0]|[ .-]?(?=\()|(?<=\))[ .-]?)"
_PART = r"(?:\([0-9]{1,5}\)|[0-9]{1,15})"
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension|#)[ .:]?[0-9]{1,6}(?![0-9]))?"
_BEFORE = r"(?<![\w$€£#@%&=/+])(?<![0-9][.,:-])"
_AFTER = r"(?![\w@%°]|[,.:/][0-9])"
_RUN = re.compile(
    rf"{_BEFORE}(?:\+|\(\+[0-9]{{1,3}}\){_GAP}?|\+[ ]?)?{_PART}(?:{_GAP}{_PART}){{0,8}}{_EXTENSION}{_AFTER}", re.I
)
# North America's layout is unmistakable, and stands also in the middle of other numbers.
_AMERICAN = re.compile(
    rf"{_BEFORE}(?:(?:\+|00)?1[ .-]?)?(?:\([2-9][0-9]{{2}}\)[ -]?|[2-9][0-9]{{2}}(?P<gap>[-.]))"
    rf"[2-9][0-9]{{2}}(?(gap)(?P=gap)|[-. ])[0-9]{{4}}{_EXTENSION}{_AFTER}",
    re.I,
)
_WORD_BEFORE = re.compile(
    r"(?:\b(?:(?:tele|cell ?|smart|mobile )?phones?|tele?f?|tél|telefone?|teléfono|telefono|téléphone|telephone|telefax"
    r"|mobile|mobil|móvil|handy|portable|cell|cellular|fax|pager|call(?:ing|ed)?|dial|ring|sms|text(?:ing)?|whatsapp"
    r"|telegram|viber|hotline|helpline|desk|direct|landline|office|contact|reach|answering|messages?)\b"
    r"|[☎📞📱✆])(?P<between>[^0-9\n]{0,30}\n?[^\w\n]{0,10})\Z|(?-i:\b[TMF]:)[ ]?\Z",
    re.I,
)
_BREAK = re.compile(r"[.!?;]\s|\n\s*\n")  # a word in another sentence says nothing about this number
_WORD_AFTER = re.compile(
    r"[ \t]?[-–(,:]?[ \t]?\(?(?:office|fax|mobile|home|cell|work|tel|phone|direct|desk|landline)\b(?=\W*(?:\n|\Z|[,;)\\]))",
    re.I,
)
_NO_PHONE = re.compile(
    r"(?:isbn(?:-1[03])?|issn|doi|ean|upc|asin|sku|order|invoice|ref|reference|article|model|part|item|serial|patent|tracking"
    r"|case|account|acct|vat|nr|no|№|id|pp?|pages?|vol|ssn|security number|driver'?s licen[cs]e(?: number)?)\W{0,3}(?:is|number|nr|no)?\W{0,3}\Z",
    re.I,
)
_DATE = re.compile(
    r"(?:[12][0-9]{3}[-./][0-9]{1,2}[-./][0-9]{1,2}|[0-9]{1,2}[-./ ][0-9]{1,2}[-./ ](?:[0-9]{2}|[12][0-9]{3}))"
    r"(?:[ T].*)?|[12][0-9]{3}(?:[ ]?[-–/][ ]?[12][0-9]{3})?|(?:1[5-9]|20)[0-9]{2}[ ,/–-].*(?:1[5-9]|20)[0-9]{2}"
)
_DECIMAL = re.compile(r"[0-9]+[.][0-9]+")
_ISBN = re.compile(r"97[89][- ]?[0-9-]{10,14}|[0-9](?:-[0-9]{2,7}){2}-[0-9X]")
_FEWEST, _MOST = 7, 15  # digits: the shortest subscriber numbers, and E.164's limit
_FICTION = re.compile(r"(?:1?[2-9][0-9]{2}55501[0-9]{2}|(?:0|44)7700900[0-9]{3}|(?:0|33)19900[0-9]{4})")


def phones(text: str, within: Range, regions: Sequence[str]) -> Iterator[Range]:
    """Phone numbers; those without a country's code and a word beside them count in `regions` only."""
    for pattern in (_AMERICAN, _RUN):
        for match in pattern.finditer(text, *within):
            span = match.span()
            if _is_phone(text, span, regions, american=pattern is _AMERICAN):
                yield span


def _is_phone(text: str, span: Range, regions: tuple[str, ...], *, american: bool) -> bool:
    written = text[span[0] : span[1]]
    number = re.split(r"[ ,]{0,2}(?:x|ext|#)", written, maxsplit=1, flags=re.I)[0]
    digits = re.sub(r"[^0-9]", "", number)
    if not _FEWEST <= len(digits) <= _MOST + 2 or _FICTION.fullmatch(digits):
        return False
    if any(other.fullmatch(number) for other in (_DATE, _DECIMAL, _ISBN)) or len(set(digits)) == 1:
        return False
    before = text[max(0, span[0] - 50) : span[0]]
    if _NO_PHONE.search(before) or _in_word(text, span):
        return False
    if american:
        return True
    if "+" in number or digits.startswith("00"):
        return _is_international(digits.removeprefix("00"), spaced="+" in number)
    if _has_word(before, text[span[1] : span[1] + 30]) and not number.endswith(("000 000", "00 000")):
        return len(digits) <= _MOST
    return _has_layout(number) and any(_is_valid(number, region) for region in regions)


def _has_word(before: str, after: str) -> bool:
    word = _WORD_BEFORE.search(before)
    return bool((word and not _BREAK.search(word["between"] or "")) or _WORD_AFTER.match(after))


def _has_layout(number: str) -> bool:
    """Whether it is grouped as phone numbers are: with a trunk zero or an area in brackets, or as in America."""
    parts = re.findall(r"[0-9]+", number)
    return len(parts) >= 2 and (parts[0].startswith("0") or "(" in number or [*map(len, parts)] == [3, 3, 4])


def _is_international(digits: str, *, spaced: bool) -> bool:
    known = phonenumbers()
    try:
        # `+46 (0)8 …`: the zero is for callers at home, and parse() drops it.
        number = known.parse("+" + digits, None)
    except known.NumberParseException:
        return False
    return bool(known.is_valid_number(number) or (spaced and known.is_possible_number(number) and len(digits) >= 9))


def _is_valid(number: str, region: str) -> bool:
    known = phonenumbers()
    try:
        return bool(known.is_valid_number_for_region(known.parse(number, region), region))
    except known.NumberParseException:
        return False


def _in_word(text: str, span: Range) -> bool:
    """Whether it is a piece of a web address or of a file's path."""
    start = max(text.rfind(space, max(0, span[0] - 200), span[0]) for space in (" ", "\n", "\t")) + 1
    return bool(re.search(r"://|www\.|^/|[?&=%]|10\.[0-9]{4,}/", text[start : span[0]]))


def phonenumbers() -> ModuleType:
    """The library of numbering plans."""
    try:
        import phonenumbers as library
    except ImportError as error:
        raise not_installed("step personal_data", error) from error
    found: ModuleType = library
    return found
