"""Personal data in a text, and how several finders agree on which of them a stretch of it belongs to."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]  # start and stop in characters


@dataclass(frozen=True, order=True)
class Span:
    """text[start:stop] is of this kind: email, phone, ..., and of this form where a kind has several: us_ssn."""

    start: int
    stop: int
    kind: str
    form: str = ""


class Spans:
    """Spans that do not overlap; the first to claim a stretch of text keeps it."""

    def __init__(self) -> None:
        self._held: list[Span] = []

    def claim(self, spans: Iterable[Span]) -> None:
        """Take in those that touch nothing claimed before."""
        for span in spans:
            at = bisect.bisect_left(self._held, span.start, key=lambda held: held.start)
            before = self._held[at - 1].stop if at else 0
            after = self._held[at].start if at < len(self._held) else span.stop
            if before <= span.start and span.stop <= after:
                self._held.insert(at, span)

    def held(self) -> list[Span]:
        """All of them in the order of the text."""
        return self._held
