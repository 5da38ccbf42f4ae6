"""The events of a run's log: one frozen type per kind.

They are written with `to_line` and read with `parse_event`, here and nowhere else. What a newer version wrote is kept:
an unknown kind as an `OtherEvent`, unknown fields in `more`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from raylm.humanize import duration, size
from raylm.run.metrics import Line, Record


@dataclass(frozen=True, kw_only=True)
class Event(Record):
    """Something that happened to a run after `step` steps, while so many workers were in the group."""

    kind: ClassVar[str] = ""

    workers: int | None = None

    @property
    def name(self) -> str:
        """The kind as it stands in the log."""
        return self.kind

    def to_line(self) -> Line:
        """The event as a line of JSON."""
        return {"event": self.name, **super().to_line()}

    def describe(self) -> str:
        """The event in words."""
        return f"{self.name.replace('_', ' ')} at step {self.step}"

    @property
    def _who(self) -> str:
        return "workers" if self.workers is None else f"{self.workers} worker{'' if self.workers == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class OtherEvent(Event):
    """An event of a kind that this version does not know."""

    unknown: str = "event"

    @property
    def name(self) -> str:
        """The kind as it stands in the log."""
        return self.unknown

    def to_line(self) -> Line:
        """The line as it was read."""
        return {key: value for key, value in super().to_line().items() if key != "unknown"}


@dataclass(frozen=True, kw_only=True)
class GroupStarted(Event):
    """A generation holds the state of `step` and trains on: what `Started` and `Resumed` have in common.

    attempt: its number. seconds: of all its phases. phases: seconds by part, from the moment the first member left the
    generation before. since_loss_seconds: from that moment, where this driver had one. steps_lost: steps to train
    again. micro_batches_redone: those that the members had behind them of a step that was not finished. checkpoint:
    what it was read from, None for memory.
    """

    attempt: int | None = None
    seconds: float | None = None
    since_loss_seconds: float | None = None
    phases: Mapping[str, float] | None = None
    steps_lost: int | None = None
    micro_batches_redone: int | None = None
    checkpoint: str | None = None

    @property
    def _took(self) -> str:
        return "" if self.seconds is None else f" after {duration(self.seconds)}"

    @property
    def _replay(self) -> str:
        lost = self.steps_lost or 0
        return f", {lost} step{'' if lost == 1 else 's'} to train again" if lost else ""


@dataclass(frozen=True, kw_only=True)
class Started(GroupStarted):
    """The first generation of a run that has saved nothing."""

    kind = "started"

    def describe(self) -> str:
        """The event in words."""
        return f"started with {self._who}{self._took}{self._replay}"


@dataclass(frozen=True, kw_only=True)
class Resumed(GroupStarted):
    """A generation goes on from `checkpoint`, or from the memory of its members."""

    kind = "resumed"

    def describe(self) -> str:
        """The event in words."""
        lost = self._replay or ", no step lost"
        return f"resumed {self._source}at step {self.step} with {self._who}{self._took}{lost}{self._redone}"

    @property
    def _redone(self) -> str:
        redone = self.micro_batches_redone or 0
        return f", {redone} micro-batch{'' if redone == 1 else 'es'} again" if redone else ""

    @property
    def _source(self) -> str:
        if self.checkpoint is not None:
            return "from storage "
        return "from memory " if self.step else ""  # at step 0 there may have been nothing to go on from


@dataclass(frozen=True, kw_only=True)
class SettingsChanged(Event):
    """The run goes on with other settings. changes: `key: before -> now` each. note: what follows from them."""

    kind = "settings_changed"

    changes: Sequence[str] = ()
    note: str = ""

    def describe(self) -> str:
        """The event in words."""
        words = [*self.changes, self.note] if self.note else self.changes
        return f"settings changed at step {self.step}: {'; '.join(words)}"


@dataclass(frozen=True, kw_only=True)
class Resized(Event):
    """The next generation has another number of workers than the one before."""

    kind = "resized"

    workers_before: int | None = None

    def describe(self) -> str:
        """The event in words."""
        before = "?" if self.workers_before is None else self.workers_before
        return f"resized from {before} to {self._who} at step {self.step}"


@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event):
    """Ranks were lost, or failed: the message says which. last_committed: the step of the newest checkpoint."""

    kind = "worker_lost"

    ranks: Sequence[int] = ()
    nodes: Sequence[str] = ()
    message: str = ""
    last_committed: int | None = None

    def describe(self) -> str:
        """The event in words."""
        who = f"rank {', '.join(map(str, self.ranks))}" if self.ranks else "a worker"
        who += f" on {', '.join(self.nodes)}" if self.nodes else ""
        last = "none" if self.last_committed is None else self.last_committed
        return f"lost {who} at step {self.step}; last checkpoint: step {last}"


@dataclass(frozen=True, kw_only=True)
class PreemptionNotice(Event):
    """The nodes of these ranks are about to be reclaimed, in grace_seconds where that is known."""

    kind = "preemption_notice"

    ranks: Sequence[int] = ()
    grace_seconds: float | None = None

    def describe(self) -> str:
        """The event in words."""
        within = "" if self.grace_seconds is None else f", {duration(self.grace_seconds)} left"
        return f"notice at step {self.step}: a node will be reclaimed{within}; its workers leave"


@dataclass(frozen=True, kw_only=True)
class ShrinkRequested(Event):
    """Another run of the cluster waits for workers that this one has beyond its share."""

    kind = "shrink_requested"

    def describe(self) -> str:
        """The event in words."""
        return f"another run waits for workers at step {self.step}: some of these leave"


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event):
    """Somebody asked the run to save and stop."""

    kind = "stop_requested"

    def describe(self) -> str:
        """The event in words."""
        return f"asked to stop at step {self.step}: saving"


@dataclass(frozen=True, kw_only=True)
class CheckpointCommitted(Event):
    """A checkpoint counts. seconds: from the start of the save; stall_seconds: what it held training up for."""

    kind = "checkpoint_committed"

    seconds: float | None = None
    stall_seconds: float | None = None
    bytes: int | None = None

    def describe(self) -> str:
        """The event in words."""
        spent = "" if self.seconds is None else f" in {duration(self.seconds)}"
        written = "" if self.bytes is None else f", {size(self.bytes)}"
        return f"checkpoint of step {self.step} committed{spent}{written}"


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A save was given up; rank: whose part failed, where that is known."""

    kind = "checkpoint_failed"

    message: str = "no reason given"
    rank: int | None = None

    def describe(self) -> str:
        """The event in words."""
        return f"checkpoint of step {self.step} failed: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The held-out loss, in nats per token over so many tokens. by_source: of each, where there are several."""

    kind = "evaluated"

    held_out_loss: float = math.nan
    tokens: int | None = None
    seconds: float | None = None
    by_source: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """The event in words."""
        each = ", ".join(f"{name} {loss:.4f}" for name, loss in self.by_source.items())
        return f"held-out loss {self.held_out_loss:.4f} at step {self.step}" + (f" ({each})" if each else "")


