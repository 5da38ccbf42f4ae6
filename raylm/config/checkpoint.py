"""When state is saved and what is kept: the section `checkpoint`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raylm.config.base import Settings


class CheckpointSettings(Settings):
    """When state is saved and what is kept."""

    every_steps: int | None = Field(None, ge=1, description="Save every so many steps.")
    every_seconds: float | None = Field(
        None,
        gt=0,
        description="Save every so many seconds; where neither is set, Young and Daly's formula decides.",
    )
    asynchronous: bool = Field(
        True, description="Upload while training goes on; only the copy that is uploaded stalls it."
    )
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_best: int = Field(0, ge=0, description="Checkpoints kept besides for the lowest held-out loss.")
    mean_time_between_failures_seconds: float = Field(
        3600.0, gt=0, description="First guess in Young and Daly's formula, until failures have been seen."
    )

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_steps and self.every_seconds:
            raise ValueError("give every_steps or every_seconds, not both")
        return self
