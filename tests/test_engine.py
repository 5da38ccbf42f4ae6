"""The engine: the same losses at any number of ranks and any ZeRO stage, and nothing changed by a bad loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ranks import Ranks, ranks

from raylm.config.schema import ModelSettings, OptimSettings, ZeroSettings
from raylm.records import MicroBatch
from raylm.train.group import Group

VOCABULARY, LENGTH, LANES, MICRO, STEPS = 96, 16, 6, 2, 5
INLINE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(4) as processes:
        yield processes


def micro_batch(step: int, lane: int) -> MicroBatch:
    """A micro-batch that is a function of step and lane alone; lanes have unequal numbers of targets."""
    numbers = np.random.default_rng([step, lane])
    tokens = numbers.integers(0, 8, (MICRO, LENGTH))  # few of the words, so that there is something to learn
    labels = tokens.copy()
    labels[:, LENGTH - 2 * lane :] = -100
    starts = tuple(np.array([0, 5 + row], dtype=np.int32) for row in range(MICRO))
    return MicroBatch(lane, tokens, labels, starts, np.zeros(MICRO, np.int64), np.zeros(MICRO, np.int64))


def targets(step: int) -> int:
    return sum(int((micro_batch(step, lane).labels[:, 1:] != -100).sum()) for lane in range(LANES))


def build(
    group: Group,
    *,
    stage: int = 1,
    offload: bool = False,
    seed: int = 1,
    frozen: bool = False,
    clip: float = 0.5,
    loss: Any = None,
    config: dict[str, Any] | None = None,
    **model: Any,
) -> Any:
    """An engine on a small model; `frozen` freezes some of it and gives it buffers."""
    import torch

    from raylm.model.build import build_model
    from raylm.train.engine import Engine

    settings = ModelSettings(config=INLINE | (config or {}), **({"dtype": "fp32"} | model))
    module = build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=seed)
    if frozen:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("layers.0.mlp" not in name and "layers.1.input_layernorm" not in name)
        module.register_buffer("table", torch.arange(7.0) * seed)
        module.get_submodule("model").register_buffer("count", torch.tensor(seed))
    return Engine.build(
        module,
        group,
        zero=ZeroSettings(stage=stage, offload_optimizer=offload),
        optim=OptimSettings(lr=0.01, clip=clip),
        model_settings=settings,
        micro=MICRO,
        accumulation=-(-LANES // group.size),
        **({"loss": loss} if loss else {}),
    )


def take(engine: Any, step: int, *, skip_bad: bool = False, lanes: int = LANES) -> Any:
    group = engine.group
    mine = [micro_batch(step, lane) for lane in range(group.rank, lanes, group.size)]
    return engine.step(mine, step=step, seed=3, global_tokens=targets(step), lr=0.01, skip_bad=skip_bad)


def curve(group: Group, cases: list[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    """Loss a token and gradient norm of each step, for each case, on one group after another."""
    results = []
    for case in cases:
        engine = build(group, **case)
        steps = [take(engine, step) for step in range(STEPS)]
        results.append([(s.loss_sum / targets(i), s.grad_norm) for i, s in enumerate(steps)])
        engine.destroy()
    return results


STAGES = [{"stage": stage} for stage in (0, 1, 2, 3)]


def test_losses_and_norms_do_not_depend_on_ranks_or_stage(pool: Ranks) -> None:
    expected = np.array(pool.run(curve, 1, [{"stage": 0}])[0][0])
    assert expected[-1, 0] < expected[0, 0] - 0.1
    for size in (1, 2, 3):
        for measured in pool.run(curve, size, STAGES):
            np.testing.assert_allclose(np.array(measured), np.broadcast_to(expected, (4, STEPS, 2)), atol=1e-5)
