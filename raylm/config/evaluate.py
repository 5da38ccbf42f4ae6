"""Held-out loss during training: the section `evaluate`."""

from __future__ import annotations

from pydantic import Field

from raylm.config.base import Settings


class EvaluateSettings(Settings):
    """Held-out loss during training."""

    every_steps: int | None = Field(None, ge=1, description="Evaluate every so many steps; not at all when not set.")
    sequences: int = Field(64, ge=1, description="Held-out sequences, the same at any number of workers.")
