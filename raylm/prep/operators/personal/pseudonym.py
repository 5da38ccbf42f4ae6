"""Made-up values: the same one for the same value and seed, in its layout, and nobody's.

They come from ranges kept free for examples where there are such (RFC 2606, 5737 and 3849; telephone numbers for films;
card networks' test numbers), so that several values may share one. A value is hashed, not encrypted: nothing leads back
from a made-up value, but whoever has the seed can check a guess, and there are few enough phone numbers to guess all.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable

from raylm.prep.operators.personal.numbers import id_holds, luhn, stdnum
from raylm.prep.operators.personal.span import Span


def _words(line: str) -> list[str]:
    return line.split()


_GIVEN = _words(
    "Ada Amir Bela Carmen Daria Edgar Farah Goran Hanna Ivo Jun Kira Lars Mina Nuri Olga Pablo Rana Sven Tala"
)
_FAMILY = _words(
    "Abel Brandt Castell Dorn Ekholm Farkas Grell Hollis Imre Jarvis Kovar Lindt Maro Norell Okafor Pell Quist"
)
_STREETS = _words("Alder Beech Cedar Chestnut Elm Hazel Juniper Larch Linden Maple Oak Poplar Rowan Spruce Willow")
_PLACES = _words("Altenbrook Birkfield Castonbury Dunmarsh Eastwick Fernhollow Greyhaven Hartmoor Inverlea Kestrelton")
_TEST_CARDS = {"3": "378282", "5": "555555", "6": "601111", "4": "424242"}
_BANK = "TEST"  # no bank's letters; where the country has digits there, zeros


class Dice:
    """An endless stream of numbers that a key and a value decide."""

    def __init__(self, key: bytes, value: str) -> None:
        self._key, self._value, self._rolls = key, value.encode(), 0

    def below(self, limit: int) -> int:
        """The next number in [0, limit)."""
        self._rolls += 1
        message = self._rolls.to_bytes(4, "big") + self._value
        return int.from_bytes(hashlib.blake2b(message, digest_size=8, key=self._key).digest(), "big") % limit

    def one_of(self, choices: list[str] | str) -> str:
        """The next choice."""
        return choices[self.below(len(choices))]

    def digits(self, count: int) -> str:
        """The next digits."""
        return "".join(self.one_of(string.digits) for _ in range(count))


def pseudonym(value: str, span: Span, seed: int) -> str:
    """A made-up value of the span's kind, in the layout of `value`."""
    key = hashlib.blake2b(f"raylm:{seed}:{span.kind}".encode(), digest_size=32).digest()
    return _MAKERS[span.kind](value, span.form, Dice(key, _plain(value, span.kind)))


def _plain(value: str, kind: str) -> str:
    """The value without its layout: what makes two ways of writing it one."""
    if kind == "phone":
        digits = _digits(re.split("[xX#e]", value)[0])
        digits = digits.removeprefix("00")
        return digits[1:] if len(digits) == 11 and digits.startswith("1") else digits
    if kind in ("card", "iban", "national_id"):
        return "".join(filter(str.isalnum, value)).upper()
    return " ".join(value.lower().split())


def _digits(value: str) -> str:
    return "".join(letter for letter in value if letter in string.digits)


def _laid_out(letters: str, layout: str) -> str:
    """The letters in the places that the layout has for letters and digits."""
    left = iter(letters)
    return "".join(next(left, "") if place.isalnum() else place for place in layout)


def _email(value: str, form: str, dice: Dice) -> str:
    return f"{dice.one_of(_GIVEN)}.{dice.one_of(_FAMILY)}{dice.digits(4)}@example.com".lower()


