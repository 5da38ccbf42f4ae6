"""Where a new run gets its weights: the section `init_from`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl


class InitFromSettings(Settings):
    """Another run's state to start from; the new run counts its own steps, from 0."""

    path: PathOrUrl | None = Field(
        None, description="A run folder (its newest checkpoint), a checkpoint, or an export. It is not changed."
    )
    optimizer: bool = Field(False, description="Take the optimizer's moments and step count too.")

    @model_validator(mode="after")
    def _moments_of_something(self) -> Self:
        if self.optimizer and self.path is None:
            raise ValueError("optimizer=true needs a path to take the optimizer's state from")
        return self