@dataclass(frozen=True, kw_only=True)
class BadLoss(Event):
    """A step whose loss or gradient was not finite, and whose update was skipped. loss: as text, for it may be NaN."""

    kind = "bad_loss"

    loss: str = "not finite"

    def describe(self) -> str:
        """The event in words."""
        return f"step {self.step}: loss {self.loss}, update skipped"


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The cluster holds too few workers to go on. fits: how many it holds; per_worker: what each needs."""

    kind = "waiting"

    fits: int = 0
    needs_workers: int = 1
    per_worker: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """The event in words."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.per_worker.items())
        return (
            f"waiting at step {self.step}: the cluster has capacity for {self.fits} of the {self.needs_workers} "
            f"worker{'' if self.needs_workers == 1 else 's'} needed ({each} each)"
        )


@dataclass(frozen=True, kw_only=True)
class Stalled(Event):
    """A rank has not finished its step for so many seconds; stacks: the file with what its threads were doing."""

    kind = "stalled"

    rank: int = 0
    node: str = ""
    seconds: float = 0.0
    stacks: str = ""

    def describe(self) -> str:
        """The event in words."""
        return (
            f"rank {self.rank} on {self.node} has been at step {self.step + 1} for {duration(self.seconds)}; "
            f"what it is doing stands in {self.stacks}"
        )


@dataclass(frozen=True, kw_only=True)
class Straggler(Event):
    """A rank has been slower than the others for so many seconds; replaced: another node's worker takes its place.

    step_seconds: what a step would take it by itself; others_seconds: the median of what it would take the others.
    """

    kind = "straggler"

    rank: int = 0
    node: str = ""
    step_seconds: float = 0.0
    others_seconds: float = 0.0
    seconds: float = 0.0
    replaced: bool = False

    def describe(self) -> str:
        """The event in words."""
        then = "it is replaced" if self.replaced else "all wait for it at every step"
        times = f"{self.step_seconds:.3g} s a step, the others {self.others_seconds:.3g} s"
        return (
            f"rank {self.rank} on {self.node} is slow at step {self.step}: by itself it takes "
            f"{times}, for {duration(self.seconds)} now; {then}"
        )


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something that does not end the run, and that somebody should know: the message says what, and what to do."""

    kind = "warned"

    message: str = ""

    def describe(self) -> str:
        """The event in words."""
        return f"warning at step {self.step}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended with an error that nothing but a person can mend."""

    kind = "failed"

    message: str = ""

    def describe(self) -> str:
        """The event in words."""
        return f"failed at step {self.step}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The last step is trained and saved. tokens, sequences: how many were trained on in all."""

    kind = "finished"

    tokens: int | None = None
    sequences: int | None = None

    def describe(self) -> str:
        """The event in words."""
        return f"finished at step {self.step}"


def _kinds(base: type[Event]) -> Iterator[type[Event]]:
    for one in base.__subclasses__():
        if one.kind:
            yield one
        yield from _kinds(one)


EVENTS: dict[str, type[Event]] = {one.kind: one for one in _kinds(Event)}


def parse_event(line: Mapping[str, Any]) -> Event:
    """The event in a line of JSON; ValueError names a field that does not hold what it must."""
    rest = {key: value for key, value in line.items() if key != "event"}
    name = line.get("event")
    if not isinstance(name, str):
        raise ValueError("it names no event")
    if name in EVENTS:
        return EVENTS[name].parse(rest)
    return OtherEvent.parse({"unknown": name, **rest})
