"""MinHash of texts, vectorized: bytes become words, words become shingles, shingles become a signature. Pure.

The share of equal entries of two signatures estimates the Jaccard similarity of the texts' sets of shingles (Broder,
"On the resemblance and containment of documents", 1997). Nothing here runs once a shingle in Python: that, and not the
hashing, is what most implementations spend their time on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONGEST_WORD = 64  # bytes; what comes after counts as if it began the word again
_TABLE = 1 << 16  # powers that are kept, half a megabyte
_FIRST_LEAD = 0xC2  # of UTF-8 beyond ASCII
_SIGN, _MARK, _ALONE = 1, 2, 3
_MIN_RECALL = 0.98  # that banding alone may cost at the threshold


@functools.lru_cache(maxsize=1)
def _letters() -> bytes:
    """For each byte 0, or, where it belongs to a word (ASCII letters, digits, all that is not ASCII), itself + 1.

    ASCII capitals count as small letters; no byte of UTF-8 is 255.
    """
    kept = {*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 255)}
    return bytes((byte + 32 if 65 <= byte < 91 else byte) + 1 if byte in kept else 0 for byte in range(256))


@functools.lru_cache(maxsize=1)
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The powers of an odd number, and their inverses: a product of the two is 1, modulo 2**64."""
    import numpy as np

    odd = 0x9E3779B97F4A7C15
    tables = []
    for factor in (odd, pow(odd, -1, 1 << 64)):
        powers = np.full(_TABLE, factor, dtype=np.uint64)
        powers[0] = 1
        tables.append(np.cumprod(powers, dtype=np.uint64))
    return tables[0], tables[1]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the input reaches every bit of the result."""
    import numpy as np

    first: NDArray[np.uint64] = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    second: NDArray[np.uint64] = (first ^ (first >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = second ^ (second >> np.uint64(31))
    return mixed


def word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of each word, in order, and how many words each text has. Case and punctuation do not count; where words
    are not told apart by spaces (Chinese, Japanese, Korean, Thai, Lao) every character is one.
    """
    import numpy as np

    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    raw = b"\n".join(parts)
    beyond = _beyond_ascii(raw)
    if len(with_letters := beyond.leads[~beyond.punctuation]):
        # Capitals of ASCII become small letters by _letters, which is ten times as fast.
        for number in np.unique(np.searchsorted(_ends(parts), with_letters, side="right")):
            parts[number] = texts[number].lower().encode("utf-8", "surrogatepass")
        raw = b"\n".join(parts)
        beyond = _beyond_ascii(raw)
    letters = np.frombuffer(bytearray(raw.translate(_letters())), dtype=np.uint8)
    starts = np.flatnonzero(_begins(letters, beyond))
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(parts), dtype=np.int64)
    counts = np.diff(np.searchsorted(starts, _ends(parts)), prepend=0)
    return _mixed(_polynomials(letters, starts)), counts


def _ends(parts: Sequence[bytes]) -> NDArray[np.int64]:
    """Where each part ends, and the byte between it and the next, when they stand one behind the other."""
    import numpy as np

    return np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) + 1)


@dataclass(frozen=True)
class _Beyond:
    """Characters beyond ASCII: where each begins, and what it is.

    sign: of two bytes, no letter. mark: of three bytes, no letter. alone: a word by itself.
    """

    leads: NDArray[np.int64]
    sign: NDArray[np.bool_]
    mark: NDArray[np.bool_]
    alone: NDArray[np.bool_]

    @property
    def punctuation(self) -> NDArray[np.bool_]:
        """Which are no letters."""
        return self.sign | self.mark


# Marks of other scripts, by their bytes in UTF-8: Greek, Armenian, Hebrew, Arabic (twice), Urdu.
_SIGNS = {
    **{0xCD: (0xBE,), 0xCE: (0x87,), 0xD5: tuple(range(0x9A, 0xA0)), 0xD6: (0x89, 0x8A, 0xBE), 0xD7: (0x80, 0x83)},
    **{0xD8: (0x8C, 0x9B, 0x9F), 0xD9: tuple(range(0xAA, 0xAE)), 0xDB: (0x94,)},
}
# Sinhala, Tibetan, Burmese, Ethiopic, Khmer, Mongolian, and the dot between words of katakana: third bytes, from, to.
_MARKS = {
    **{(0xE0, 0xB7): (0xB4, 0xB4), (0xE0, 0xBC): (0x8B, 0x94), (0xE1, 0x81): (0x8A, 0x8B), (0xE1, 0x8D): (0xA1, 0xA8)},
    **{(0xE1, 0x9F): (0x94, 0x9A), (0xE1, 0xA0): (0x80, 0x8A), (0xE3, 0x83): (0xBB, 0xBB)},
}


