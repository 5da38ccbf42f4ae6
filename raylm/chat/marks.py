"""Places in a text that travel with it through a template: a character before and one behind, taken out afterwards."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

from raylm.errors import DataError

Places = tuple[tuple[int, int], ...]
_PRIVATE = [chr(code) for code in range(0xF0000, 0xF0100)]


def unused_marks(text: str) -> tuple[str, str]:
    """Two characters of a private plane that the text does not hold."""
    free = [character for character in _PRIVATE if character not in text]
    if len(free) < 2:
        raise DataError("a conversation holds all characters of a private plane of Unicode")
    return free[0], free[1]


def unmarked(text: str, marks: tuple[str, str]) -> tuple[str, Places, Callable[[int], int]]:
    """The text without marks, the places that they enclosed, and what a place in the marked text is in it."""
    found = [match.start() for match in re.finditer(f"[{marks[0]}{marks[1]}]", text)]
    places: list[tuple[int, int]] = []
    opened = 0
    for removed, at in enumerate(found):
        if text[at] == marks[0]:
            opened = at - removed
        else:
            places.append((opened, at - removed))
    plain = text.translate({ord(mark): None for mark in marks}) if found else text

    def moved(place: int) -> int:
        return place - bisect_left(found, place)

    return plain, tuple(places), moved
