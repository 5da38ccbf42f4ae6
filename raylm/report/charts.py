"""Charts as SVG text: series of numbers and marks, drawn twice, over steps and over time.

Pure: every coordinate is computed here, so a page shows its curves without any script.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from raylm.humanize import duration

WIDTH, HEIGHT = 1000, 190
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 22, 24
# More points than this are averaged in groups: a screen has no more columns, and a page must stay small.
MOST_POINTS = 800
# Marks nearer to each other than this, in the picture's units, share a column; so many of them fit into one.
MARK_WIDTH, MOST_MARKS = 11, 9

Number = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A value at an x, with the lowest and highest value that it stands for."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mark:
    """Something that happened at `x`, described by `words`; `kind` is its class on the page."""

    x: float
    kind: str
    words: str


@dataclass(frozen=True)
class Axis:
    """The x axis that every chart of a view shares.

    breaks: points where a stop was cut out, with words. lost: spans whose work was thrown away.
    """

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    breaks: tuple[tuple[float, str], ...] = ()
    lost: tuple[tuple[float, float], ...] = ()

    def pixel(self, x: float) -> float:
        """x in the picture's units."""
        return LEFT + (x - self.low) / ((self.high - self.low) or 1) * (WIDTH - LEFT - RIGHT)


@dataclass(frozen=True)
class Series:
    """A curve: runs of points with gaps between them. `stairs` holds a value until the next; `dots` draws no line."""

    runs: tuple[tuple[Point, ...], ...]
    style: str
    stairs: bool = False
    dots: bool = False
    band: bool = False


def grouped(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """The points, averaged in equal groups when there are more than `most`; what is no number is left out."""
    kept = [(x, value) for x, value in points if math.isfinite(value)]
    each = max(1, math.ceil(len(kept) / most))
    found = []
    for start in range(0, len(kept), each):
        group = kept[start : start + each]
        values = [value for _, value in group]
        found.append(Point(group[-1][0], sum(values) / len(values), min(values), max(values)))
    return tuple(found)


def smoothed(points: Sequence[Point]) -> tuple[Point, ...]:
    """A centred moving average over about a thirtieth of the points; the ends average over fewer."""
    half = max(1, len(points) // 60)
    sums = [0.0, *itertools.accumulate(point.value for point in points)]
    found = []
    for index, point in enumerate(points):
        near = min(half, index, len(points) - 1 - index)
        mean = (sums[index + near + 1] - sums[index - near]) / (2 * near + 1)
        found.append(Point(point.x, mean, mean, mean))
    return tuple(found)


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that divide low to high into about so many parts."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [tick * step for tick in range(first, math.floor(high / step + 1e-9) + 1)]


def step_axis(last: int) -> Axis:
    """The axis of optimizer steps."""
    high = max(1, last)
    ticks = sorted({float(round(tick)) for tick in nice_ticks(0, high, 8)})
    return Axis("step", 0, high, tuple((tick, f"{tick:,.0f}") for tick in ticks))


def time_axis(
    span_seconds: float, breaks: Sequence[tuple[float, float]], lost: Sequence[tuple[float, float]] = ()
) -> Axis:
    """The axis of running time; each break is (where, how long the run was stopped)."""
    high = max(1.0, span_seconds)
    units = ((1, "s"), (60, "min"), (3600, "h"), (86_400, "d"))
    unit, letter = next((u for u in reversed(units) if high >= 3 * u[0]), units[0])
    ticks = tuple((tick * unit, f"{tick:g} {letter}") for tick in nice_ticks(0, high / unit, 8))
    cuts = tuple((x, f"stopped for {duration(long)}") for x, long in breaks)
    return Axis("time", 0, high, ticks, cuts, tuple(lost))


def value_range(series: Sequence[Series], *, from_zero: bool) -> tuple[float, float]:
    """Lowest and highest value shown, with a little room above; a rare spike may leave the picture."""
    values = sorted(
        finite([value for one in series for run in one.runs for point in run for value in (point.low, point.high)])
    )
    if not values:
        return 0.0, 1.0
    low, high = values[0], values[-1]
    # One spike would press the rest flat: cut it where it is very far above all but the highest half per cent.
    usual = values[int(len(values) * 0.995)] if len(values) > 200 else high
    if high > usual + 10 * (usual - low):
        high = usual + (usual - low)
    low = 0.0 if from_zero else low
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if from_zero else low - room), high + room


def chart(
    *,
    title: str,
    axis: Axis,
    series: Sequence[Series],
    marks: Sequence[Mark],
    label: Number,
    from_zero: bool = False,
    whole: bool = False,
) -> str:
    """One chart as an SVG element."""
    low, high = value_range(series, from_zero=from_zero)

    def height(value: float) -> float:
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (inside - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    ticks = [tick for tick in nice_ticks(low, high) if not whole or tick == int(tick)]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over {axis.name}" '
        f'data-axis="{axis.name}" data-chart="{escape(title)}">'
    ]
    parts.append(_lost([(axis.pixel(begin), axis.pixel(end)) for begin, end in axis.lost]))
    parts += [_grid_line(height(tick), label(tick)) for tick in ticks]
    parts += [_tick(axis.pixel(x), words) for x, words in axis.ticks]
    parts += [_break(axis.pixel(x), words) for x, words in axis.breaks]
    parts += _marks(axis, marks)
    parts += [_curve(one, axis, height) for one in series]
    parts.append(f'<text class="title" x="{LEFT}" y="13">{escape(title)}</text>')
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="readout" x="{WIDTH - RIGHT}" y="13"></text></svg>')
    return "".join(parts)


def _grid_line(y: float, words: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick y" x="{LEFT - 8}" y="{y + 4:.1f}">{escape(words)}</text>'
    )


def _tick(x: float, words: str) -> str:
    return f'<text class="tick x" x="{x:.1f}" y="{HEIGHT - 7}">{escape(words)}</text>'


def _lost(spans: Sequence[tuple[float, float]]) -> str:
    """All spans as one shape: a long run has thousands."""
    if not spans:
        return ""
    shapes = "".join(f"M{begin:.1f},{TOP}H{end:.1f}V{HEIGHT - BOTTOM}H{begin:.1f}Z" for begin, end in spans)
    return f'<g class="lost"><path d="{shapes}"/><title>work thrown away by a loss</title></g>'


def _break(x: float, words: str) -> str:
    return (
        f'<g class="break"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f"<title>{escape(words)}</title></g>"
    )


# Each kind has a shape of its own, so that colour is never all that distinguishes them.
_SHAPES = {
    "loss": "M-5,-4 L5,-4 L0,5 Z",
    "notice": "M0,-6 L6,0 L0,6 L-6,0 Z",
    "resize": "M-5,4 L5,4 L0,-5 Z",
    "bad": "M-4,-4 L4,4 M4,-4 L-4,4",
    "slow": "M-5,-2 H5 V2 H-5 Z",
    "checkpoint": "M0,-2.5 A2.5,2.5 0 1 1 0,2.5 A2.5,2.5 0 1 1 0,-2.5 Z",
}


def shape(kind: str) -> str:
    """The mark of this kind as a small SVG of its own, for a legend."""
    return f'<svg class="key" viewBox="-8 -8 16 16"><path class="mark {kind}" d="{_SHAPES[kind]}"/></svg>'


def _marks(axis: Axis, marks: Sequence[Mark]) -> list[str]:
    """Marks from left to right; those that would cover each other stand in a column, or are told in few."""
    drawn: list[str] = []
    foot = -math.inf
    columns: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.x):
        x = axis.pixel(mark.x)
        # Checkpoints are many and good news: a dot at the foot, no line through the curves.
        if mark.kind == "checkpoint":
            if x - foot >= 5:
                drawn.append(_mark(x, HEIGHT - BOTTOM, mark))
                foot = x
        elif columns and x - axis.pixel(columns[-1][0].x) < MARK_WIDTH:
            columns[-1].append(mark)
        else:
            columns.append([mark])
    for column in columns:
        for below, mark in enumerate(column if len(column) <= MOST_MARKS else _in_few(column)):
            x = axis.pixel(mark.x)
            line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            drawn.append(_mark(x, TOP + 13 * below, mark, line))
    return drawn


