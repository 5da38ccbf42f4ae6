"""Where a run's time went, as one bar and a table."""

from __future__ import annotations

from html import escape

from raylm.humanize import duration
from raylm.run.totals import Totals

WORDS = {
    "useful": "steps that count",
    "replayed": "finished steps that a loss threw away; they were trained again",
    "broken-off steps": "the step under way when a group ended, until that was noticed",
    "waiting": "starts: too few workers, and no capacity for more",
    "gather": "starts: members left, workers came, until the next group was named",
    "import": "starts: torch, transformers and DeepSpeed were imported",
    "form": "starts: the process group formed",
    "build": "starts: model and engine were built",
    "state": "starts: the state was taken over from memory or read from a checkpoint",
    "copy": "starts: the first copy of the state went to another worker's memory",
    "rest of starts": "starts: what no phase names; starts that were broken off",
    "copies": "copies of the state to host memory, for which training waited",
    "evaluation": "the held-out loss",
    "saves": "checkpoints, for which training waited",
    "other": "what no line of the log names",
    "stopped": "nothing was running; not part of the bar",
}
# What would read as 0.0s is not shown.
SHOWN_SECONDS = 0.05


def time_bar(total: Totals) -> str:
    """Where the running time went, as one bar and a table; time when nothing ran stands beside it."""
    parts = [("useful", total.useful_seconds), ("replayed", total.replayed_seconds), *total.idle]
    running = sum(seconds for _, seconds in parts) or 1.0
    bars, rows = [], []
    for name, seconds in parts:
        share = f"{100 * seconds / running:.1f} %"
        title = escape(f"{name}: {duration(seconds)}, {share}")
        if seconds < SHOWN_SECONDS and name not in ("useful", "replayed"):
            continue
        rows.append(_row(name, seconds, share))
        if seconds:
            bars.append(f'<i class="{_style(name)}" style="flex-grow:{seconds / running:.6f}" title="{title}"></i>')
    if total.stopped_seconds:
        rows.append(_row("stopped", total.stopped_seconds, ""))
    return (
        f'<section><h2>Where the time went</h2><div class="bar">{"".join(bars)}</div>'
        f'<table class="spent">{"".join(rows)}</table></section>'
    )


def _row(name: str, seconds: float, share: str) -> str:
    what = WORDS.get(name, "starts: a phase that this version does not know")
    return (
        f'<tr><td><i class="swatch {_style(name)}"></i>{escape(name)}</td><td class="n">{duration(seconds)}</td>'
        f'<td class="n">{share}</td><td>{what}</td></tr>'
    )


def _style(name: str) -> str:
    """The class of a part: names from a log are not made into classes."""
    return f"part {name.replace(' ', '-')}" if name in WORDS else "part unknown-phase"
