"""MinHash of texts, vectorised: bytes become words, words become shingles, shingles become a signature. Pure.

The share of equal entries of two signatures estimates the Jaccard similarity of the texts' sets of shingles (Broder,
"On the resemblance and containment of documents", 1997). Nothing here runs once a shingle in Python: that, and not the
hashing, is what most implementations spend their time on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 512  # shingles hashed at once: with 128 permutations 256 KiB, which stays in the cache
_LONGEST_WORD = 64  # bytes; what comes after counts as if it began the word again
_MIN_RECALL = 0.98  # that banding alone may cost at the threshold


@functools.lru_cache(maxsize=1)
def _letters() -> NDArray[np.bool_]:
    """Whether a byte belongs to a word: ASCII letters and digits, and all that is not ASCII."""
    import numpy as np

    table = np.zeros(256, dtype=bool)
    table[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = True
    return table


@functools.lru_cache(maxsize=1)
def _powers() -> NDArray[np.uint64]:
    import numpy as np

    powers = np.full(_LONGEST_WORD, 0x9E3779B97F4A7C15, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the input reaches every bit of the result."""
    import numpy as np

    first: NDArray[np.uint64] = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    second: NDArray[np.uint64] = (first ^ (first >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = second ^ (second >> np.uint64(31))
    return mixed


def word_hashes(text: str) -> NDArray[np.uint64]:
    """A hash of each word, in order. Case and punctuation do not count; where words are not told apart by spaces
    (Chinese, Japanese, Korean, Thai, Lao) every character is one.
    """
    import numpy as np

    data = np.frombuffer(text.lower().encode("utf-8", "surrogatepass"), dtype=np.uint8)
    if not len(data):
        return np.zeros(0, dtype=np.uint64)
    inside = _letters()[data]
    alone = np.zeros(len(data), dtype=bool)
    if data.max() >= 0xC2:
        after = np.append(data[1:], np.uint8(0))
        sign = (data == 0xC2) & (after != 0xAA) & (after != 0xB5) & (after != 0xBA)  # « » § and such, not ª µ º
        for offset in range(2):
            inside[offset:][sign[: len(data) - offset]] = False
        mark = ((data == 0xE2) & (after <= 0x81)) | ((data == 0xE3) & (after == 0x80))  # dashes, quotes, 。 and such
        for offset in range(3):
            inside[offset:][mark[: len(data) - offset]] = False
        alone = ((data >= 0xE3) & (data <= 0xED) & ~mark) | ((data == 0xE0) & (after >= 0xB8) & (after <= 0xBB))
    begins = inside & ~np.append(False, inside[:-1])
    begins |= alone
    begins[3:] |= alone[:-3] & inside[3:]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    first = starts[0]
    word = np.cumsum(begins[first:]) - 1
    position = (np.arange(first, len(data)) - starts[word]) % _LONGEST_WORD
    weighted = (data[first:].astype(np.uint64) + np.uint64(1)) * _powers()[position] * inside[first:]
    return _mixed(np.add.reduceat(weighted, starts - first))


def shingles(words: NDArray[np.uint64], length: int) -> NDArray[np.uint32]:
    """A hash of every run of `length` words; of a shorter text, one of all its words."""
    import numpy as np

    if not len(words):
        return np.zeros(0, dtype=np.uint32)
    length = min(length, len(words))
    count = len(words) - length + 1
    sums = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        sums = sums * np.uint64(0xD6E8FEB86659FD93) + words[offset : offset + count]
    return (_mixed(sums) >> np.uint64(32)).astype(np.uint32)


class Signer:
    """Signatures of `permutations` entries, each the least value of a random permutation of 32-bit numbers."""

    def __init__(self, permutations: int, words: int, seed: int) -> None:
        import numpy as np

        raw = np.random.Philox(key=seed).random_raw(2 * permutations)
        self._factors = (raw[:permutations, None] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._terms = (raw[permutations:, None] >> np.uint64(32)).astype(np.uint32)
        self._words = words
        self._buffer = np.empty((permutations, _BLOCK), dtype=np.uint32)

    def sign(self, text: str) -> NDArray[np.uint32] | None:
        """The text's signature; None for one without a word."""
        import numpy as np

        found = shingles(word_hashes(text), self._words)
        if not len(found):
            return None
        least = None
        for start in range(0, len(found), _BLOCK):
            block = found[start : start + _BLOCK]
            values = self._buffer[:, : len(block)]
            np.multiply(self._factors, block, out=values)
            values += self._terms
            least = values.min(axis=1) if least is None else np.minimum(least, values.min(axis=1))
        return least


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