def _phone(value: str, form: str, dice: Dice) -> str:
    number = re.split(r"[ ,]{0,2}(?:x|ext|#)", value, maxsplit=1, flags=re.IGNORECASE)[0]
    digits = _digits(number).removeprefix("00")
    british, french = f"7700900{dice.digits(3)}", f"19900{dice.digits(4)}"
    american = f"{2 + dice.below(8)}{dice.digits(2)}55501{dice.digits(2)}"
    for code, made_up in (("44", british), ("33", french), ("1", american)):
        if "+" in number or number.startswith("00"):
            if digits.startswith(code) and len(digits) == len(code + made_up):
                return _laid_out(("00" if number.startswith("00") else "") + code + made_up, number)
        elif len(digits) == len(made_up) and code == "1":
            return _laid_out(made_up, number)
    if digits.startswith("0") and len(digits) in (10, 11) and "+" not in number:
        return _laid_out("0" + (french if len(digits) == 10 else british), number)
    return f"+1 {american[:3]} {american[3:6]} {american[6:]}"


def _ip(value: str, form: str, dice: Dice) -> str:
    if ":" in value:
        return "2001:db8:" + ":".join(f"{dice.below(0x10000):x}" for _ in range(6))
    return f"{dice.one_of(['192.0.2', '198.51.100', '203.0.113'])}.{1 + dice.below(254)}"


def _card(value: str, form: str, dice: Dice) -> str:
    first = _TEST_CARDS.get(value[0], _TEST_CARDS["4"])
    body = first + dice.digits(len(_digits(value)) - len(first) - 1)
    return _laid_out(next(body + last for last in string.digits if luhn(body + last)), value)


def _iban(value: str, form: str, dice: Dice) -> str:
    plain = _plain(value, "iban")
    account = _BANK if plain[4:8].isalpha() else "0000"
    for place in plain[8:]:
        account += dice.one_of(string.digits if place.isdigit() else string.ascii_uppercase)
    made_up = plain[:2] + stdnum("iban").calc_check_digits(plain[:2] + "00" + account) + account
    return _laid_out(made_up.lower() if value.islower() else made_up, value)


def _national_id(value: str, form: str, dice: Dice) -> str:
    """Of the same look, but one that its country's checks refuse, so that it can be nobody's."""
    made_up = value
    while made_up == value or id_holds(form, made_up):
        plain = (
            dice.one_of(string.digits if place.isdigit() else string.ascii_uppercase)
            for place in filter(str.isalnum, value)
        )
        made_up = _laid_out("".join(plain), value)
    return made_up


def _url(value: str, form: str, dice: Dice) -> str:
    return f"https://www.example.com/{dice.digits(8)}"


def _name(value: str, form: str, dice: Dice) -> str:
    given, family = dice.one_of(_GIVEN), dice.one_of(_FAMILY)
    return f"{given} {family}" if " " in value.strip() else given


def _address(value: str, form: str, dice: Dice) -> str:
    return f"{1 + dice.below(199)} {dice.one_of(_STREETS)} Street, {dice.one_of(_PLACES)}"


def _organization(value: str, form: str, dice: Dice) -> str:
    return f"{dice.one_of(_FAMILY)} & {dice.one_of(_FAMILY)} {dice.one_of(['Group', 'Partners', 'Works', 'Holdings'])}"


def _place(value: str, form: str, dice: Dice) -> str:
    return dice.one_of(_PLACES)


_MAKERS: dict[str, Callable[[str, str, Dice], str]] = {
    "email": _email,
    "phone": _phone,
    "ip": _ip,
    "card": _card,
    "iban": _iban,
    "national_id": _national_id,
    "url": _url,
    "name": _name,
    "address": _address,
    "organization": _organization,
    "place": _place,
}


_MADE_UP = {
    "email": re.compile(r"[a-z]+\.[a-z]+[0-9]{4}@example\.com"),
    "phone": re.compile(r"[2-9][0-9]{2}55501[0-9]{2}|(?:0|44)7700900[0-9]{3}|(?:0|33)19900[0-9]{4}"),
    "card": re.compile(f"(?:{'|'.join(_TEST_CARDS.values())})[0-9]+"),
    "iban": re.compile(f"[A-Z]{{2}}[0-9]{{2}}(?:{_BANK}|0000).*"),
    "url": re.compile(r"https://www\.example\.com/[0-9]{8}"),
}


def is_made_up(value: str, kind: str) -> bool:
    """Whether the value is of the ranges that pseudonyms come from, and so names nobody."""
    return kind in _MADE_UP and bool(_MADE_UP[kind].fullmatch(_plain(value, kind)))
