"""The objective of causal language models: what counts, what it weighs, and that ranks and chunks change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import test_engine
from test_engine import LANES, LENGTH, MICRO, build, micro_batch

from raylm.config.job import Job
from raylm.config.objective import OBJECTIVES
from raylm.errors import ConfigError, TrainingError
from raylm.objectives import ObjectiveKind, objective_of, register_objective
from raylm.objectives.base import on_device
from raylm.objectives.causal import Causal, CausalSettings
from raylm.records import MicroBatch
from raylm.testing.ranks import Ranks, ranks
from raylm.train.group import Group

STEPS = 3


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(3) as processes:
        yield processes


def masked(step: int, lane: int, kind: str) -> MicroBatch:
    """A lane's micro-batch with a mask, or with weights, of which many are 0."""
    made = micro_batch(step, lane)
    numbers = np.random.default_rng([step, lane, 9])
    mask = numbers.integers(0, 2, (MICRO, LENGTH), dtype=np.uint8)
    if kind == "weights":
        mask = mask * numbers.random((MICRO, LENGTH), dtype=np.float32)
    return MicroBatch(lane, made.tokens, made.labels, made.document_starts, made.ids, made.epochs, {"loss_mask": mask})


def logits_of(batch: MicroBatch) -> Any:
    import torch

    generator = torch.Generator().manual_seed(batch.lane)
    return torch.randn(MICRO, LENGTH, test_engine.VOCABULARY, generator=generator, requires_grad=True)


class Fixed:
    """A model of which the scores are known."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def __call__(self, **inputs: Any) -> Fixed:
        return self


@pytest.mark.parametrize("kind", ["mask", "weights"])
def test_the_mask_says_what_is_trained_on_and_what_it_weighs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from raylm.objectives import cross_entropy

    batch = masked(0, 1, kind)
    logits = logits_of(batch)
    counted = (batch.labels[:, 1:] != -100) * batch.columns["loss_mask"][:, 1:].astype(np.float64)
    nats = -torch.log_softmax(logits.double()[:, :-1], -1)
    chosen = nats.gather(-1, torch.from_numpy(batch.labels[:, 1:]).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = (chosen * torch.from_numpy(counted)).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    causal = Causal()
    for elements in (100, 1 << 24):
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", elements)
        loss = causal.loss_sums(Fixed(logits), on_device(batch, "cpu")).loss
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient, rtol=1e-5, atol=1e-7)
    assert causal.weight(batch) == pytest.approx(counted.sum(), rel=1e-6)
    assert causal.tokens(batch) == (counted > 0).sum()
    nothing = causal.without_weight(batch)
    assert (causal.weight(nothing), causal.tokens(nothing)) == (0, 0)
    assert causal.loss_sums(Fixed(logits), on_device(nothing, "cpu")).loss.item() == 0


def test_a_mask_of_ones_changes_no_bit() -> None:
    import torch

    plain = micro_batch(0, 1)
    sums = []
    for dtype in (None, np.uint8, np.float32):
        columns = {} if dtype is None else {"loss_mask": np.ones((MICRO, LENGTH), dtype)}
        batch = MicroBatch(1, plain.tokens, plain.labels, plain.document_starts, plain.ids, plain.epochs, columns)
        logits = logits_of(batch)
        loss = Causal().loss_sums(Fixed(logits), on_device(batch, "cpu")).loss
        loss.backward()
        sums.append((loss.detach(), logits.grad, Causal().weight(batch)))
    assert torch.equal(sums[0][0], sums[1][0])
    assert torch.equal(sums[0][1], sums[1][1])
    torch.testing.assert_close(sums[2][0], sums[0][0])
    torch.testing.assert_close(sums[2][1], sums[0][1])
    assert sums[0][2] == sums[1][2] == sums[2][2]


def curve(group: Group, kind: str, stages: list[int]) -> list[list[tuple[float, float]]]:
    """Loss and gradient norm of each step of masked batches."""
    results = []
    for stage in stages:
        engine = build(group, stage=stage)
        found = []
        for step in range(STEPS):
            everything = [masked(step, lane, kind) for lane in range(LANES)]
            weight = sum(engine.objective.weight(batch) for batch in everything)
            mine = everything[group.rank :: group.size]
            result = engine.step(mine, step=step, seed=3, global_weight=weight, lr=0.01)
            found.append((result.loss_sum / weight, result.grad_norm))
        engine.destroy()
        results.append(found)
    return results


@pytest.mark.parametrize("kind", ["mask", "weights"])
def test_masked_losses_do_not_depend_on_ranks_or_stage(pool: Ranks, kind: str) -> None:
    expected = np.array(pool.run(curve, 1, kind, [0])[0][0])
    for size in (2, 3):
        for measured in pool.run(curve, size, kind, [1, 3])[-1]:
            np.testing.assert_allclose(measured, expected, rtol=0, atol=2e-6)


def test_a_jobs_objective_is_causal_unless_it_says_another() -> None:
    job = Job()
    assert job.objective.name == "causal"
    assert isinstance(objective_of(job), Causal)
    assert job.objective.auto_class == "AutoModelForCausalLM"
    for written in ("causal", {"causal": None}, {"causal": {}}):
        assert Job.model_validate({"objective": written}) == job


def test_a_name_in_use_cannot_be_registered() -> None:
    with pytest.raises(ConfigError, match="objective 'causal' cannot be registered: raylm has a built-in"):
        register_objective(ObjectiveKind("causal", CausalSettings, lambda settings, model: Causal()))
    assert OBJECTIVES.names() == ["causal"]


class Counting(Causal):
    """It remembers what it has seen, as no objective may."""

    def __init__(self, seen: Any) -> None:
        super().__init__()
        self.seen = seen

    def row_weights(self, batch: MicroBatch) -> Any:
        self.seen = self.seen + 1
        return super().row_weights(batch)


def counting(monkeypatch: pytest.MonkeyPatch, seen: Any) -> Job:
    """A job whose objective is made with what it has seen."""
    kind = ObjectiveKind("counting", CausalSettings, lambda settings, model: Counting(seen))
    monkeypatch.setitem(OBJECTIVES._entries, "counting", kind)
    return Job.model_validate({"objective": "counting"})


def test_an_objective_with_room_for_state_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="objective counting: its attribute 'seen' is a list"):
        objective_of(counting(monkeypatch, []))


def test_an_objective_that_changes_is_an_error_and_no_wrong_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(counting(monkeypatch, 0))
    with pytest.raises(TrainingError, match="the objective Counting sets its attribute 'seen' while it trains"):
        objective.row_weights(masked(0, 0, "mask"))
