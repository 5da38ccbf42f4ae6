"""When state is saved and what is kept: the section `checkpoint`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raylm.config.base import Settings


class CheckpointSettings(Settings):
    """When state is saved and what is kept."""

    every_steps: int | None = Field(None, ge=1, description="Save every n steps.")
    every_seconds: float | None = Field(None, gt=0, description="Save every n seconds; neither: Young/Daly.")
    asynchronous: bool = Field(True, description="Upload behind the training; only the staging copy stalls it.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_best: int = Field(0, ge=0, description="Checkpoints kept for the lowest held-out loss.")
    mean_time_between_failures_seconds: float = Field(
        3600.0, gt=0, description="Young/Daly's first guess, until failures have been seen."
    )

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_steps and self.every_seconds:
            raise ValueError("give every_steps or every_seconds, not both")
        return self
