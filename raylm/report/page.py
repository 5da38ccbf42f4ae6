"""A run's `History` as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from statistics import median

from raylm.html import frame, text_of, tiles
from raylm.humanize import count, duration, moment
from raylm.report.by_source import held_out_by_source
from raylm.report.charts import (
    Axis,
    Mark,
    Point,
    Series,
    chart,
    grouped,
    shape,
    smoothed,
    step_axis,
    time_axis,
)
from raylm.report.ledger import ledger
from raylm.report.settings import settings_table
from raylm.report.spent import time_bar
from raylm.run.events import (
    BadLoss,
    CheckpointCommitted,
    Evaluated,
    Event,
    Failed,
    Finished,
    GroupStarted,
    PreemptionNotice,
    Resized,
    ShrinkRequested,
    Stalled,
    Straggler,
    WorkerLost,
)
from raylm.run.folder import RunFolder
from raylm.run.history import History, read_history
from raylm.run.metrics import StepMetrics
from raylm.run.totals import Totals, stops, thrown_away, totals
from raylm.storage import StoragePath

# The shape that marks an event in the charts.
MARKS: dict[type[Event], str] = {
    WorkerLost: "loss",
    PreemptionNotice: "notice",
    ShrinkRequested: "resize",
    Resized: "resize",
    CheckpointCommitted: "checkpoint",
    BadLoss: "bad",
    Failed: "bad",
    Straggler: "slow",
    Stalled: "slow",
}
KINDS = {
    "loss": "worker lost",
    "notice": "notice of reclaim",
    "resize": "resize",
    "checkpoint": "checkpoint committed",
    "bad": "bad loss or failure",
    "slow": "straggler or stall",
}
# The group is gone after these.
ENDS = (WorkerLost, Finished, Failed)
# More events than this are not all listed: a long run commits thousands of checkpoints.
MAX_EVENTS = 400
# More held-out losses than this become a line.
MAX_DOTS = 50


def write_report(run: RunFolder, output: StoragePath | None = None) -> StoragePath:
    """Write the run's history as a page into its folder, or to `output`; returns where the page is."""
    target = output or run.report
    target.write_text(render(read_history(run)))
    return target


def render(history: History) -> str:
    """The page."""
    total = totals(history)
    body = [
        f"<header><h1>{escape(history.name)}</h1><p>{escape(_status(history, total))}</p></header>",
        _tiles(history, total),
        time_bar(total),
        _views(history),
        held_out_by_source(history, step_axis(_last_step(history))),
        ledger(history),
        _event_table(history),
        settings_table(history),
        f"<footer>Written by raylm on {moment(time.time())}</footer>",
    ]
    data = f'<script type="application/json" id="data">{_readouts(history)}</script>'
    script = f"<script>{text_of('raylm.report', 'page.js')}</script>"
    return frame(history.name, body, style=text_of("raylm.report", "page.css"), end=data + script)


def _status(history: History, total: Totals) -> str:
    last = history.steps[-1].step if history.steps else 0
    planned = f" of {history.steps_planned:,}" if history.steps_planned else ""
    moments = [event.at for event in history.events] + [step.at for step in history.steps]
    ended = history.events[-1] if history.events else None
    state = f"{ended.name} " if isinstance(ended, Finished | Failed) else ""
    where = f"{state}at step {last:,}{planned}"
    return f"{where}; {moment(min(moments))} to {moment(max(moments))}, {duration(total.span_seconds)}"


