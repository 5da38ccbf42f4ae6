"""The workers and what each needs: the section `workers`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings


class WorkerSettings(Settings):
    """The workers and what each needs."""

    min: int = Field(1, ge=1, description="Fewest workers that train.")
    max: int = Field(1, ge=1, description="Most workers that train.")
    gpu: bool | None = Field(None, description="One GPU per worker; when not set, if the cluster has any.")
    cpus: float = Field(1.0, gt=0, description="CPUs reserved per worker.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Further Ray resources per worker."
    )
    threads: int | None = Field(None, ge=1, description="Torch CPU threads per worker; its CPUs when not set.")
    grow_check_seconds: float = Field(
        10.0, gt=0, description="Seconds between two looks whether a larger group is possible."
    )
    max_failures: int = Field(
        3, ge=0, description="Failures in a row, without a committed or finished step between them, that end the run."
    )
    collective_timeout_seconds: float = Field(
        120.0, gt=0, description="A peer that is silent for so many seconds counts as lost."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self
