"""Batches in, each with a report of its optimizer step out: the page that everyone reads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from raylm.config.optim import OptimSettings, TrainSettings
from raylm.errors import TrainingError
from raylm.records import Batch, StepReport
from raylm.train.schedule import learning_rate

if TYPE_CHECKING:
    from raylm.train.engine import Engine


def steps(
    engine: Engine, batches: Iterable[Batch], *, optim: OptimSettings, train: TrainSettings
) -> Iterator[tuple[Batch, StepReport]]:
    """Yield each batch with its step's report until `train.steps` are done; collective over the engine's group."""
    objective = engine.objective
    skipped_in_a_row = 0
    began = time.perf_counter()  # a step's seconds hold its wait for data, not what the caller does between steps
    for batch in batches:
        waited = time.perf_counter() - began
        if batch.step >= train.steps:
            return
        own_weight = sum(objective.weight(micro) for micro in batch.micro_batches)
        own_tokens = sum(objective.tokens(micro) for micro in batch.micro_batches)
        # Gradients are divided by the whole batch's weight, which no rank knows alone.
        weight, tokens = engine.group.all_reduce_sum([own_weight, own_tokens])
        lr = learning_rate(optim, step=batch.step, total_steps=train.steps)
        result = engine.step(batch.micro_batches, step=batch.step, seed=train.seed, global_weight=weight, lr=lr)
        divisor = weight if weight > 0 else 1.0
        loss = result.loss_sum / divisor
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        if result.skipped and (train.bad_loss == "stop" or skipped_in_a_row > train.max_skips):
            raise TrainingError(
                f"step {batch.step + 1} gave loss {loss} and gradient norm {result.grad_norm}"
                + (f"; bad steps in a row: {skipped_in_a_row}" if skipped_in_a_row > 1 else ""),
                hint="nothing was updated or saved since; check the data, set train.bad_loss=skip to leave such steps "
                "out, or go on under another name with init_from and a lower optim.lr",
            )
        yield (
            batch,
            StepReport(
                step=batch.step + 1,
                loss=loss,
                lr=lr,
                grad_norm=result.grad_norm,
                tokens=int(tokens),
                seconds=time.perf_counter() - began,
                skipped=result.skipped,
                metrics={name: value / divisor for name, value in result.metrics.items()},
                waiting_seconds=waited,
                computing_seconds=engine.probe.seconds(),
            ),
        )
        began = time.perf_counter()
