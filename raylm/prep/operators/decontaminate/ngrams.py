"""Hashes of all runs of a text's words, and sets of them: comes in a text, leaves what it shares with each set. Pure.

Case, accents and punctuation do not count, nor which number it is, as in datatrove's decontamination; only in a run
that is mostly numbers they have to be equal, or any table would be the same as any other.

Scripts that write no spaces between words are looked at by character, and several stand for a word: a run of 13 words
is 26 characters of Chinese or Japanese, where 13 would be the name of one institute, and 39 letters of Thai.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ALONE = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Thai, Lao, Burmese and Khmer: letters, each with the vowels and tones that are written on it; Tibetan parts syllables.
_LETTERS = "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"
_LETTERS += "\u1000-\u102a\u103f\u1050-\u1055\u1780-\u17b3"
_ON_LETTERS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u109d\u17b4-\u17d3\u17dd"
)
_SYLLABLES = "\u0f00-\u0fff"
_PART = re.compile(f"[{_ALONE}{_LETTERS}{_SYLLABLES}]")
_WORD = 6  # what a word weighs; parts of words weigh less:
_HALVES = re.compile(f"[{_ALONE}{_SYLLABLES}]")  # a word of English is 1.7 Chinese characters, and 2.2 Japanese ones
_HALF, _THIRD = 3, 2  # a word of Thai has three or four letters that stand alone
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:(?<=[0-9])[.,][0-9][A-Za-z0-9]*)?")
_BASE = 0x9E3779B97F4A7C13  # 3 modulo 4: exchanging two words must not cancel out
_SPREAD = 0xD6E8FEB86659FD93
_REMEMBERED = 300_000  # words of at most _LONGEST characters: 50 MB
_LONGEST = 32
_TABLE_ROOM = 8  # places for each run; more would cost more memory than the few false hits cost time


def word_places(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends."""
    return [match.span() for match in _pattern(text).finditer(text)]


class NgramHasher:
    """Hashes of the runs of one text after the other; it remembers words."""

    def __init__(self) -> None:
        self._known = _Known()
        self._powers = _powers_of(1 << 12)

    def read(self, text: str) -> TextNgrams:
        """The text's words, ready to be hashed in runs of any length."""
        import numpy as np

        words = _pattern(text).findall(text)
        hashes = np.fromiter(map(self._known.__getitem__, words), dtype=np.uint64, count=len(words))
        if len(words) > len(self._powers[0]):
            self._powers = _powers_of(1 << len(words).bit_length())
        weights = (
            np.fromiter((_WEIGHTS[word[0]] for word in words), dtype=np.int64, count=len(words))
            if _PART.search(text)
            else None
        )
        return TextNgrams(words, hashes, self._powers, weights)


