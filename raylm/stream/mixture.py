"""Which dataset each slot of a lane draws from: weights in, counts and inverse counts out (pure).

A lane's slots are numbered 0, 1, 2, … for ever. Weights are rounded to thousandths and laid out as a pattern of
PERIOD slots in an order drawn by the seed; each lane repeats it from a place of its own. Weights that change at a
step begin a new segment with a new pattern. Everything is answered by prefix counts, at any slot at the same cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raylm.errors import ConfigError

PERIOD = 1000

Ints = NDArray[np.int64]

_PATTERN, _ROTATION = 101, 102  # streams of random numbers; raylm.stream.lanes uses others


def draws(
    count: int, *, seed: int, stream: int, dataset: int = 0, at: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint64]:
    """`count` random 64-bit numbers that depend on the arguments alone.

    Only the bit generator is used: numpy keeps its output between versions, which it does not promise for
    `Generator.permutation`, and a run must resume in the same order under another numpy.
    """
    key = np.array([seed, stream << 32 | dataset], dtype=np.uint64)
    counter = np.array([0, *at], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, *, seed: int, stream: int, dataset: int = 0, at: tuple[int, int, int] = (0, 0, 0)) -> Ints:
    """The numbers below `count` in an order that depends on the arguments alone."""
    # A number in the low bits of its own draw: sorting values takes a third of the time of argsort, and has no ties.
    low = np.uint64((1 << max(1, (count - 1).bit_length())) - 1)
    keys = draws(count, seed=seed, stream=stream, dataset=dataset, at=at)
    keys = np.sort((keys & ~low) | np.arange(count, dtype=np.uint64))
    return (keys & low).astype(np.int64)


def quantised(weights: Sequence[float]) -> list[int]:
    """Slots of the pattern for each weight: they add up to PERIOD, and a positive weight gets at least one."""
    total = sum(weights)
    positive = sum(weight > 0 for weight in weights)
    if total <= 0:
        raise ConfigError(
            f"the weights of the datasets add up to {total:g}",
            hint="give at least one dataset a positive weight at every segment",
        )
    if positive > PERIOD:
        raise ConfigError(
            f"{positive} datasets are mixed, more than {PERIOD}", hint="join datasets when preparing them"
        )
    shares = [weight / total * PERIOD for weight in weights]
    slots = [max(1, int(share)) if weight > 0 else 0 for share, weight in zip(shares, weights, strict=True)]
    # Largest remainder; what the at-least-one rule took too much is given back by the largest.
    while sum(slots) != PERIOD:
        step = 1 if sum(slots) < PERIOD else -1
        gaps = [
            step * (share - slot) if slot > 0 and slot + step > 0 else -np.inf
            for share, slot in zip(shares, slots, strict=True)
        ]
        slots[int(np.argmax(gaps))] += step
    return slots


@dataclass(frozen=True)
class _Segment:
    """A stretch of slots with the same weights, from `first` on in every lane."""

    first: int
    pattern: Ints  # (PERIOD,) dataset of each slot
    prefix: Ints  # (datasets, PERIOD + 1) slots of a dataset before each place of the pattern
    places: tuple[Ints, ...]  # for each dataset, where it stands in the pattern
    rotation: Ints  # (lanes,) place of the pattern at which a lane begins
    base: Ints  # (datasets, lanes) slots of a dataset in all earlier segments


class Mixture:
    """Source of every slot of every lane, for weights that may change at given steps."""

    def __init__(
        self, weights: Sequence[Sequence[tuple[int, float]]], *, lanes: int, micro_batch: int, seed: int
    ) -> None:
        """`weights`: for each dataset its (step, weight) changes; the first at step 0."""
        self.datasets = len(weights)
        self.micro_batch = micro_batch
        self._segments: list[_Segment] = []
        if self.datasets > 1:
            steps = sorted({step for changes in weights for step, _ in changes})
            for number, step in enumerate(steps):
                slots = quantised([_weight_at(changes, step) for changes in weights])
                self._segments.append(self._segment(number, step * micro_batch, slots, lanes, seed))
        self._firsts = np.array([segment.first for segment in self._segments], dtype=np.int64)

    def _segment(self, number: int, first: int, slots: list[int], lanes: int, seed: int) -> _Segment:
        ordered = np.repeat(np.arange(self.datasets), slots)
        pattern = ordered[permutation(PERIOD, seed=seed, stream=_PATTERN, at=(number, 0, 0))]
        prefix = np.zeros((self.datasets, PERIOD + 1), dtype=np.int64)
        prefix[:, 1:] = np.cumsum(pattern[None, :] == np.arange(self.datasets)[:, None], axis=1)
        rotation = (draws(lanes, seed=seed, stream=_ROTATION, at=(number, 0, 0)) % PERIOD).astype(np.int64)
        base = np.zeros((self.datasets, lanes), dtype=np.int64)
        if self._segments:
            last = self._segments[-1]
            every = np.arange(lanes)
            base = np.stack([_count(last, dataset, every, np.full(lanes, first)) for dataset in range(self.datasets)])
        places = tuple(np.flatnonzero(pattern == dataset) for dataset in range(self.datasets))
        return _Segment(first, pattern, prefix, places, rotation, base)

    def before(self, dataset: int, lanes: Ints, slots: Ints) -> Ints:
        """How many of each lane's slots before the given one draw from `dataset`."""
        if self.datasets == 1:
            return slots
        if len(self._segments) == 1:
            return _count(self._segments[0], dataset, lanes, slots)
        which = np.searchsorted(self._firsts, slots, side="right") - 1
        counts = np.empty(len(slots), dtype=np.int64)
        for number in np.unique(which):
            mine = which == number
            counts[mine] = _count(self._segments[number], dataset, lanes[mine], slots[mine])
        return counts

    def before_slot(self, dataset: int, lane: int, slot: int) -> int:
        """`before` for one slot."""
        if self.datasets == 1:
            return slot
        return int(self.before(dataset, np.array([lane]), np.array([slot]))[0])

    def slot(self, dataset: int, lane: int, nth: int) -> int | None:
        """The lane's slot that draws from `dataset` for the nth time (from 0), or None if that never comes."""
        if self.datasets == 1:
            return nth
        for number, segment in enumerate(self._segments):
            begun = int(segment.base[dataset, lane])
            last = number + 1 == len(self._segments)
            if not last and nth >= int(self._segments[number + 1].base[dataset, lane]):
                continue
            places = segment.places[dataset]
            if not len(places):
                return None
            rotation = int(segment.rotation[lane])
            periods, place = divmod(nth - begun + int(segment.prefix[dataset, rotation]), len(places))
            return segment.first + periods * PERIOD + int(places[place]) - rotation
        return None

    def datasets_of(self, lane: int, step: int) -> Ints:
        """The dataset of each of the lane's micro-batch slots at `step`."""
        if self.datasets == 1:
            return np.zeros(self.micro_batch, dtype=np.int64)
        slot = step * self.micro_batch
        segment = self._segments[int(np.searchsorted(self._firsts, slot, side="right")) - 1]
        at = slot - segment.first + int(segment.rotation[lane]) + np.arange(self.micro_batch)
        return segment.pattern[at % PERIOD]


def _weight_at(changes: Sequence[tuple[int, float]], step: int) -> float:
    return max((change for change in changes if change[0] <= step), key=lambda change: change[0])[1]


def _count(segment: _Segment, dataset: int, lanes: Ints, slots: Ints) -> Ints:
    """Slots of `dataset` before `slots` in `lanes`, all of which lie in this segment or at its end."""
    prefix, rotation = segment.prefix[dataset], segment.rotation[lanes]
    places = slots - segment.first + rotation
    periods, place = np.divmod(places, PERIOD)
    counted: Ints = segment.base[dataset, lanes] + periods * prefix[PERIOD] + prefix[place] - prefix[rotation]
    return counted
