"""Phone numbers. Three grounds, from strong to weak: the international form, a layout and a numbering plan, a word.

phonenumbers knows the plans. Its own matcher reads 3 MB/s of web text for two regions, a tenth of what the whole step
does, so candidates come from a pattern. And it refuses numbers outside today's plans, which people write down all the
same: beside a word such as `phone:` or `fax` seven to fifteen digits in a phone's layout are enough.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

from raylm.errors import ConfigError
from raylm.prep.extras import not_installed
from raylm.prep.operators.personal.span import Range

_GAP = r"(?:[ \u00a0]?[-\u2010-\u2013./][ \u00a0]?|[ \u00a0]|[ .-]?(?=\()|(?<=\))[ .-]?)"
_PART = r"(?:\([0-9]{1,5}\)|[0-9]{1,15})"
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension|#)[ .:]?[0-9]{1,6}(?![0-9]))?"
# Letters that are written without spaces may stand beside a number; those of words that have them may not.
_LATIN = "0-9A-Za-z_\u00c0-\u024f"
_BEFORE = rf"(?<![{_LATIN}$€£¥#@%&=/+])(?<![0-9][.,:-])"
_AFTER = rf"(?![{_LATIN}@%°]|[,.:/][0-9])"
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
    r"|mobile?|mobil|móvil|handy|portable|cell|cellular|fax|pager|call(?:ing|ed)?|dial|ring|sms|text(?:ing)?|whatsapp"
    r"|telegram|viber|hotline|helpline|desk|direct|landline|office|contact|reach|answering|messages?"
    r"|(?:my|his|her|our|your|their) number|тел(?:ефон)?[а-яё]*|моб(?:ильный)?|факс|звони(?:те)?|сот(?:овый)?"
    r"|τηλ(?:έφωνο)?|κιν(?:ητό)?|φαξ|điện thoại|sđt|puh(?:elin)?|tlf|telp|cep|faks|मोबाइल|फ़ोन|फोन|दूरभाष)\b\.?"
    r"|\b(?:ruf(?:nummer)?|appele[zr]|joindre|cellulare|fone|celular|telemóvel|đt|dđ)\b\.?"
    r"|\b(?:hp|wa|gsm|kom)(?=\s?[:.]\s?\Z)\.?"
    r"|电话|電話|座机|座機|话机|固话|总机|總機|客服|致电|致電|直通|微信|フリーダイヤル|お問い合わせ|問合せ|문의|대표번호"
    r"|\bטל\b['׳]?|ফোন|মোবাইল|فون|موبائل|फोन नं|தொலைபேசி|ఫోన్|ഫോൺ|ስልክ|(?:հեռ|ტელ)\b\.?|ទូរស័ព្ទ|手机|手機|行動|携帯"
    r"|联系|聯絡|连络|連絡|热线|熱線|传真|傳真|ファックス|ファクス|전화|휴대폰|핸드폰"
    r"|연락처|팩스|โทร(?:ศัพท์)?\.?|มือถือ|هاتف|جوال|فاكس|تلفن|موبایل|טלפון|נייד|[☎📞📱✆])(?P<between>[^0-9\n]{0,30}\n?[^\w\n]{0,10})\Z"
    r"|(?-i:\b[TMF]:)[ ]?\Z",
    re.I,
)
_BREAK = re.compile(r"[.!?;]\s|\n\s*\n")  # a word in another sentence says nothing about this number
_WORD_AFTER = re.compile(
    r"[ \t]?[-–(,:]?[ \t]?\(?(?:office|fax|mobile|home|cell|work|tel|phone|direct|desk|landline)\b"
    r"(?=\W*(?:\n|\Z|[,;)\\]))",
    re.I,
)
_NO_PHONE = re.compile(
    r"\b(?:isbn(?:-1[03])?|issn|doi|ean|upc|asin|sku|order|invoice|ref|reference|article|model|part|item|serial|patent"
    r"|tracking|case|account|acct|vat|id|pp?|pages?|vol|ssn|(?:social )?security number|driver'?s licen[cs]e)"
    r"\W{0,3}(?:number|nr|no)?\W{0,3}(?:is)?\W{0,3}\Z|(?<!phone )(?<!fax )(?<!tel )(?<!tel\. )(?<!mobile )"
    r"\b(?:nr|no)\W{0,3}\Z"
    r"|[№#]\W{0,2}\Z",
    re.I,
)
_DAY_OR_MONTH = "(?:0?[1-9]|[12][0-9]|3[01])"
_DATE = re.compile(
    rf"(?:(?:1[5-9]|20)[0-9]{{2}}([-./]){_DAY_OR_MONTH}\1{_DAY_OR_MONTH}"
    rf"|{_DAY_OR_MONTH}([-./ ]){_DAY_OR_MONTH}\2(?:1[5-9]|20)[0-9]{{2}})(?:[ ][0-9]{{1,2}})?"
    r"|(?:1[5-9]|20)[0-9]{2}[ ,./–-].*(?:1[5-9]|20)[0-9]{2}"
)
_DECIMAL = re.compile(r"[0-9]+[.][0-9]+")
_ISBN = re.compile(r"97[89][- ]?[0-9-]{10,14}|[0-9](?:-[0-9]{2,7}){2}-[0-9X]")
_ZEROS = "٠۰०০੦૦୦௦౦೦൦๐໐༠၀០０"  # the zero of each script that has digits of its own
_OF_ASCII = {ord(zero) + digit: str(digit) for zero in _ZEROS for digit in range(10)}
_WIDE = {ord("Ａ") + number + case: chr(65 + number) for number in range(26) for case in (0, 32)}
_WIDE |= {ord(wide): narrow for wide, narrow in zip("（）－：＋．／\u3000−", "()-:+./ -", strict=True)}
_TO_ASCII = _OF_ASCII | _WIDE
_IN_OTHERS = re.compile(f"[{''.join(map(chr, _OF_ASCII))}]|[0-9][（）－ー−]|[（＋：][0-9+]")
_LONG_MARK = re.compile("(?<=[0-9])ー(?=[0-9])")
_FEWEST, _MOST = 7, 15  # digits: the shortest subscriber numbers, and E.164's limit


def phones(text: str, within: Range, regions: Sequence[str]) -> Iterator[Range]:
    """Phone numbers; those without a country's code and a word beside them count in `regions` only."""
    text = _in_ascii(text)
    for match in _AMERICAN.finditer(text, *within):
        if _may_be_phone(text, match.span()):
            yield match.span()
    start, end = within
    while run := _RUN.search(text, start, end):
        start = run.end()
        for stop in _stops(run):
            span = (run.start(), stop)
            if _may_be_phone(text, span) and _is_phone(text, span, regions, whole=stop == run.end()):
                yield span
                start = stop
                break