class TextNgrams:
    """The runs of one text. length: its words, and parts of words where its script writes no spaces.

    weights: of each of those, None where all are words. A run of so many words begins at each of them, and ends where
    it weighs as much, so that equal passages have equal runs.
    """

    def __init__(
        self,
        words: Sequence[str],
        hashes: NDArray[np.uint64],
        powers: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        weights: NDArray[np.int64] | None = None,
    ) -> None:
        import numpy as np

        self.length = len(words)
        self._reach = None if weights is None else np.concatenate([[0], np.cumsum(weights)])
        self._words = words
        self._hashes = hashes
        self._powers = powers
        self._sums = self._summed(hashes)

    @property
    def words(self) -> int:
        """How many words the text is worth."""
        return self.length if self._reach is None else int(self._reach[-1]) // _WORD

    def stops(self, words: int) -> NDArray[np.int64]:
        """Where each run of so many words ends, in the order of their beginnings."""
        import numpy as np

        if self._reach is None:
            return np.arange(words, self.length + 1, dtype=np.int64)
        wanted = self._reach[:-1] + words * _WORD
        stops: NDArray[np.int64] = np.searchsorted(self._reach, wanted[wanted <= self._reach[-1]])
        return stops

    def whatever_numbers(self, words: int) -> NDArray[np.uint64]:
        """The hash of each run of so many words, all numbers taken for equal; none where the text is shorter."""
        if self._reach is None:  # the same by slices: every text comes here
            runs: NDArray[np.uint64] = self._sums[words:] - self._sums[: max(0, self.length + 1 - words)]
            runs *= self._powers[1][: len(runs)]
            return runs
        return self._runs(self._sums, self.stops(words))

    def of(self, words: int) -> NDArray[np.uint64]:
        """The same, but in runs that are mostly numbers these are told apart."""
        return self._told_apart(self.stops(words))

    def of_length(self, length: int) -> NDArray[np.uint64]:
        """As `of`, of each run of so many words or parts of words, whatever they weigh."""
        import numpy as np

        return self._told_apart(np.arange(length, self.length + 1, dtype=np.int64))

    def _told_apart(self, stops: NDArray[np.int64]) -> NDArray[np.uint64]:
        import numpy as np

        runs = self._runs(self._sums, stops)
        if len(runs) and 2 * len(self._numbers) > stops[0]:
            before = np.zeros(self.length + 1, dtype=np.int64)
            before[self._numbers + 1] = 1
            before = np.cumsum(before)
            begins = np.arange(len(stops))
            mostly_numbers = 2 * (before[stops] - before[: len(stops)]) > stops - begins
            runs = np.where(mostly_numbers, self._runs(self._sums_as_written, stops), runs)
        return runs

    def _runs(self, sums: NDArray[np.uint64], stops: NDArray[np.int64]) -> NDArray[np.uint64]:
        runs: NDArray[np.uint64] = sums[stops] - sums[: len(stops)]
        runs *= self._powers[1][: len(runs)]
        return runs

    @functools.cached_property
    def _numbers(self) -> NDArray[np.int64]:
        import numpy as np

        return np.flatnonzero(self._hashes == np.uint64(_any_number()))

    @functools.cached_property
    def _sums_as_written(self) -> NDArray[np.uint64]:
        hashes = self._hashes.copy()
        for at in self._numbers.tolist():
            hashes[at] = _digest(f"#{self._words[at]}")
        return self._summed(hashes)

    def _summed(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Sums of words times powers of a base, modulo 2^64: any run's share of it is a difference of two."""
        import numpy as np

        sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
        np.cumsum(hashes * self._powers[0][: len(hashes)], out=sums[1:])
        return sums


@dataclass(frozen=True, eq=False)
class SetNgrams:
    """What is looked for of one set, in sorted hashes. runs: of `words` words. beginnings: of their first words.

    by_length: of shorter texts as they are, by their words and parts of words.
    """

    words: int
    runs: NDArray[np.uint64]
    by_length: Mapping[int, NDArray[np.uint64]]
    beginnings: NDArray[np.uint64]


@dataclass(frozen=True)
class Shared:
    """What a text shares with one set. runs: different ones. places: (first word, length) of each occurrence."""

    name: str
    runs: int
    places: tuple[tuple[int, int], ...]


class NgramIndex:
    """The runs of several sets; all have at least `beginning` words."""

    def __init__(self, sets: Mapping[str, SetNgrams], beginning: int) -> None:
        import numpy as np

        self.sets = sets
        self.beginning = beginning
        self._beginnings = np.unique(np.concatenate([one.beginnings for one in sets.values()]))
        bits = (len(self._beginnings) * _TABLE_ROOM).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[self._row(self._beginnings)] = True

    def shared(self, text: TextNgrams) -> list[Shared]:
        """What the text shares with each set, in the sets' order; sets of which it has nothing are left out."""
        places = self._candidates(text)
        if not len(places):
            return []
        found = [self._shared(text, places, name, one) for name, one in self.sets.items()]
        return [one for one in found if one.runs]

    def _candidates(self, text: TextNgrams) -> NDArray[np.int64]:
        """Where the first words of a run stand, in about every text nowhere."""
        import numpy as np

        hashes = text.whatever_numbers(self.beginning)
        # The table says no to nearly all with one look into memory; a search would need twenty.
        (places,) = np.nonzero(self._table[self._row(hashes)])
        return places[_contains(self._beginnings, hashes[places])] if len(places) else places

    def _row(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        import numpy as np

        return ((hashes * np.uint64(_SPREAD)) >> self._shift).view(np.int64)

    @staticmethod
    def _shared(text: TextNgrams, candidates: NDArray[np.int64], name: str, wanted: SetNgrams) -> Shared:
        import numpy as np

        different: set[int] = set()
        places: list[tuple[int, int]] = []

        def look(held: NDArray[np.uint64], hashes: NDArray[np.uint64], stops: NDArray[np.int64]) -> None:
            here = candidates[candidates < len(hashes)]
            here = here[_contains(held, hashes[here])]
            different.update(hashes[here].tolist())
            places.extend(zip(here.tolist(), (stops[here] - here).tolist(), strict=True))

        for length, held in wanted.by_length.items():
            look(held, text.of_length(length), np.arange(length, text.length + 1))
        if len(wanted.runs):
            look(wanted.runs, text.of(wanted.words), text.stops(wanted.words))
        return Shared(name, len(different), tuple(places))


def ngrams_of_records(records: Iterable[Sequence[str]], hasher: NgramHasher, *, words: int, shortest: int) -> SetNgrams:
    """The runs in these records, each a sequence of texts that follow one another.

    A text, or a record, of fewer than `words` words is one run, unless it has fewer than `shortest`.
    """
    shortest = min(shortest, words)
    runs: list[NDArray[np.uint64]] = []
    by_length: dict[int, list[NDArray[np.uint64]]] = {}
    beginnings: list[NDArray[np.uint64]] = []
    for record in records:
        whole = hasher.read("\n".join(record))
        beginnings.append(whole.whatever_numbers(shortest))
        runs.append(whole.of(words))
        for text in [whole, *(map(hasher.read, record) if len(record) > 1 else ())]:
            if shortest <= text.words < words:
                by_length.setdefault(text.length, []).append(text.of_length(text.length))
    short = {length: _sorted(found) for length, found in sorted(by_length.items())}
    return SetNgrams(words, _sorted(runs), short, _sorted(beginnings))


def _sorted(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    import numpy as np

    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, dtype=np.uint64)


def _contains(held: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of those wanted are among those held, which are sorted and at least one."""
    import numpy as np

    at = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    found: NDArray[np.bool_] = held[at] == wanted
    return found


class _Known(dict[str, int]):
    """Word → hash; forgets when it is full."""

    def __missing__(self, word: str) -> int:
        value = _digest(_folded(word))
        if len(word) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = value
        return value


class _Weights(dict[str, int]):
    """The first character of a word, or of a part of one → what that weighs."""

    def __missing__(self, first: str) -> int:
        weight = _WORD if not _PART.match(first) else _HALF if _HALVES.match(first) else _THIRD
        self[first] = weight
        return weight


_WEIGHTS = _Weights()


def _folded(word: str) -> str:
    if not word.isascii():
        decomposed = unicodedata.normalize("NFKD", word.casefold())
        word = "".join(letter for letter in decomposed if unicodedata.category(letter) not in ("Mn", "Cf"))
    return _NUMBER.sub("0", word.lower())


def _digest(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@functools.cache
def _any_number() -> int:
    return _digest("0")


def _powers_of(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the base, and of its inverse modulo 2^64."""
    import numpy as np

    def powers(base: int) -> NDArray[np.uint64]:
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return powers(_BASE), powers(pow(_BASE, -1, 2**64))


def _pattern(text: str) -> re.Pattern[str]:
    return _ASCII_WORD if text.isascii() else _any_word()


@functools.cache
def _any_word() -> re.Pattern[str]:
    """Letters and digits with the marks and joiners between them; \\w would end Hindi words at their vowels."""
    alone = re.compile(f"[{_ALONE}{_LETTERS}{_ON_LETTERS}]")
    ranges: list[list[int]] = []
    for code in range(0x10000):
        letter = chr(code)
        inside = letter.isalnum() or unicodedata.category(letter) in ("Mn", "Mc", "Cf")
        if inside and code != 0x200B and not alone.match(letter):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    # Beyond, one range for all: every one more is looked through for each blank, and makes it 5 times slower.
    ranges.append([0x10000, 0x1EFFF])
    letters = "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
    return re.compile(
        rf"[{letters}]+(?:(?<=\d)[.,]\d[{letters}]*)?|[{_ALONE}][\u3099\u309a]?|[{_LETTERS}][{_ON_LETTERS}]*"
    )
