"""A checkpoint saved at one size and ZeRO stage goes on at any other: storage in between, nothing converted.

Frozen weights, tied embeddings and buffers are in every case. In the default run each stage is left and reached once
at each size and in both types; the sweep has every pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import LANES, build, micro_batch, take, targets

from raylm.testing.ranks import Ranks, ranks
from raylm.train.group import Group

STAGES = (0, 1, 2, 3)
SAVED_AT, END = 3, 7
Saved = Callable[[int, str], tuple[str, list[float], float]]
Case = tuple[str, int, str, str]  # checkpoints, stage, dtype, a kind of state to leave out
FRESH_SEED = 21  # of the engine that is filled: what is not restored shows
EVERYTHING: dict[str, Any] = {
    "frozen": True,
    # Wide initial weights, so that the frozen ones matter to the loss.
    "config": {"tie_word_embeddings": True, "attention_dropout": 0.1, "initializer_range": 0.1},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(3) as processes:
        yield processes


def losses(engine: Any, first: int) -> list[float]:
    return [take(engine, step).loss_sum / targets(step) for step in range(first, END)]


def train_and_save(group: Group, url: str, stage: int, dtype: str) -> tuple[list[float], float]:
    """Train, save in the middle, and go on undisturbed; the losses since, and one without dropout at the save."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.save import SaveRequest, begin_save
    from raylm.checkpoint.state import tied_names
    from raylm.storage import StoragePath
    from raylm.testing.checkpoints import run_state

    engine = build(group, stage=stage, dtype=dtype, **EVERYTHING)
    for step in range(SAVED_AT):
        take(engine, step)
    pending = begin_save(
        SaveRequest(
            StoragePath(url),
            run_state(SAVED_AT, tied=tied_names(engine.model)),
            fence=1,
            rank=group.rank,
            world_size=group.size,
            scalars=zero_state.scalars(engine.raw),
        ),
        zero_state.state_to_save(engine.raw),
    )
    assert LANES % group.size == 0
    lanes = ((micro_batch(SAVED_AT, lane), True, 0) for lane in range(group.rank, LANES, group.size))
    (held_out,) = engine.evaluate(lanes)
    rest = losses(engine, SAVED_AT)  # while the save is on its way
    assert pending.wait(60).committed == (group.rank == 0)
    engine.destroy()
    return rest, held_out.loss_sum / held_out.tokens


def resume(group: Group, cases: list[Case]) -> list[list[float]]:
    """For each case a new engine filled from storage, and its losses."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.restore import fill, newest, open_checkpoint
    from raylm.storage import StoragePath

    results = []
    for url, stage, dtype, forget in cases:
        engine = build(group, stage=stage, dtype=dtype, seed=FRESH_SEED, **EVERYTHING)
        found = newest(StoragePath(url))
        assert found is not None
        assert found.step == SAVED_AT
        fill(open_checkpoint(found), [pair for pair in zero_state.state_to_fill(engine.raw) if pair[0].kind != forget])
        zero_state.after_fill(engine.raw, found.scalars)
        buffers = dict(engine.model.named_buffers())
        assert buffers["table"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0] or forget == "buffer"
        assert buffers["model.count"].item() == 1 or forget == "buffer"
        results.append(losses(engine, SAVED_AT))
        engine.destroy()
    return results


@pytest.fixture(scope="module")
def saved(pool: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """By stage and type, checkpoints saved at two workers and the losses of the run that went on; made when asked."""

    @functools.cache
    def run(stage: int, dtype: str) -> tuple[str, list[float], float]:
        url = str(tmp_path_factory.mktemp(f"{dtype}-{stage}"))
        return (url, *pool.run(train_and_save, 2, url, stage, dtype, seconds=300)[0])

    return run


def check(
    pool: Ranks,
    saved: Saved,
    size: int,
    dtype: str,
    pairs: list[tuple[int, int]],
) -> None:
    """The first loss is the uninterrupted run's; the following ones too, as far as the type allows."""
    cases = [(saved(source, dtype)[0], target, dtype, "") for source, target in pairs]
    measured = np.array(pool.run(resume, size, cases, seconds=300)[0])
    expected = np.array([saved(source, dtype)[1] for source, _ in pairs])
    np.testing.assert_allclose(measured[:, 0], expected[:, 0], rtol=0, atol=1e-5, err_msg=str(pairs))
    if dtype == "fp32":
        np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-5, err_msg=str(pairs))
        return
    # Twice what another stage does to an uninterrupted run by itself: the order of sums differs.
    runs = np.array([saved(stage, dtype)[1] for stage in (0, 1, 3)])
    assert float(np.abs(measured - expected).max()) <= 2 * float(np.ptp(runs, axis=0).max())


