"""What a job that goes on with a run changes of its settings, to be told and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from raylm.config.job import Job
from raylm.errors import RaylmError
from raylm.run.events import SettingsChanged
from raylm.run.folder import RunFolder
from raylm.run.settings import flat, settings_of, shown
from raylm.train.schedule import learning_rate

# How the run is reached, and how its data was made: a moved folder is the same run, and what data holds is compared.
_OTHERS = ("name", "storage", "prepare.")


def changes_since(run: RunFolder, job: Job, step: int) -> SettingsChanged | None:
    """What a job that goes on from `step` changes of the settings in its run folder, None for nothing.

    Settings that are lost, or cannot be read any more, are compared with nothing.
    """
    try:
        before = yaml.safe_load(run.settings.read_text()) if run.has_trained() else None
    except (RaylmError, yaml.YAMLError):
        return None
    if not isinstance(before, Mapping):
        return None
    then, now = flat(before), settings_of(job)
    keys = [key for key in [*now, *sorted(then.keys() - now.keys())] if then.get(key) != now.get(key)]
    changes = [f"{key}: {shown(then.get(key))} -> {shown(now.get(key))}" for key in keys if not key.startswith(_OTHERS)]
    return SettingsChanged(changes=changes, note=_of_rate(then, job, step)) if changes else None


def _of_rate(then: Mapping[str, Any], job: Job, step: int) -> str:
    """That the learning rate does not go on where it was, in words: more steps stretch its schedule."""
    total = then.get("train.steps")
    if not step or not isinstance(total, int) or total == job.train.steps:
        return ""
    before = learning_rate(job.optim, step=min(step, total) - 1, total_steps=total)
    now = learning_rate(job.optim, step=step, total_steps=job.train.steps)
    expected = abs(before - learning_rate(job.optim, step=min(step, total - 1), total_steps=total))
    if abs(now - before) <= max(0.01 * before, 2 * expected):
        return ""
    return f"the learning rate goes from {before:.3g} to {now:.3g}: its schedule is for {job.train.steps:,} steps now"
