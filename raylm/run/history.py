"""Comes in: `metrics.jsonl` and `events.jsonl`. Leaves: a `History`, its `Totals`, and an event in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from raylm.errors import ConfigError, DataError
from raylm.humanize import duration, size
from raylm.run.folder import RunFolder
from raylm.storage import StoragePath

# How an attempt begins: with nothing saved, or from a checkpoint.
STARTS = ("started", "resumed")
# The kinds of event that the page marks, and the class each belongs to.
LOSS, NOTICE, RESIZE, CHECKPOINT, BAD = "loss", "notice", "resize", "checkpoint", "bad"
MARKED = {
    "worker_lost": LOSS,
    "preemption_notice": NOTICE,
    "growth_possible": RESIZE,
    "resized": RESIZE,
    "checkpoint_committed": CHECKPOINT,
    "bad_loss": BAD,
    "failed": BAD,
}


@dataclass(frozen=True)
class Step:
    """One optimizer step; `at` is when it ended, in seconds since 1970."""

    step: int
    at: float
    loss: float
    lr: float
    tokens: int
    tokens_per_second: float
    seconds: float
    workers: int


@dataclass(frozen=True)
class Event:
    """One event; `fields` holds whatever else its line said."""

    kind: str
    at: float
    step: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """Everything a run folder tells of a run, in order of time."""

    name: str
    steps: tuple[Step, ...]
    events: tuple[Event, ...]
    steps_planned: int | None = None

    @property
    def held_out(self) -> list[tuple[Event, float]]:
        """Each held-out loss with its event; a replayed evaluation counts once, the last time."""
        found = {
            event.step: (event, _number(event.fields["held_out_loss"]))
            for event in self.events
            if event.kind == "evaluated" and "held_out_loss" in event.fields
        }
        return [found[step] for step in sorted(found)]

    def of(self, *kinds: str) -> list[Event]:
        """The events of these kinds."""
        return [event for event in self.events if event.kind in kinds]


@dataclass(frozen=True)
class Totals:
    """Where a run's time went, in seconds, and what it trained.

    useful: steps that count. replayed: work that a loss threw away. idle: waiting for workers, starting, restoring,
    evaluating and saving. stopped: nothing was running. The four add up to the span from first to last line.
    """

    useful_seconds: float
    replayed_seconds: float
    idle_seconds: float
    stopped_seconds: float
    tokens: int
    steps: int
    steps_lost: int
    workers_lost: int
    resizes: int
    notices: int
    checkpoints: int

    @property
    def span_seconds(self) -> float:
        """From the first line to the last."""
        return self.useful_seconds + self.replayed_seconds + self.idle_seconds + self.stopped_seconds


def read_history(run: StoragePath) -> History:
    """Read a run folder; a half-written last line, as a killed writer leaves, is passed over."""
    metrics, events = _lines(RunFolder(run).metrics), _lines(RunFolder(run).events)
    if not metrics and not events:
        raise DataError(
            f"nothing to report: {run.url} has neither metrics.jsonl nor events.jsonl",
            hint="give the run folder, <storage>/<name> of the job file, after `raylm train` has begun",
        )
    # A replayed step appears once in the file; should it not, the last line is the one that counts.
    steps = {line["step"]: _step(line) for line in metrics if isinstance(line.get("step"), int) and "time" in line}
    return History(
        name=run.name,
        steps=tuple(steps[number] for number in sorted(steps)),
        events=tuple(sorted((_event(line) for line in events if "time" in line), key=lambda event: event.at)),
        steps_planned=_planned(run),
    )


def totals(history: History) -> Totals:
    """Divide the run's span into useful, replayed, idle and stopped time."""
    moments = [step.at for step in history.steps] + [event.at for event in history.events]
    # The first line is written when the first step or start is over; what led to it belongs to the span.
    starts = [event.at - _number(event.fields.get("seconds", 0)) for event in history.of(*STARTS)]
    starts += [step.at - step.seconds for step in history.steps[:1]]
    span = max(moments) - min(moments + starts)
    useful = sum(step.seconds for step in history.steps)
    stopped = sum(end - begin for begin, end in stops(history))
    replayed = sum(end - begin for begin, end in thrown_away(history))
    replayed = min(replayed, max(0.0, span - useful - stopped))
    return Totals(
        useful_seconds=useful,
        replayed_seconds=replayed,
        idle_seconds=max(0.0, span - useful - replayed - stopped),
        stopped_seconds=stopped,
        tokens=sum(step.tokens for step in history.steps),
        steps=len(history.steps),
        steps_lost=sum(int(event.fields.get("steps_lost", 0)) for event in history.of(*STARTS)),
        workers_lost=sum(max(1, len(event.fields.get("ranks", ()))) for event in history.of("worker_lost")),
        resizes=len(history.of("resized")),
        notices=len(history.of("preemption_notice")),
        checkpoints=len({event.step for event in history.of("checkpoint_committed")}),
    )


