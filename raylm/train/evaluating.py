"""The held-out loss of a run's state: of all sources and of each, and whether it is among the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylm.train.sources import stream_settings

if TYPE_CHECKING:
    from raylm.train.context import ActiveGroup, RunContext


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation gave, the same on every rank. by_source: losses, where there are several sources."""

    loss: float
    tokens: int
    by_source: Mapping[str, float]
    metrics: Mapping[str, float]


def evaluate(context: RunContext, active: ActiveGroup) -> HeldOut | None:
    """The loss over the held-out sequences, the same ones at any number of workers; None where nothing is weighed."""
    from raylm.stream.held_out import held_out

    job, member, datasets = context.job, active.member, context.datasets
    dealt = held_out(
        datasets,
        stream_settings(job),
        rank=member.rank,
        world_size=member.size,
        sequences=job.evaluate.sequences,
    )
    sums = active.engine.evaluate(dealt, sources=len(datasets))
    weight = sum(one.weight for one in sums)
    if weight <= 0:
        return None
    names = names_of([dataset.folder.url for dataset in datasets])
    by_source = {name: one.loss_sum / one.weight for name, one in zip(names, sums, strict=True) if one.weight > 0}
    metrics = {name: sum(one.metrics[name] for one in sums) / weight for name in sums[0].metrics}
    return HeldOut(
        loss=sum(one.loss_sum for one in sums) / weight,
        tokens=sum(one.tokens for one in sums),
        by_source=by_source if len(datasets) > 1 else {},
        metrics=metrics,
    )


def names_of(urls: list[str]) -> list[str]:
    """The shortest ends of these URLs that tell them apart."""
    parts = [url.rstrip("/").split("/") for url in urls]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{url} ({number})" for number, url in enumerate(urls, 1)]


def is_among_best(context: RunContext, active: ActiveGroup, loss: float) -> bool:
    """Whether a loss is among the best of which checkpoints are kept, so that its state is saved now. Collective.

    A newcomer has not seen the evaluations before it: what any rank knows counts.
    """
    import torch

    count = context.job.checkpoint.keep_best
    if not count:
        return False
    known = torch.tensor([*sorted(context.best), *[math.inf] * count][:count], dtype=torch.float64)
    before = sorted({float(value) for one in active.group.all_gather(known) for value in one if value < math.inf})
    context.best = sorted({*before, loss})[:count]
    return loss in context.best
