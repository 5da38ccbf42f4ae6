"""The held-out loss of each source of a mixture, which is what its weights are steered by."""

from __future__ import annotations

from html import escape

from raylm.report.charts import Axis, Series, chart, grouped
from raylm.run.events import Evaluated
from raylm.run.history import History

# More sources than this share the styles of lines.
STYLES = 6


def held_out_by_source(history: History, axis: Axis) -> str:
    """A chart over steps and a row for each source, nothing where the run has one source or was never evaluated."""
    told = [event for event in history.held_out if event.by_source]
    names = sorted({name for event in told for name in event.by_source})
    if not names:
        return ""
    lines = [
        Series(
            (grouped([(float(event.step), event.by_source[name]) for event in told if name in event.by_source]),), style
        )
        for name, style in zip(names, _styles(len(names)), strict=True)
    ]
    drawn = chart(title="held-out loss by source", axis=axis, series=lines, marks=(), label=lambda value: f"{value:g}")
    rows = "".join(
        f'<tr><td><i class="swatch {style.partition(" ")[2]}"></i>{escape(name)}</td>{_figures(name, told)}</tr>'
        for name, style in zip(names, _styles(len(names)), strict=True)
    )
    head = "<tr><th>source</th>" + "".join(
        f'<th class="n">{head}</th>' for head in ("first", "best", "at step", "last")
    )
    return f'<section class="sources"><h2>Sources</h2>{drawn}<table class="grid">{head}</tr>{rows}</table></section>'


def _figures(name: str, told: list[Evaluated]) -> str:
    losses = [(event.by_source[name], event.step) for event in told if name in event.by_source]
    best, step = min(losses)
    cells = (f"{losses[0][0]:.4f}", f"{best:.4f}", f"{step:,}", f"{losses[-1][0]:.4f}")
    return "".join(f'<td class="n">{cell}</td>' for cell in cells)


def _styles(count: int) -> list[str]:
    return [f"line source-{number % STYLES}" for number in range(count)]
