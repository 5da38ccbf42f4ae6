"""Which examples share a row: as few rows as a good fit makes, the same ones whatever the order of time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packed(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of example numbers whose lengths add up to at most `row_length`, by best fit, the longest first.

    Within a row, and among rows by their first one, examples keep their order. Best fit of falling lengths needs at
    most 11/9 of the fewest rows possible, and one (Johnson, 1973).

    Raises ValueError for an example that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        if length > row_length:
            raise ValueError(f"example {number} has {length} tokens, more than a row's {row_length}")
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([number])
            insort(room, (row_length - length, len(rows) - 1))
        else:
            left, row = room.pop(at)
            rows[row].append(number)
            insort(room, (left - length, row))
    return sorted(sorted(row) for row in rows)
