"""The engine: the same losses at any number of ranks and any ZeRO stage, and nothing changed by a bad loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from raylm.config.model import ModelSettings
from raylm.config.optim import OptimSettings, TrainSettings, ZeroSettings
from raylm.objectives.base import DeviceBatch, LossSums
from raylm.objectives.causal import Causal
from raylm.records import Batch, MicroBatch
from raylm.testing.ranks import Ranks, ranks
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
    loss: Callable[..., Any] | None = None,
    config: dict[str, Any] | None = None,
    **model: Any,
) -> Any:
    """An engine on a small model; `frozen` freezes some of it and gives it buffers."""
    import torch

    from raylm.model.build import build_model
    from raylm.train.engine import Engine, EngineSettings

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
        Loss(loss, settings) if loss else Causal(document_attention=settings.document_attention),
        EngineSettings(
            ZeroSettings(stage=stage, offload_optimizer=offload),
            OptimSettings(lr=0.01, max_grad_norm=clip),
            micro_batch=MICRO,
            accumulation=-(-LANES // group.size),
            bf16=settings.dtype == "bf16",
        ),
    )


class Loss(Causal):
    """Next-token prediction with a loss of a test's own."""

    def __init__(self, loss: Callable[..., Any], settings: ModelSettings) -> None:
        super().__init__(document_attention=settings.document_attention)
        self._loss = loss

    def loss_sums(self, model: Any, batch: DeviceBatch) -> LossSums:
        starts = batch.document_starts if self._document_attention else None
        return LossSums(self._loss(model, batch.tokens, batch.labels, starts))


def take(engine: Any, step: int, *, tokens: int | None = None) -> Any:
    """One step on this rank's lanes of the global batch."""
    group = engine.group
    mine = [micro_batch(step, lane) for lane in range(group.rank, LANES, group.size)]
    return engine.step(mine, step=step, seed=3, global_weight=tokens or targets(step), lr=0.01)


def curve(group: Group, cases: list[dict[str, Any]], tokens_times: int = 1) -> list[list[tuple[float, float]]]:
    """Loss a token and gradient norm of each step, for one engine after another on one group."""
    results = []
    for case in cases:
        engine = build(group, **case)
        steps = [take(engine, step, tokens=tokens_times * targets(step)) for step in range(STEPS)]
        results.append([(s.loss_sum / targets(i), s.grad_norm) for i, s in enumerate(steps)])
        engine.destroy()
    return results


# -- the same at any size and stage --------------------------------------------------------------------------------

FP32 = [*({"stage": stage} for stage in (0, 1, 2, 3)), *({"stage": stage, "offload": True} for stage in (1, 2, 3))]
BF16 = [case | {"dtype": "bf16"} for case in FP32]


def test_losses_and_norms_do_not_depend_on_ranks_stage_or_offload(pool: Ranks) -> None:
    """6 lanes of unequal token counts: 3 divides them and 4 does not, so that some ranks run a zero-weight turn."""
    expected = np.array(pool.run(curve, 1, [{"stage": 0}])[0][0])
    assert expected[-1, 0] < expected[0, 0] - 0.5
    for size in (2, 4):
        for case, measured in zip(FP32, pool.run(curve, size, FP32)[-1], strict=True):
            np.testing.assert_allclose(measured, expected, rtol=0, atol=2e-6, err_msg=f"{size} ranks, {case}")


def test_bf16_keeps_to_fp32_at_any_size_and_stage(pool: Ranks) -> None:
    expected = np.array(pool.run(curve, 1, [{"stage": 0}])[0][0])
    for case, measured in zip(BF16, pool.run(curve, 3, BF16)[-1], strict=True):
        np.testing.assert_allclose(measured, expected, rtol=0.015, atol=0.02, err_msg=str(case))


def mean_of_means(model: Any, tokens: Any, labels: Any, starts: Any) -> Any:
    """The loss that a loop gets which averages each micro-batch for itself."""
    from raylm.objectives.cross_entropy import next_token_loss

    return next_token_loss(model, tokens, labels, starts) / max(1, int((labels[:, 1:] != -100).sum())) * 17


def test_wrong_scales_are_seen(pool: Ranks) -> None:
    """Negative controls: AdamW and clipping both hide a wrong scale from the loss, so that norms are compared too."""
    expected = np.array(pool.run(curve, 1, [{"stage": 1}])[0][0])
    doubled = np.array(pool.run(curve, 2, [{"stage": 1}], 2)[0][0])
    assert np.abs(doubled - expected)[:, 1].min() > 0.1
    unweighted = np.array(pool.run(curve, 2, [{"stage": 1, "loss": mean_of_means}])[0][0])
    assert np.abs(unweighted - expected)[:, 1].min() > 0.005


