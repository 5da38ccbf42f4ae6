"""Every private name of DeepSpeed that training uses still exists and does what it is used for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from test_engine import BAD_STEP, build, spoiled, take

from raylm.testing.ranks import Ranks, ranks
from raylm.train.group import Group


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(1) as processes:
        yield processes


def names(group: Group) -> list[str]:
    """What is missing of the names that are set or called."""
    from raylm.train.deepspeed_internals import quiet_deepspeed

    quiet_deepspeed()
    wanted = {
        "deepspeed.utils": ["logger.setLevel"],
        "deepspeed.runtime.bf16_optimizer": ["see_memory_usage"],
        "deepspeed.utils.nvtx": ["enable_nvtx"],
        "deepspeed.ops": ["__compatible_ops__"],
        "deepspeed.comm.comm": ["cdb"],
        "deepspeed.utils.groups": ["_WORLD_GROUP"],
        "deepspeed.runtime.zero.partition_parameters": ["Init.param_id"],
        "deepspeed.runtime.zero.parameter_offload": [
            "DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__",
            "FWD_MODULE_STACK.clear",
        ],
    }
    missing = []
    for module, attributes in wanted.items():
        for attribute in attributes:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part, missing)
            if found is missing:
                missing.append(f"{module}.{attribute}")
    return missing


def test_names_that_are_set_exist(pool: Ranks) -> None:
    assert pool.run(names, 1) == [[]]


def quiet(group: Group) -> tuple[bool, bool, bool]:
    from raylm.train.deepspeed_internals import quiet_deepspeed

    quiet_deepspeed()
    optimizer = importlib.import_module("deepspeed.runtime.bf16_optimizer")
    nvtx = importlib.import_module("deepspeed.utils.nvtx")
    operations = importlib.import_module("deepspeed.ops").__compatible_ops__
    return optimizer.see_memory_usage("") is None, nvtx.enable_nvtx, operations["deepspeed_shm_comm"]


def test_deepspeed_is_quiet_and_compiles_nothing(pool: Ranks) -> None:
    assert pool.run(quiet, 1) == [(True, False, False)]


def first_step(group: Group) -> tuple[str, int, bool, bool]:
    """Stage 0's bf16 optimizer as it is when it was built: its kind, its state, its masters beside the weights."""
    import torch

    engine = build(group, stage=0, dtype="bf16")
    optimizer = engine.raw.optimizer
    masters = [master for group_ in optimizer.fp32_groups for master in group_]
    weights = [weight for group_ in optimizer.fp16_groups for weight in group_]
    equal = all(torch.equal(a, b.float()) for a, b in zip(masters, weights, strict=True))
    found = (type(optimizer).__name__, len(optimizer.state), equal, engine._plain)
    engine.destroy()
    return found


def test_stage_0_in_bf16_starts_without_a_step(pool: Ranks) -> None:
    assert pool.run(first_step, 1) == [("FP16_UnfusedOptimizer", 0, True, False)]


def plain(group: Group) -> list[bool]:
    found = []
    for stage in (0, 1):
        engine = build(group, stage=stage)
        found.append(engine._plain)
        engine.destroy()
    return found


def test_stage_0_in_fp32_is_torchs_own_optimizer(pool: Ranks) -> None:
    assert pool.run(plain, 1) == [[True, False]]


def refused(group: Group) -> list[Any]:
    """Gradients that stages 1 and 2 with offload in bf16 still hold after a step that was refused."""
    held = []
    for stage in (1, 2):
        engine = build(group, stage=stage, dtype="bf16", offload=True, loss=spoiled("nan"))
        for step in range(BAD_STEP):
            take(engine, step)
        assert take(engine, BAD_STEP).skipped
        assert hasattr(engine.raw.optimizer, "single_partition_of_fp32_groups")
        held += [gradient for gradient in engine.raw.optimizer.averaged_gradients.values() if gradient is not None]
        engine.destroy()
    return held


def test_a_refused_steps_gradients_are_forgotten(pool: Ranks) -> None:
    assert pool.run(refused, 1) == [[]]


def counters(group: Group) -> list[tuple[int, int]]:
    """Stage 3's numbers of parameters and modules after each engine was destroyed."""
    partition = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    found = []
    for _ in range(2):
        engine = build(group, stage=3)
        used = partition.Init.param_id
        engine.destroy()
        modules = offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0]
        found.append((int(used > 0), partition.Init.param_id + modules))
    return found


def test_stage_3_counts_from_0_again_in_the_next_group(pool: Ranks) -> None:
    assert pool.run(counters, 1) == [[(1, 0), (1, 0)]]