def _beyond_ascii(raw: bytes) -> _Beyond:
    import numpy as np

    data = np.frombuffer(raw, dtype=np.uint8)
    leads = np.flatnonzero(data >= _FIRST_LEAD)
    third = data[np.minimum(leads + 2, len(data) - 1)]
    after = data[leads + 1].astype(np.int32)
    places = (data[leads].astype(np.int32) - _FIRST_LEAD << 12) | ((after & 63) << 6) | (third & 63)
    found = _kinds()[places]
    return _Beyond(leads, found == _SIGN, found == _MARK, found == _ALONE)


@functools.lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What a character is, by its first byte from _FIRST_LEAD on and six bits of each of the two behind it.

    A quarter of a megabyte: looking them up costs the same however many scripts have marks of their own.
    """
    import numpy as np

    first, after, third = np.meshgrid(np.arange(_FIRST_LEAD, 256), *[np.arange(0x80, 0xC0)] * 2, indexing="ij")
    sign = (first == 0xC2) & (after != 0xAA) & (after != 0xB5) & (after != 0xBA)  # « » § and such, not ª µ º
    for lead, marks in _SIGNS.items():
        sign |= (first == lead) & np.isin(after, marks)
    mark = ((first == 0xE2) & (after <= 0x81)) | ((first == 0xE3) & (after == 0x80))  # dashes, quotes, 。 and such
    mark |= (first == 0xE0) & (after == 0xA5) & ((third == 0xA4) | (third == 0xA5))  # । ॥
    for (lead, second), (least, most) in _MARKS.items():
        mark |= (first == lead) & (after == second) & (third >= least) & (third <= most)
    mark |= (first == 0xEF) & _full_width_mark(after, third)
    alone = ((first >= 0xE3) & (first <= 0xED) & ~mark) | ((first == 0xE0) & (after >= 0xB8) & (after <= 0xBB))
    found = np.zeros(first.shape, dtype=np.uint8)
    found[sign], found[mark], found[alone] = _SIGN, _MARK, _ALONE
    return found.reshape(-1)


def _full_width_mark(after: NDArray[Any], third: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a character that begins with 0xEF is a mark of full, half or small width, such as ， ！ or ｡."""
    ascii_marks = (third <= 0x8F) | ((third >= 0x9A) & (third <= 0xA0)) | (third >= 0xBB)
    later_marks = (third == 0x80) | ((third >= 0x9B) & (third <= 0xA5))
    small_marks = (after == 0xB9) | ((after == 0xB8) & (third >= 0xB0))
    found: NDArray[np.bool_] = ((after == 0xBC) & ascii_marks) | ((after == 0xBD) & later_marks) | small_marks
    return found


def _begins(letters: NDArray[np.uint8], beyond: _Beyond) -> NDArray[np.bool_]:
    """Where words begin; what is no letter beyond ASCII becomes 0 in `letters`."""
    import numpy as np

    for kind, length in ((beyond.sign, 2), (beyond.mark, 3)):
        for offset in range(length):
            letters[beyond.leads[kind] + offset] = 0
    inside = letters != 0
    begins: NDArray[np.bool_] = inside.copy()
    np.greater(inside[1:], inside[:-1], out=begins[1:])
    alone = beyond.leads[beyond.alone]
    begins[alone] = True
    behind = alone + 3
    behind = behind[behind < len(letters)]
    begins[behind] |= inside[behind]
    return begins