def _tiles(history: History, total: Totals) -> str:
    steps, held_out = history.steps, history.held_out
    sizes = sorted({step.workers for step in steps} | {_size(start) for start in history.starts})
    few_to_many = "-".join(str(size) for size in sorted({*sizes[:1], *sizes[-1:]}))
    usual = sorted(step.tokens_per_second for step in steps)[len(steps) // 2] if steps else math.nan
    rows = [
        ("loss", f"{steps[-1].loss:.4f}" if steps else "-", f"from {steps[0].loss:.4f}" if steps else ""),
        ("held-out loss", f"{held_out[-1].held_out_loss:.4f}" if held_out else "-", _perplexity(held_out)),
        ("tokens", count(total.tokens), f"{total.steps:,} steps"),
        ("tokens per second", count(usual) if steps else "-", "median"),
        ("workers", few_to_many or "-", _resizes(total)),
        ("workers lost", str(total.workers_lost), f"{total.steps_lost:,} steps replayed"),
        ("checkpoints", str(total.checkpoints), f"{total.notices} notice{'s' if total.notices != 1 else ''}"),
    ]
    return tiles(rows)


def _size(start: GroupStarted) -> int:
    """Workers of a group, one where its event does not say."""
    return 1 if start.workers is None else start.workers


def _perplexity(held_out: Sequence[Evaluated]) -> str:
    if not held_out or not held_out[-1].held_out_loss < 20:
        return ""
    return f"perplexity {math.exp(held_out[-1].held_out_loss):.1f}"


def _resizes(total: Totals) -> str:
    return f"{total.resizes} resize{'s' if total.resizes != 1 else ''}"


def _views(history: History) -> str:
    legend = "".join(f"<li>{shape(kind)}{words}</li>" for kind, words in KINDS.items())
    if thrown_away(history):
        legend += '<li><i class="swatch lost"></i>work thrown away, over time</li>'
    if stops(history):
        legend += '<li><i class="cut"></i>stopped time cut out</li>'
    return (
        '<section class="views"><h2>Curves</h2>'
        '<input type="radio" name="axis" id="by-step" checked><label for="by-step">over steps</label>'
        '<input type="radio" name="axis" id="by-time"><label for="by-time">over time</label>'
        f'<ul class="legend">{legend}</ul>'
        f'<div class="view step">{_step_view(history)}</div>'
        f'<div class="view time">{_time_view(history)}</div></section>'
    )


def _step_view(history: History) -> str:
    steps = history.steps
    axis = step_axis(_last_step(history))
    marks = [Mark(event.step, mark, event.describe()) for event, mark in _marked(history)]
    held_out = [(float(event.step), event.held_out_loss) for event in history.held_out]
    xs = [float(step.step) for step in steps]
    return _charts(axis, marks, xs, steps, [range(len(steps))], held_out, _stairs(xs, steps))


def _last_step(history: History) -> int:
    return max([step.step for step in history.steps] + [event.step for event in history.events])


def _time_view(history: History) -> str:
    clock = Running(history)
    steps = history.steps
    axis = time_axis(
        clock.span,
        [(clock(begin), end - begin) for begin, end in clock.stops],
        [(clock(begin), clock(end)) for begin, end in thrown_away(history)],
    )
    marks = [Mark(clock(event.at), mark, event.describe()) for event, mark in _marked(history)]
    held_out = [(clock(event.at), event.held_out_loss) for event in history.held_out]
    xs = [clock(step.at) for step in steps]
    return _charts(axis, marks, xs, steps, _between_starts(history), held_out, _size_in_time(history, clock))


def _marked(history: History) -> list[tuple[Event, str]]:
    """The events that the charts mark, each with its shape."""
    return [(event, MARKS[type(event)]) for event in history.events if type(event) in MARKS]


class Running:
    """Maps a moment to seconds of running time since the run began: spans when nothing ran are cut out."""

    def __init__(self, history: History) -> None:
        self.stops = stops(history)
        moments = [event.at for event in history.events] + [step.at for step in history.steps]
        starts = [start.at - (start.seconds or 0.0) for start in history.starts[:1]]
        self._zero = min(moments + starts)
        self.span = self(max(moments))

    def __call__(self, at: float) -> float:
        """Running seconds at this moment."""
        return at - self._zero - sum(min(at, end) - begin for begin, end in self.stops if at > begin)


def _charts(
    axis: Axis,
    marks: Sequence[Mark],
    xs: Sequence[float],
    steps: Sequence[StepMetrics],
    runs: Sequence[range],
    held_out: Sequence[tuple[float, float]],
    workers: Sequence[Point],
) -> str:
    def curve(values: Sequence[float], style: str, *, band: bool = False) -> Series:
        points = [grouped([(xs[i], values[i]) for i in run]) for run in runs]
        return Series(tuple(run for run in points if run), style, band=band)

    loss = curve([step.loss for step in steps], "line loss", band=True)
    shown = [loss]
    if len(steps) > 100:
        shown = [
            Series(loss.runs, "line raw", band=True),
            Series(tuple(smoothed(run) for run in loss.runs), "line loss"),
        ]
    if held_out:
        few = len(held_out) <= MAX_DOTS
        shown.append(Series((grouped(held_out),), "dot held-out" if few else "line held-out", dots=few))
    norm = curve([step.grad_norm for step in steps], "line norm", band=True)
    lr = curve([step.lr for step in steps], "line lr")
    throughput = curve([step.tokens_per_second for step in steps], "line throughput", band=True)
    size = Series((tuple(workers),), "line workers", stairs=True)
    by_rank = _by_rank(xs, steps)
    ranks = chart(
        title="seconds a step by itself: median of the ranks, slowest (dashed)",
        axis=axis,
        series=by_rank,
        marks=marks,
        label=_short,
        from_zero=True,
    )
    title = "loss" if not held_out else f"loss, held-out loss ({'dots' if len(held_out) <= MAX_DOTS else 'dashed'})"
    return "".join(
        [
            chart(title=title, axis=axis, series=shown, marks=marks, label=lambda v: f"{v:g}"),
            chart(title="gradient norm", axis=axis, series=[norm], marks=marks, label=_short, from_zero=True),
            chart(title="learning rate", axis=axis, series=[lr], marks=marks, label=_short, from_zero=True),
            chart(title="tokens per second", axis=axis, series=[throughput], marks=marks, label=count, from_zero=True),
            chart(
                title="workers",
                axis=axis,
                series=[size],
                marks=marks,
                label=lambda v: f"{v:.0f}",
                from_zero=True,
                whole=True,
            ),
            *([ranks] if by_rank[0].runs[0] else []),
        ]
    )


def _by_rank(xs: Sequence[float], steps: Sequence[StepMetrics]) -> tuple[Series, Series]:
    """What a step would take the slowest rank by itself, and the median of the ranks, where that was measured."""
    told = [(x, step.rank_seconds) for x, step in zip(xs, steps, strict=True) if step.rank_seconds]
    slowest = grouped([(x, max(seconds)) for x, seconds in told])
    usual = grouped([(x, median(seconds)) for x, seconds in told])
    return Series((slowest,), "line held-out"), Series((usual,), "line throughput")


def _stairs(xs: Sequence[float], steps: Sequence[StepMetrics]) -> list[Point]:
    """Worker count over steps: only the corners."""
    corners = []
    for index, step in enumerate(steps):
        if index in (0, len(steps) - 1) or step.workers != steps[index - 1].workers:
            corners.append(_point(xs[index] - 1 if index < len(steps) - 1 else xs[index], step.workers))
    return corners


def _size_in_time(history: History, clock: Running) -> list[Point]:
    """Worker count over time: none between the end of one group and the start of the next, where that can be seen."""
    corners = []
    starts = history.starts
    steps = sorted((step.at, step.workers) for step in history.steps)
    ends = [event.at for event in history.events if isinstance(event, ENDS)]
    for index, start in enumerate(starts):
        until = starts[index + 1].at if index + 1 < len(starts) else math.inf
        mine = steps[bisect_right(steps, (start.at, math.inf)) : bisect_right(steps, (until, math.inf))]
        gone = ends[bisect_right(ends, start.at) : bisect_right(ends, until)]
        workers = start.workers if start.workers is not None else (mine[0][1] if mine else 0)
        ended = gone[0] if gone else (mine[-1][0] if mine else start.at)
        corners.append(_point(clock(start.at), workers))
        if until == math.inf:
            corners.append(_point(clock(ended), 0 if gone else workers))
        elif clock(until) - clock(ended) > clock.span / 1000:  # else the chart of many regroups would be one dark block
            corners.append(_point(clock(ended), 0))
    first = [_point(0.0, 0)] if corners else []
    return first + corners


def _between_starts(history: History) -> list[range]:
    """Indices of the steps that ran without a start between them."""
    starts = [start.at for start in history.starts]
    edges = [0]
    for index in range(1, len(history.steps)):
        before, after = history.steps[index - 1].at, history.steps[index].at
        if bisect_right(starts, before) < bisect_right(starts, after):
            edges.append(index)
    return [range(low, high) for low, high in zip(edges, [*edges[1:], len(history.steps)], strict=True)]


def _point(x: float, value: float) -> Point:
    return Point(x, value, value, value)


def _event_table(history: History) -> str:
    listed = history.events
    if len(listed) > MAX_EVENTS:
        listed = tuple(event for event in listed if not isinstance(event, CheckpointCommitted))[-MAX_EVENTS:]
    rows = [
        f"<tr><td>{moment(event.at)}</td><td>{shape(MARKS[type(event)]) if type(event) in MARKS else ''}</td>"
        f"<td>{escape(event.describe())}</td></tr>"
        for event in listed
    ]
    skipped = len(history.events) - len(listed)
    note = f"<p>{skipped} further events are in the run folder.</p>" if skipped else ""
    return f'<section><h2>Events</h2><table class="events">{"".join(rows)}</table>{note}</section>'


def _readouts(history: History) -> str:
    """What the page's script reads out under the pointer, as JSON that cannot end its script element."""
    clock = Running(history)
    each = max(1, math.ceil(len(history.steps) / 1000))
    rows = [
        [
            step.step,
            round(clock(step.at), 2),
            *(
                float(f"{v:.6g}") if math.isfinite(v) else None
                for v in (step.loss, step.grad_norm, step.lr, step.tokens_per_second)
            ),
            step.workers,
            max(step.rank_seconds or [step.step_seconds]),
        ]
        for step in history.steps[::each]
    ]
    edges = {"step": [0, max(1, _last_step(history))], "time": [0, max(1.0, clock.span)]}
    return json.dumps({"rows": rows, "edges": edges}, separators=(",", ":")).replace("<", "\\u003c")


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