def test_dropout_depends_on_step_and_lane_and_not_on_ranks(pool: Ranks) -> None:
    plain = np.array(pool.run(curve, 1, [{}])[0][0])
    for case in ({"dropout": 0.3}, {"dropout": 0.3, "activation_checkpointing": True, "stage": 3}):
        alone, two, three = (np.array(pool.run(curve, size, [case])[0][0]) for size in (1, 2, 3))
        assert np.abs(alone - plain).max() > 1e-3
        np.testing.assert_allclose(two, alone, rtol=0, atol=2e-6)
        np.testing.assert_allclose(three, alone, rtol=0, atol=2e-6)


def test_activation_checkpointing_changes_nothing(pool: Ranks) -> None:
    for stage in (1, 3):
        cases = [{"stage": stage}, {"stage": stage, "activation_checkpointing": True}]
        plain, recomputed = pool.run(curve, 2, cases)[0]
        np.testing.assert_allclose(recomputed, plain, rtol=0, atol=1e-6)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_compiled_model_gives_the_same_losses(pool: Ranks) -> None:
    """Needs a C++ compiler and some minutes."""
    for stage in (1, 2, 3):
        plain, compiled = pool.run(curve, 1, [{"stage": stage}, {"stage": stage, "compile": True}], seconds=900)[0]
        np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5)


# -- a loss or gradient that is not finite -------------------------------------------------------------------------

BAD_STEP = 2


def spoiled(kind: str, lane: int = 4) -> Any:
    """A loss that is bad in one lane of step BAD_STEP, and so on one rank only."""
    from raylm.objectives.cross_entropy import next_token_loss

    marked = micro_batch(BAD_STEP, lane).tokens

    def loss(model: Any, tokens: Any, labels: Any, starts: Any) -> Any:
        value = next_token_loss(model, tokens, labels, starts)
        if (labels != -100).any() and np.array_equal(tokens.numpy(), marked):
            if kind == "gradient":
                value.register_hook(lambda gradient: gradient * float("nan"))
            else:
                value = value + float(kind)  # its gradient stays finite
        return value

    return loss


def state_of(engine: Any) -> list[Any]:
    """All state, and the weights as the model sees them."""
    from raylm.checkpoint import zero_state

    weights = [getattr(p, "ds_tensor", p).detach() for p in engine.model.parameters()]
    tensors = [tensor for _, tensor in zero_state.state_to_fill(engine.raw)] + weights
    return [tensor.clone() for tensor in tensors] + [zero_state.scalars(engine.raw)]


def skip(group: Group, kind: str, lane: int, cases: list[dict[str, Any]]) -> list[Any]:
    """For each case: losses and norms of the steps around a bad one, which must leave no trace."""
    results = []
    for case in cases:
        engine = build(group, loss=spoiled(kind, lane), **case)
        good = [take(engine, step) for step in range(BAD_STEP)]
        before = state_of(engine)
        bad = take(engine, BAD_STEP)
        same = all(bool(np.all(np.array(a == b))) for a, b in zip(before, state_of(engine), strict=True))
        good += [take(engine, step) for step in (BAD_STEP + 1, BAD_STEP + 2)]
        engine.destroy()
        engine = build(group, **case)
        untroubled = [take(engine, step) for step in (0, 1, BAD_STEP + 1, BAD_STEP + 2)]
        engine.destroy()
        results.append((bad.skipped, same, good == untroubled, any(s.skipped for s in good)))
    return results


@pytest.mark.parametrize(("kind", "lane"), [("nan", 4), ("inf", 4), ("inf", 0), ("gradient", 4)])
def test_a_bad_step_changes_no_bit_on_any_rank(pool: Ranks, kind: str, lane: int) -> None:
    """Lane 0 comes first of its rank's turns: what it spoils is still there when the last one is done."""
    cases = {"nan": BF16, "inf": FP32, "gradient": FP32[:4]}[kind]
    for results in pool.run(skip, 2, kind, lane, cases):
        for case, result in zip(cases, results, strict=True):
            assert result == (True, True, True, False), case


def stop(group: Group) -> str:
    from raylm.errors import TrainingError
    from raylm.train.loop import steps

    engine = build(group, loss=spoiled("nan"))
    lanes = range(group.rank, LANES, group.size)
    batches = (Batch(step, tuple(micro_batch(step, lane) for lane in lanes)) for step in range(STEPS))
    try:
        for _ in steps(engine, batches, optim=OptimSettings(), train=TrainSettings(steps=STEPS)):
            pass
    except TrainingError as error:
        return f"{error} | {error.hint}"
    finally:
        engine.destroy()
    return "went on"