def _polynomials(letters: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """For each word the sum of its letters, each times the power of its place in the word."""
    import numpy as np

    powers, inverses = _powers()
    # One product with the power of the place in the text, and one per word that takes the word's own place out again,
    # are a third of the time of finding each letter's place in its word.
    weighted = letters.astype(np.uint64)
    for block in range(0, len(letters), _TABLE):
        weighted[block : block + _TABLE] *= powers[: len(letters) - block]
    sums: NDArray[np.uint64] = np.add.reduceat(weighted, starts)
    sums *= inverses[starts & (_TABLE - 1)]
    for word in _odd_words(starts, len(letters)):
        inside = letters[starts[word] : starts[word + 1] if word + 1 < len(starts) else None]
        sums[word] = (inside * powers[np.arange(len(inside)) % _LONGEST_WORD]).sum(dtype=np.uint64)
    return sums


def _odd_words(starts: NDArray[np.int64], length: int) -> list[int]:
    """The words that are perhaps too long, or whose letters lie in two blocks of powers."""
    import numpy as np

    odd = np.flatnonzero(starts[1:] - starts[:-1] > _LONGEST_WORD).tolist()
    if length - starts[-1] > _LONGEST_WORD:
        odd.append(len(starts) - 1)
    if length > _TABLE:
        odd += (np.searchsorted(starts, np.arange(_TABLE, length, _TABLE)) - 1).clip(0).tolist()
    return odd


def shingles(words: NDArray[np.uint64], length: int) -> NDArray[np.uint32]:
    """A hash of every run of `length` words; of fewer words, one of all of them."""
    import numpy as np

    if not len(words):
        return np.zeros(0, dtype=np.uint32)
    length = min(length, len(words))
    count = len(words) - length + 1
    sums = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        sums *= np.uint64(0xD6E8FEB86659FD93)
        sums += words[offset : offset + count]
    return (_mixed(sums) >> np.uint64(32)).astype(np.uint32)


class Signer:
    """Signatures of `permutations` entries, each the least value of a random permutation of 32-bit numbers."""

    def __init__(self, permutations: int, words: int, seed: int) -> None:
        import numpy as np

        raw = np.random.Philox(key=seed).random_raw(2 * permutations)
        self._factors = (raw[:permutations] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._terms = (raw[permutations:] >> np.uint64(32)).astype(np.uint32)
        self._words = words

    def sign(self, texts: Sequence[str]) -> list[NDArray[np.uint32] | None]:
        """The texts' signatures; None for one without a word. Best of many texts at once."""
        words, counts = word_hashes(texts)
        found = shingles(words, self._words)  # some of them begin in one text and end in the next
        ends = counts.cumsum().tolist()
        whole = [
            found[end - count : end - self._words + 1]
            if count >= self._words
            else shingles(words[end - count : end], self._words)
            for count, end in zip(counts.tolist(), ends, strict=True)
            if count
        ]
        least = iter(self._least(whole) if whole else ())
        return [next(least) if count else None for count in counts.tolist()]

    def _least(self, found: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """(texts, permutations): of each text's shingles the least value of each permutation."""
        import numpy as np

        every = np.concatenate(found)
        begins = np.cumsum([0, *(len(one) for one in found[:-1])])
        values = np.empty_like(every)
        least = np.empty((len(self._factors), len(found)), dtype=np.uint32)
        # One permutation of all shingles after the other: a number times a long row is what processors do fastest,
        # three times as fast as a table of a text's shingles and all permutations.
        for factor, term, into in zip(self._factors, self._terms, least, strict=True):
            np.multiply(every, factor, out=values)
            np.add(values, term, out=values)
            np.minimum.reduceat(values, begins, out=into)
        return np.ascontiguousarray(least.T)


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows of each): as many rows as still find nearly all pairs at the threshold.

    Two texts of similarity s agree in one band of r rows with probability s**r; more rows give fewer candidates.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= _MIN_RECALL:
            return bands, rows
    return permutations, 1


def band_keys(signatures: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """(texts, bands): equal keys say that the signatures agree in all rows of that band."""
    import numpy as np

    parts = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    keys: NDArray[np.uint64] = np.tile(np.arange(bands, dtype=np.uint64), (len(signatures), 1))
    for row in range(rows):
        keys = _mixed(keys ^ parts[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
    return keys


def similarity(some: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of each row of one with the same row of the other."""
    result: NDArray[np.float64] = (some == others).mean(axis=1)
    return result
