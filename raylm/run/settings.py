"""The settings of a run, key by key, and those that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylm.config.job import Job


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every setting by its dotted key; entries of a list by number, as `--set` names them."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def settings_of(job: Job) -> dict[str, Any]:
    """Every setting of a job by its dotted key."""
    return flat(job.model_dump(mode="json"))


def not_default(job: Job) -> dict[str, Any]:
    """The settings of a job that are not what they are where a job file says nothing."""
    usual = settings_of(Job())
    return {key: value for key, value in settings_of(job).items() if key not in usual or usual[key] != value}


def shown(value: Any) -> str:
    """A setting's value in words, as a job file has it."""
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