def test_a_bad_loss_stops_every_rank_with_the_same_words(pool: Ranks) -> None:
    first, second = pool.run(stop, 2)
    assert first == second
    assert first.startswith("step 3 gave loss nan and gradient norm ")
    assert "| nothing was updated or saved since; check the data, set train.bad_loss=skip to leave such steps" in first
    assert first.endswith("or go on under another name with init_from and a lower optim.lr")


# -- evaluation, limits --------------------------------------------------------------------------------------------


def held_out(group: Group, stage: int, batches: int) -> list[Any]:
    """Loss sum and tokens on the same micro-batches, dealt to however many ranks there are."""
    engine = build(group, stage=stage, dropout=0.3)
    before = take(engine, 0)
    mine = [(micro_batch(100, lane), True, lane % 2) for lane in range(group.rank, batches, group.size)]
    others = [(micro_batch(100, 0), False, 0)] * (-(-batches // group.size) - len(mine))
    found = engine.evaluate(iter([*mine, *others]), sources=2)
    after = take(engine, 1)
    assert engine.model.training
    engine.destroy()
    assert all(each.weight == each.tokens for each in found)
    return [*(number for each in found for number in (each.loss_sum, each.tokens)), before.loss_sum, after.loss_sum]


def test_evaluation_is_the_same_at_any_size(pool: Ranks) -> None:
    """Two micro-batches over three ranks: one has none, and must still take part."""
    alone = pool.run(held_out, 1, 1, 2)[0]
    assert alone[1::2][:2] == [int((micro_batch(100, lane).labels[:, 1:] != -100).sum()) for lane in range(2)]
    for stage in (0, 3):
        for result in pool.run(held_out, 3, stage, 2):
            np.testing.assert_allclose(result, alone, rtol=2e-6)


def limits(group: Group) -> list[str]:
    """What is said when an engine is asked for what cannot be."""
    import torch

    from raylm.errors import TrainingError

    engine = build(group)
    before = state_of(engine)
    nothing = engine.step([micro_batch(0, 0)], step=0, seed=0, global_weight=0, lr=1.0)
    assert nothing.skipped is False
    assert all(bool(torch.equal(a, b)) for a, b in zip(before[:-1], state_of(engine)[:-1], strict=True))
    said = []
    for lanes in ([], list(range(LANES + 1))):
        try:
            batches = [micro_batch(0, min(lane, LANES - 1)) for lane in lanes]
            engine.step(batches, step=0, seed=0, global_weight=1, lr=1.0)
        except TrainingError as error:
            said.append(str(error))
    engine.destroy()
    return said


def test_a_plan_that_cannot_be_run_is_an_error(pool: Ranks) -> None:
    assert pool.run(limits, 1)[0] == [
        "rank 0 got 0 micro-batches for 6 turns",
        "rank 0 got 7 micro-batches for 6 turns",
    ]


# -- the group -----------------------------------------------------------------------------------------------------


def alone_at_the_table(rank: int, size: int, address: str) -> str:
    from raylm.train.group import GroupBroken, Rendezvous, form_group

    try:
        form_group(Rendezvous(address, rank=0, size=2, generation=1, timeout_seconds=1))
    except GroupBroken as error:
        return f"{error} | {error.hint}"
    return "formed"


def test_a_group_that_nobody_joins_says_so_in_time(pool: Ranks) -> None:
    said = pool.run_bare(alone_at_the_table, 1, seconds=60)[0]
    assert "rank 0 could not form generation 1 of 2 workers at 127.0.0.1:" in said
    assert "within 1 s" in said
    assert said.endswith("see that every worker started and that workers reach each other on this port")


def reform(rank: int, size: int, address: str, generations: int) -> list[float]:
    from raylm.train.group import Rendezvous, form_group, leave_group, single

    sums = []
    for generation in range(generations):
        group = form_group(Rendezvous(address, rank, size, generation, timeout_seconds=60))
        sums += group.all_reduce_sum([rank + generation, 0.5])
        leave_group(group)
    group = single()
    sums += group.all_reduce_sum([7])
    leave_group(group)
    leave_group(group)  # leaving twice is no error
    return sums


def test_groups_follow_one_another_in_one_process_at_one_address(pool: Ranks) -> None:
    for sums in pool.run_bare(reform, 3, 3):
        assert sums == [3.0, 1.5, 6.0, 1.5, 9.0, 1.5, 7.0]


def test_an_address_must_name_a_port() -> None:
    from raylm.errors import TrainingError
    from raylm.train.group import Rendezvous, form_group

    with pytest.raises(TrainingError, match="must be host:port, not 'nowhere'"):
        form_group(Rendezvous("nowhere", rank=0, size=1, generation=0, timeout_seconds=1))
