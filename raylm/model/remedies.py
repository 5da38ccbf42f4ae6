"""Settings that make a job fit its GPUs, found by planning with each of them: what does not help is not advised."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from raylm.config.job import Job
from raylm.config.load import with_overrides
from raylm.model.budget import STAGES, Plan, memory

Changes = dict[str, Any]
MOST_WORKERS = 1024


def remedies(job: Job, made: Plan, workers: int) -> list[Changes]:
    """Changes by key, each of which alone makes a step fit at so many workers; where none does, a few that together do.

    The cheapest first: another ZeRO stage costs messages, recomputing a third more time, offloading far more.
    """
    if fitting := made.fitting(workers):
        return [] if made.stage in fitting else [{"zero.stage": fitting[0]}]
    changes = list(_changes(job))
    more = list(_more_workers(job, made, {}))
    for count in range(1, len(changes) + 1):
        found: dict[tuple[str, ...], Changes] = {}  # of several micro-batches the largest
        for some in itertools.combinations(changes, count):
            together = {key: value for one in some for key, value in one.items()}
            keys = tuple(sorted(together))
            if len(keys) < count or keys in found:
                continue
            stage = _stage(with_overrides(job, together), made, workers)
            if stage is not None:
                found[keys] = {**together, **stage}
        if found:
            return [*found.values(), *more]
    smallest = {key: value for one in changes for key, value in one.items()}
    return more or list(_more_workers(job, made, smallest))


def _changes(job: Job) -> Iterator[Changes]:
    size = job.batch.micro_batch
    if not job.model.activation_checkpointing:
        yield {"model.activation_checkpointing": True}
    yield from ({"batch.micro_batch": less} for less in range(size // 2, 0, -1) if size % less == 0)
    if not job.zero.offload_optimizer:
        yield {"zero.offload_optimizer": True}


def _more_workers(job: Job, made: Plan, changes: Changes) -> Iterator[Changes]:
    """The fewest workers that fit, as far as the global batch feeds them."""
    changed = with_overrides(job, changes) if changes else job
    for workers in range(1, min(changed.batch.lanes, MOST_WORKERS) + 1):
        stage = _stage(changed, made, workers)
        if stage is not None:
            yield {**changes, **stage, "workers.max": max(workers, job.workers.max), "workers.min": workers}
            return


def _stage(job: Job, made: Plan, workers: int) -> Changes | None:
    """The ZeRO stage to set for the job to fit, nothing where it is its own; None where no stage fits."""
    found = (memory(job, made.shape, made.sequence_length, stage, workers) for stage in STAGES)
    fitting = [one.stage for one in found if one.needed_bytes <= made.usable_bytes]
    if not fitting:
        return None
    return {} if made.stage in fitting else {"zero.stage": fitting[0]}