@pytest.mark.parametrize(
    ("size", "pairs"), [(1, [(0, 3), (3, 1), (1, 2), (2, 0)]), (3, [(3, 0), (0, 2), (2, 1), (1, 3)])]
)
def test_each_stage_is_left_and_reached(pool: Ranks, saved: Saved, size: int, pairs: list[tuple[int, int]]) -> None:
    check(pool, saved, size, "fp32", pairs)


@pytest.mark.parametrize(("size", "pairs"), [(1, [(3, 1)]), (3, [(1, 3), (3, 0)])])
def test_bf16_goes_on_too(pool: Ranks, saved: Saved, size: int, pairs: list[tuple[int, int]]) -> None:
    check(pool, saved, size, "bf16", pairs)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_pair_of_stages(pool: Ranks, saved: Saved, size: int, dtype: str) -> None:
    check(pool, saved, size, dtype, [(source, target) for source in STAGES for target in STAGES])


def test_what_is_not_restored_is_seen(pool: Ranks, saved: Saved) -> None:
    """Negative controls: the comparison above would notice each kind of state that was left out."""
    url, expected, _ = saved(2, "fp32")
    kinds = ("master", "frozen", "exp_avg", "exp_avg_sq")
    for kind, measured in zip(kinds, pool.run(resume, 3, [(url, 1, "fp32", kind) for kind in kinds])[0], strict=True):
        assert float(np.abs(np.array(measured) - np.array(expected)).max()) > 1e-3, kind


def test_the_saved_weights_are_the_models(pool: Ranks, saved: Saved) -> None:
    """A state dict from storage gives, in a plain model, the loss that training had, tied embeddings included."""
    import torch

    from raylm.checkpoint.restore import newest, open_checkpoint, weights
    from raylm.storage import StoragePath

    url, _, expected = saved(3, "bf16")
    found = newest(StoragePath(url))
    assert found is not None
    state = weights(open_checkpoint(found), torch.bfloat16)
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
    assert not [place for place in Path(url).rglob("*") if place.suffix not in ("", ".json", ".safetensors")]
    assert pool.run(first_loss_of, 1, url)[0] == pytest.approx(expected, abs=1e-5)


def first_loss_of(group: Group, url: str) -> float:
    """The next global batch's loss in a model that was never under DeepSpeed."""
    import torch
    from test_engine import INLINE, LENGTH, VOCABULARY

    from raylm.checkpoint.restore import newest, open_checkpoint, weights
    from raylm.config.model import ModelSettings
    from raylm.model.build import build_model
    from raylm.objectives.cross_entropy import next_token_loss
    from raylm.storage import StoragePath

    found = newest(StoragePath(url))
    assert found is not None
    settings = ModelSettings(config=INLINE | {"tie_word_embeddings": True}, dtype="bf16")
    module = build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=FRESH_SEED)
    module.register_buffer("table", torch.zeros(7))
    module.get_submodule("model").register_buffer("count", torch.tensor(0))
    for parameter in module.parameters():  # not the module: rotary frequencies stay in fp32, as under DeepSpeed
        parameter.data = parameter.data.to(torch.bfloat16)
    module.load_state_dict(weights(open_checkpoint(found), torch.bfloat16), strict=True)
    module.eval()
    total = 0.0
    with torch.no_grad():
        for lane in range(LANES):
            batch = micro_batch(SAVED_AT, lane)
            total += float(
                next_token_loss(module, torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels), None)
            )
    return total / targets(SAVED_AT)
