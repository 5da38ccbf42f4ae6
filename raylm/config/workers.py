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
    join_interval_seconds: float | None = Field(
        None,
        ge=0,
        description="Least seconds from one regroup to the next for workers that join; when not set, ten times what "
        "the last one cost.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Errors of the program itself, in a row at the same step, that the run survives. Lost nodes never "
        "count.",
    )
    copy_every_steps: int | None = Field(
        None,
        ge=0,
        description="Steps between two copies of a worker's state in the memory of another node; by their cost when "
        "not set, with 0 only where a group begins and ends.",
    )
    silence_seconds: float = Field(
        6.0, gt=0, description="A worker that the hub has not heard for so many seconds counts as lost."
    )
    stall_seconds: float | None = Field(
        300.0,
        gt=0,
        description="A worker that has not finished a step for so many seconds writes down what it is doing, in the "
        "run folder's stacks/; null for never.",
    )
    straggler_ratio: float = Field(
        1.5, gt=1, description="A worker that takes so many times as long as the median of the others counts as slow."
    )
    straggler_seconds: float = Field(
        120.0, gt=0, description="A worker that has been slow for so many seconds is told of."
    )
    replace_stragglers: bool = Field(
        False,
        description="A worker that is told of as slow leaves, and its node is not used again by this run, where enough "
        "workers stay without it.",
    )
    collective_timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="Longest that a group may take to form, and that a live worker may hold up a collective; the dead "
        "are found by silence_seconds.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}: raise max, or lower min")
        return self
