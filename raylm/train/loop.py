"""Batches in, a report after each optimizer step out: the page that everyone reads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from raylm.config.optim import OptimSettings, TrainSettings
from raylm.errors import TrainingError
from raylm.model.loss import target_tokens
from raylm.records import Batch, StepReport
from raylm.train.group import Group
from raylm.train.schedule import learning_rate

if TYPE_CHECKING:
    from raylm.train.engine import Engine


def steps(
    engine: Engine, batches: Iterable[Batch], *, group: Group, optim: OptimSettings, train: TrainSettings
) -> Iterator[StepReport]:
    """Yield a StepReport after each optimizer step until `train.steps` are done; collective over the group."""
    skipped_in_a_row = 0
    began = time.perf_counter()  # a step's seconds hold its wait for data, not what the caller does between steps
    for batch in batches:
        if batch.step >= train.steps:
            return
        mine = sum(target_tokens(micro.labels) for micro in batch.micro_batches)
        # Gradients are divided by the whole batch's tokens, which no rank knows alone.
        tokens = int(group.all_reduce_sum([mine])[0])
        lr = learning_rate(optim, step=batch.step, total_steps=train.steps)
        result = engine.step(
            batch.micro_batches, step=batch.step, seed=train.seed, global_tokens=tokens, lr=lr, skip_bad=True
        )
        loss = result.loss_sum / max(1, tokens)
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        if result.skipped and (train.bad_loss == "stop" or skipped_in_a_row > train.max_skips):
            raise TrainingError(
                f"step {batch.step + 1} gave loss {loss} and gradient norm {result.grad_norm}"
                + (f", the {skipped_in_a_row}th bad step in a row" if skipped_in_a_row > 1 else ""),
                hint="nothing was updated or saved since; lower optim.lr, check the data, "
                "or set train.bad_loss=skip to leave such steps out",
            )
        yield StepReport(
            step=batch.step + 1,
            loss=loss,
            lr=lr,
            grad_norm=result.grad_norm,
            tokens=tokens,
            seconds=time.perf_counter() - began,
            skipped=result.skipped,
        )
        began = time.perf_counter()