def stops(history: History) -> list[tuple[float, float]]:
    """Spans of time, first to last, in which no driver was running: before each start that continues no attempt."""
    found = []
    for start in history.of(*STARTS):
        began = start.at - _number(start.fields.get("seconds", 0))
        before = [event.at for event in history.events if event.at < began]
        before += [step.at for step in history.steps if step.at < began]
        if before and "since_loss_seconds" not in start.fields:
            found.append((max(before), began))
    return found


def thrown_away(history: History) -> list[tuple[float, float]]:
    """Spans of time whose steps were lost and trained again.

    The lost lines were replaced by their replay, so a span runs from the last step that still stands, or the start
    before it, to the moment the loss was seen; where nobody saw it, it is as long as so many steps usually take.
    """
    found = []
    pace = sorted(step.seconds for step in history.steps)
    for start in history.of(*STARTS):
        lost = int(start.fields.get("steps_lost", 0))
        stands = [step.at for step in history.steps if step.step <= start.step and step.at < start.at]
        stands += [event.at for event in history.of(*STARTS) if event.at < start.at]
        if not lost or not stands:
            continue
        seen = [event.at for event in history.of("worker_lost") if max(stands) < event.at < start.at]
        usual = lost * pace[len(pace) // 2] if pace else 0.0
        found.append((max(stands), min(seen[-1] if seen else max(stands) + usual, start.at)))
    return found


def describe(kind: str, fields: Mapping[str, Any]) -> str:
    """One event in words; `fields` is its line."""
    step = fields.get("step", 0)
    workers = f"{fields['workers']} worker{'s' if fields['workers'] != 1 else ''}" if "workers" in fields else "workers"
    took = f" after {duration(_number(fields['seconds']))}" if "seconds" in fields else ""
    match kind:
        case "started" | "resumed":
            lost = int(fields.get("steps_lost", 0))
            replay = f", {lost} step{'s' if lost != 1 else ''} to train again" if lost else ""
            if kind == "started":
                return f"started with {workers}{took}{replay}"
            return f"resumed at step {step} with {workers}{took}{replay or ', no step lost'}"
        case "worker_lost":
            ranks = fields.get("ranks", [])
            who = f"rank {', '.join(map(str, ranks))} " if ranks else "a worker "
            return f"lost {who}at step {step}; last checkpoint: step {fields.get('last_committed', 'none')}"
        case "resized":
            return f"resized from {fields.get('workers_before', '?')} to {workers} at step {step}"
        case "preemption_notice":
            grace = fields.get("grace_seconds")
            within = f", {duration(_number(grace))} left" if grace is not None else ""
            return f"notice at step {step}: a node will be reclaimed{within}; saving"
        case "growth_possible":
            return f"room for more workers at step {step}: saving, then growing"
        case "stop_asked":
            return f"asked to stop at step {step}: saving"
        case "checkpoint_committed":
            written = f", {size(_number(fields['bytes']))}" if "bytes" in fields else ""
            spent = f" in {duration(_number(fields['seconds']))}" if "seconds" in fields else ""
            return f"checkpoint of step {step} committed{spent}{written}"
        case "checkpoint_failed":
            return f"checkpoint of step {step} failed: {fields.get('message', 'no reason given')}"
        case "evaluated":
            return f"held-out loss {_number(fields.get('held_out_loss')):.4f} at step {step}"
        case "bad_loss":
            return f"step {step}: loss {fields.get('loss', 'not finite')}, update skipped"
        case "failed":
            return f"failed at step {step}: {fields.get('message', '')}"
        case "finished":
            return f"finished at step {step}"
    return f"{kind.replace('_', ' ')} at step {step}"


def _step(line: Mapping[str, Any]) -> Step:
    return Step(
        step=line["step"],
        at=_seconds(line["time"]),
        loss=_number(line.get("loss")),
        lr=_number(line.get("lr")),
        tokens=int(_number(line.get("tokens", 0))),
        tokens_per_second=_number(line.get("tokens_per_second")),
        seconds=_number(line.get("step_seconds", 0)),
        workers=int(_number(line.get("workers", 0))),
    )


def _event(line: Mapping[str, Any]) -> Event:
    step = line.get("step")
    return Event(str(line.get("event", "event")), _seconds(line["time"]), step if isinstance(step, int) else 0, line)


def _lines(file: StoragePath) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    texts = file.read_text().splitlines()
    found = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(texts):
                break
            raise DataError(f"{file.url}:{number}: not a JSON line", hint="remove that line") from error
        if isinstance(line, dict):
            found.append(line)
    return found


def _planned(run: StoragePath) -> int | None:
    """How many steps the run was to have, as its run.yaml says; None when that cannot be told."""
    from raylm.config.load import parse_job

    file = RunFolder(run).settings
    if not file.exists():
        return None
    try:
        return parse_job(file.read_text(), origin=file.url).train.steps
    except ConfigError:
        return None  # written by another version of raylm; the history is readable all the same


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _number(value: Any) -> float:
    """The value as a float; NaN for what is none (a NaN or infinite loss may stand as text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]