@functools.lru_cache(maxsize=2)
def _in_ascii(text: str) -> str:
    """A text whose digits, brackets and strokes of other scripts and widths are ASCII's, as long as it was."""
    if text.isascii() or not _IN_OTHERS.search(text):
        return text
    return _LONG_MARK.sub("-", text.translate(_TO_ASCII))


def _stops(run: re.Match[str]) -> list[int]:
    """Where the number may end: where the run of digits does, or at a space in it, when another number follows."""
    spaces = [run.start() + space.start() for space in re.finditer(r"(?<=[0-9])[ \u00a0]", run[0])]
    return [run.end(), *reversed(spaces)]


def check_regions(regions: Sequence[str]) -> None:
    """Refuse countries that have no numbering plan."""
    for region in regions:
        if region not in phonenumbers().SUPPORTED_REGIONS:
            raise ConfigError(
                f"step personal_data knows no region {region!r}",
                hint="give the country's two letters of ISO 3166, such as GB",
            )


def _may_be_phone(text: str, span: Range) -> bool:
    """Whether it has as many digits as a phone number, and nothing says that it is another kind of number."""
    number = _without_extension(text[span[0] : span[1]])
    digits = _digits(number)
    if not _FEWEST <= len(digits) <= _MOST + 2 or len(set(digits)) == 1:
        return False
    if any(other.fullmatch(number) for other in (_DATE, _DECIMAL, _ISBN)):
        return False
    return not _NO_PHONE.search(text[max(0, span[0] - 50) : span[0]]) and not _in_word(text, span)


def _is_phone(text: str, span: Range, regions: Sequence[str], *, whole: bool) -> bool:
    """Whether one of the three grounds holds; a word beside it says nothing of a piece of a run of numbers."""
    number = _without_extension(text[span[0] : span[1]])
    digits = _digits(number)
    if ("+" in number or digits.startswith("00")) and _is_international(number):
        return True
    if whole and len(digits) <= _MOST and not number.endswith("00 000"):
        before, after = text[max(0, span[0] - 50) : span[0]], text[span[1] : span[1] + 30]
        if _has_word(before, after):
            return True
    return any(_is_valid(number, region) for region in regions)


def _without_extension(written: str) -> str:
    return re.split(r"[ ,]{0,2}(?:x|ext|#)", written, maxsplit=1, flags=re.IGNORECASE)[0]


def _digits(number: str) -> str:
    return re.sub(r"[^0-9]", "", number)


def _has_word(before: str, after: str) -> bool:
    word = _WORD_BEFORE.search(before)
    return bool((word and not _BREAK.search(word["between"] or "")) or _WORD_AFTER.match(after))


def _has_layout(number: str) -> bool:
    """Whether it is grouped as phone numbers are: with a trunk zero or an area in brackets, or as in America."""
    parts = re.findall(r"[0-9]+", number)
    bracket = re.match(r"(?:1[ .-]?)?\(", number)
    return len(parts) >= 2 and bool(parts[0].startswith("0") or bracket or [*map(len, parts)] == [3, 3, 4])


def _is_international(number: str) -> bool:
    known = phonenumbers()
    # In `+46 (0)8 …` the zero is for callers at home.
    digits = _digits(number.replace("(0)", "")).removeprefix("00")
    try:
        parsed = known.parse("+" + digits, None)
    except known.NumberParseException:
        return False
    possible = "+" in number and len(digits) >= 9 and known.is_possible_number(parsed)
    return bool(possible or known.is_valid_number(parsed))


def _is_valid(number: str, region: str) -> bool:
    """Whether it is of a region's plan: in a layout, in parts as it is written there, or a mobile's in one piece."""
    known = phonenumbers()
    try:
        parsed = known.parse(number, region)
    except known.NumberParseException:
        return False
    if not known.is_valid_number_for_region(parsed, region):
        return False
    parts = re.findall(r"[0-9]+", number)
    if len(parts) == 1:
        return bool(known.number_type(parsed) == known.PhoneNumberType.MOBILE)
    written = known.format_number(parsed, known.PhoneNumberFormat.NATIONAL)
    return _has_layout(number) or parts == re.findall(r"[0-9]+", written)


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
