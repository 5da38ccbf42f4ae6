"""The settings of a run on its page: those that a job file chose in sight, all others folded away."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from raylm.run.history import History
from raylm.run.settings import not_default, settings_of, shown


def settings_table(history: History) -> str:
    """The run's settings, nothing where they are not known."""
    if history.job is None:
        return ""
    chosen, every = not_default(history.job), settings_of(history.job)
    rest = {key: value for key, value in every.items() if key not in chosen}
    return (
        f"<section><h2>Settings</h2>{_table(chosen)}"
        f"<details><summary>{len(rest)} settings as they are by default</summary>{_table(rest)}</details></section>"
    )


def _table(settings: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{escape(key)}</td><td>{escape(shown(value))}</td></tr>" for key, value in sorted(settings.items())
    )
    return f'<table class="settings">{"".join(rows)}</table>'
