"""Where a run's time went, and what it trained: from its history to sums.

What the log tells is laid out as spans of time, layer over layer, and each moment counts once.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylm.run.events import CheckpointCommitted, Evaluated, PreemptionNotice, Resized, WorkerLost
from raylm.run.history import History
from raylm.run.metrics import StepMetrics
from raylm.run.regroups import Regroup, in_order, regroups, seconds_of

Span = tuple[float, float]


@dataclass(frozen=True)
class Totals:
    """Where a run's time went, in seconds, and what it trained.

    useful: steps that count. replayed: steps that a loss threw away. stopped: nothing was running. What remains is
    idle. broken_off: the step under way when a group ended, until that was noticed. starts: by phase, in order.
    unnamed: of starts, what no phase names, such as starts that were broken off. copies, evaluation, saves: for which
    these held training up. All add up to the span from first to last line.
    """

    useful_seconds: float
    replayed_seconds: float
    broken_off_seconds: float
    starts: Mapping[str, float]
    unnamed_seconds: float
    copies_seconds: float
    evaluation_seconds: float
    saves_seconds: float
    other_seconds: float
    stopped_seconds: float
    tokens: int
    steps: int
    steps_lost: int
    workers_lost: int
    resizes: int
    notices: int
    checkpoints: int

    @property
    def idle(self) -> list[tuple[str, float]]:
        """The parts of the idle time and their seconds, in a fixed order."""
        return [
            ("broken-off steps", self.broken_off_seconds),
            *self.starts.items(),
            ("rest of starts", self.unnamed_seconds),
            ("copies", self.copies_seconds),
            ("evaluation", self.evaluation_seconds),
            ("saves", self.saves_seconds),
            ("other", self.other_seconds),
        ]

    @property
    def idle_seconds(self) -> float:
        """All that was neither useful nor replayed while something ran."""
        return math.fsum(seconds for _, seconds in self.idle)

    @property
    def span_seconds(self) -> float:
        """From the first line to the last."""
        return math.fsum([self.useful_seconds, self.replayed_seconds, self.idle_seconds, self.stopped_seconds])


@dataclass(frozen=True)
class StepTime:
    """When a step began and ended, and when the copy behind it had been made."""

    begin: float
    stepped: float
    end: float


def totals(history: History) -> Totals:
    """Divide the run's span into its parts, and count what happened."""
    starts, times = regroups(history), step_times(history)
    by_phase: dict[str, list[Span]] = {}
    for one in starts:
        for name, begin, end in one.spans():
            by_phase.setdefault(name, []).append((begin, end))
    names = in_order(set(by_phase))
    useful, *phases, unnamed, copies, evaluation, saves, replayed, broken_off, stopped, other = divided(
        [
            [(time.begin, time.stepped) for time in times],
            *(by_phase[name] for name in names),
            [(one.began, one.start.at) for one in starts],
            [(time.stepped, time.end) for time in times],
            [(event.at - seconds_of(event.seconds), event.at) for event in history.of(Evaluated)],
            _stalls(history, times),
            thrown_away(history),
            [(stood, one.began) for one, stood in _stood(history) if not one.of_a_driver],
            stops(history),
        ],
        *_span(history, starts),
    )
    return Totals(
        useful_seconds=useful,
        replayed_seconds=replayed,
        broken_off_seconds=broken_off,
        starts=dict(zip(names, phases, strict=True)),
        unnamed_seconds=unnamed,
        copies_seconds=copies,
        evaluation_seconds=evaluation,
        saves_seconds=saves,
        other_seconds=other,
        stopped_seconds=stopped,
        tokens=sum(step.tokens for step in history.steps),
        steps=len(history.steps),
        steps_lost=sum(event.steps_lost or 0 for event in history.starts),
        workers_lost=sum(max(1, len(event.ranks)) for event in history.of(WorkerLost)),
        resizes=len(history.of(Resized)),
        notices=len(history.of(PreemptionNotice)),
        checkpoints=len({event.step for event in history.of(CheckpointCommitted)}),
    )


def divided(layers: Sequence[Sequence[Span]], begin: float, end: float) -> list[float]:
    """Seconds from begin to end that each layer covers, and last those that none does; the first layer counts.

    They add up to end - begin: it is counted in whole microseconds, each once.
    """
    last = _micros(end - begin)
    edges = []
    for layer, spans in enumerate(layers):
        for first, past in spans:
            low, high = max(0, _micros(first - begin)), min(last, _micros(past - begin))
            if low < high:
                edges += [(low, layer, 1), (high, layer, -1)]
    covering, spent, at = [0] * len(layers), [0] * (len(layers) + 1), 0
    for moment, layer, change in sorted(edges):
        if moment > at:
            top = next((index for index, count in enumerate(covering) if count), len(layers))
            spent[top] += moment - at
            at = moment
        covering[layer] += change
    spent[-1] += last - at
    return [one / 1e6 for one in spent]