def _in_few(marks: Sequence[Mark]) -> list[Mark]:
    """The first mark of each kind, where it stands for all of its kind."""
    kinds: dict[str, list[Mark]] = {}
    for mark in marks:
        kinds.setdefault(mark.kind, []).append(mark)
    return [
        Mark(marks[0].x, kind, f"{same[0].words}; and {len(same) - 1} more, up to: {same[-1].words}")
        if len(same) > 1
        else same[0]
        for kind, same in kinds.items()
    ]


def _mark(x: float, y: float, mark: Mark, line: str = "") -> str:
    return (
        f'<g class="marked {mark.kind}">{line}<path class="mark {mark.kind}" d="{_SHAPES[mark.kind]}" '
        f'transform="translate({x:.1f},{y})"/><title>{escape(mark.words)}</title></g>'
    )


def _curve(series: Series, axis: Axis, height: Callable[[float], float]) -> str:
    runs = [[(axis.pixel(point.x), height(point.value)) for point in run] for run in series.runs if run]
    if series.dots:
        circles = (
            f'<circle class="{series.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for run in runs for x, y in run
        )
        return "".join(circles)
    bands = []
    for run in series.runs:
        if series.band and any(point.high > point.low for point in run):
            upper = [f"{axis.pixel(point.x):.1f},{height(point.high):.1f}" for point in run]
            lower = [f"{axis.pixel(point.x):.1f},{height(point.low):.1f}" for point in reversed(run)]
            bands.append(f"M{' '.join(upper + lower)}Z")
    # One element for all runs: a run that regrouped thousands of times has as many.
    lines = "".join(_path(run, stairs=series.stairs) for run in runs)
    drawn = [("band", "".join(bands)), (series.style, lines)]
    return "".join(f'<path class="{style}" d="{shape}"/>' for style, shape in drawn if shape)


def _path(points: Sequence[tuple[float, float]], *, stairs: bool) -> str:
    (x, y), *rest = points
    # A lone point is a line of no length: round caps make it a dot.
    words = [f"M{x:.1f},{y:.1f}"] if rest else [f"M{x:.1f},{y:.1f}h0.01"]
    words += [f"H{x:.1f}V{y:.1f}" if stairs else f"L{x:.1f},{y:.1f}" for x, y in rest]
    return "".join(words)


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]
