"""What is trained on: the section `data`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl


class WeightAt(Settings):
    """From `step` on, this weight."""

    step: int = Field(ge=0, description="Optimizer step from which on the weight holds.")
    weight: float = Field(ge=0, description="Share of the mixture from then on.")


class MixtureEntry(Settings):
    """One folder of shards and its share of the mixture."""

    path: PathOrUrl = Field(description="Folder with manifest.json.")
    weight: float = Field(1.0, gt=0, description="Share of the mixture; weights need not sum to 1.")
    weight_schedule: list[WeightAt] = Field(default_factory=list, description="Other weights from given steps on.")

    def weight_at(self, step: int) -> float:
        """The weight that holds at an optimizer step."""
        begun = [change for change in self.weight_schedule if change.step <= step]
        return max(begun, key=lambda change: change.step).weight if begun else self.weight


class DataSettings(Settings):
    """What is trained on."""

    path: PathOrUrl | None = Field(None, description="Folder of shards; short for a mixture of one.")
    mixture: list[MixtureEntry] = Field(default_factory=list, description="Several folders of shards with weights.")
    reader: Literal["ray", "threads"] = Field(
        "ray", description="Who reads shards after the first steps: Ray Data tasks, or threads in each worker."
    )
    chunk_rows: int = Field(
        256, ge=1, description="Rows read at once, next to each other in a shard; best a multiple of its groups of 64."
    )
    window_chunks: int = Field(
        4,
        ge=1,
        description="Chunks whose rows a lane shuffles together; a worker holds this window and the next per lane.",
    )
    allow_changed: bool = Field(False, description="Resume although the data's fingerprint changed.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.path and self.mixture:
            raise ValueError("give either path or mixture, not both")
        return self

    @model_validator(mode="after")
    def _always_something_to_read(self) -> Self:
        for step in sorted({change.step for entry in self.mixture for change in entry.weight_schedule}):
            if not any(entry.weight_at(step) for entry in self.mixture):
                raise ValueError(
                    f"at step {step} every weight of the mixture is 0; give at least one dataset a weight above 0"
                )
        return self