def step_times(history: History) -> list[StepTime]:
    """When each step happened, as far as the times at which they were recorded tell.

    A line may be recorded late, behind others: a step ends before the next one begins. What survivors told for a rank
    that was lost stands within their regroup, and had ended before it.
    """
    starts = regroups(history)
    ends = [one.start.at for one in starts]
    found: list[StepTime] = []
    following, following_at = math.inf, math.inf
    for step in reversed(history.steps):
        at = end = step.at
        index = bisect_left(ends, at)
        if index < len(starts) and step.step <= starts[index].start.step:
            end = min(end, starts[index].began)
        if at <= following_at:  # else a clock was set back
            end = min(end, following)
        stepped = end - seconds_of(step.copy_seconds)
        found.append(StepTime(stepped - seconds_of(step.step_seconds), stepped, end))
        following, following_at = found[-1].begin, at
    return found[::-1]


def stops(history: History) -> list[Span]:
    """Spans of time, first to last, in which no driver was running: before each first start of a driver."""
    moments = sorted([event.at for event in history.events] + [step.at for step in history.steps])
    found = []
    for one in regroups(history):
        index = bisect_right(moments, one.began)
        if one.of_a_driver and index and moments[index - 1] < one.began:
            found.append((moments[index - 1], one.began))
    return found


def thrown_away(history: History) -> list[Span]:
    """Spans of time whose steps were lost and trained again.

    The lost lines were replaced by their replay, so a span runs from the last step that still stands, or the start
    before it, to the moment the loss was seen; where nobody saw it, it is as long as so many steps usually take.
    """
    found = []
    pace = sorted(step.step_seconds for step in history.steps)
    losses = [event.at for event in history.of(WorkerLost)]
    for one, stood in _stood(history):
        lost = one.start.steps_lost or 0
        if not lost:
            continue
        seen = stood + lost * pace[len(pace) // 2] if pace else stood
        if not one.of_a_driver:
            seen = one.began
        elif (index := bisect_left(losses, one.start.at)) and losses[index - 1] > stood:
            seen = losses[index - 1]
        if seen > stood:
            found.append((stood, min(seen, one.start.at)))
    return found


def _stood(history: History) -> list[tuple[Regroup, float]]:
    """Each start but the first, and when the last that still stood before it had ended: a step, or a start."""
    times, numbers = step_times(history), [step.step for step in history.steps]
    found = []
    starts = regroups(history)
    for before, one in zip([None, *starts], starts, strict=False):
        index = bisect_right(numbers, one.start.step) - 1
        while index >= 0 and times[index].end > one.began:  # trained again later on
            index -= 1
        stood = [times[index].end] if index >= 0 else []
        stood += [before.start.at] if before is not None else []
        if stood:
            found.append((one, max(stood)))
    return found


def _stalls(history: History, times: Sequence[StepTime]) -> list[Span]:
    """When a save held training up: behind the step that it saves, and behind that step's evaluation."""
    ended: dict[int, tuple[StepMetrics, StepTime]] = {
        step.step: (step, time) for step, time in zip(history.steps, times, strict=True)
    }
    evaluated = {event.step: event.at for event in history.of(Evaluated)}
    found = []
    for event in history.of(CheckpointCommitted):
        stall = seconds_of(event.stall_seconds)
        begin = event.at - max(stall, seconds_of(event.seconds))
        if event.step in ended and ended[event.step][0].at <= event.at:
            begin = ended[event.step][1].end
            if begin < evaluated.get(event.step, begin) <= event.at:
                begin = evaluated[event.step]
        found.append((begin, min(begin + stall, event.at)))
    return found


def _span(history: History, starts: Sequence[Regroup]) -> Span:
    """First and last moment; the first line is written when the first start or step is over, which belongs to it."""
    moments = [step.at for step in history.steps] + [event.at for event in history.events]
    began = [one.began for one in starts]
    began += [step.at - seconds_of(step.step_seconds) - seconds_of(step.copy_seconds) for step in history.steps[:1]]
    return min(moments + began), max(moments)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
