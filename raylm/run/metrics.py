"""What one optimizer step gave, as a line of a run's log, and what every line has in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

Line = dict[str, Any]
R = TypeVar("R", bound="Record")


def utc_now() -> str:
    """The time as ISO 8601 with milliseconds, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every line of the log has in common.

    time: ISO 8601 in UTC, set when it is written. more: fields that this version does not know.
    """

    step: int = 0
    time: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at(self) -> float:
        """The time in seconds since 1970, NaN when it has none."""
        try:
            return datetime.fromisoformat(self.time).timestamp()
        except ValueError:
            return math.nan

    def to_line(self) -> Line:
        """The record as a line of JSON; fields that are None are left out."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "more"}
        return {key: value for key, value in known.items() if value is not None} | dict(self.more)

    @classmethod
    def parse(cls: type[R], line: Mapping[str, Any]) -> R:
        """The record in a line of JSON; ValueError names a field that does not hold what it must."""
        names = {one.name for one in fields(cls)} - {"more"}
        known = {key: value for key, value in line.items() if key in names and value is not None}
        more = {key: value for key, value in line.items() if key not in names}
        made = cls(**known, more=more)
        if not isinstance(made.step, int) or isinstance(made.step, bool):
            raise ValueError(f"step is {made.step!r}")
        return made


@dataclass(frozen=True, kw_only=True)
class StepMetrics(Record):
    """What one optimizer step gave. loss: nats per token over the global batch; seconds and rates are wall time.

    copy_seconds: for which copying the state to host memory held rank 0 up after it; they are not among step_seconds.
    attempt: the number of the generation that trained it. rank_seconds: what a step would take each rank by itself, a
    mean over some seconds that stands in one line of many.
    """

    loss: float = math.nan
    lr: float = math.nan
    grad_norm: float = math.nan
    tokens: int = 0
    tokens_per_second: float = math.nan
    step_seconds: float = 0.0
    copy_seconds: float | None = None
    workers: int = 0
    tokens_seen: int = 0
    mfu: float | None = None
    rank_seconds: Sequence[float] | None = None
    attempt: int | None = None

    @classmethod
    def parse(cls, line: Mapping[str, Any]) -> StepMetrics:
        """The step in a line; a loss that is not finite may stand there as text."""
        floats = ("loss", "lr", "grad_norm", "tokens_per_second", "step_seconds")
        given = {key: value for key, value in line.items() if value is not None}
        return super().parse({key: float(value) if key in floats else value for key, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class AuditLine(Record):
    """What one step trained on. rows: (lane, sequence id, epoch) of every sequence of the global batch.

    attempt: the number of the generation that trained it.
    """

    attempt: int = 0
    rows: Sequence[Sequence[int]] = ()
