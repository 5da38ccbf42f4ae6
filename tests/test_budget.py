"""The plan of a job against what torch really counts: parameters, activations, and the tensors of live engines."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from raylm.cli.plan import plan_lines
from raylm.config.job import Job
from raylm.config.model import ModelSettings
from raylm.config.optim import ZeroSettings
from raylm.model.budget import STAGES, Plan, activation_bytes, flops_per_token, plan, shape_of
from raylm.model.presets import SHAPES
from raylm.testing.meter import metered
from raylm.testing.ranks import ranks

VOCABULARY, LENGTH, MICRO = 2048, 256, 2
SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}


def job(**model: Any) -> Job:
    return Job.model_validate(
        {
            "model": {"config": SMALL, **model},
            "batch": {"sequences": 8, "micro_batch": MICRO},
            "workers": {"min": 1, "max": 2},
        }
    )


def seven(**more: Any) -> Plan:
    """llama-7b as someone would first ask for it."""
    settings = {
        "model": {"preset": "llama-7b", "activation_checkpointing": True},
        "batch": {"sequences": 256, "micro_batch": 2},
        "workers": {"min": 1, "max": 64},
        "prepare": {"tokenizer": {"vocab_size": 32000}, "sequence_length": 4096},
        **more,
    }
    return plan(Job.model_validate(settings))


# The sizes that follow need neither torch nor a GPU.


def test_it_answers_for_7b_without_loading_torch() -> None:
    code = (
        "import sys; from raylm.config.job import Job; from raylm.model.budget import plan;"
        "from raylm.cli.plan import plan_lines;"
        "job = Job.model_validate({'model': {'preset': 'llama-7b'}, 'batch': {'sequences': 128, 'micro_batch': 1},"
        " 'workers': {'max': 64}});"
        "assert plan_lines(plan(job)); sys.exit(bool({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_7b_is_the_known_model_and_fits_as_is_known() -> None:
    made = seven()
    assert made.shape.parameters == 6_738_415_616  # Llama-2-7B
    assert made.workers == (1, 64)
    assert made.fitting(1) == ()
    assert made.fitting(64) == (1, 2, 3)
    # ZeRO's own figure, 16 bytes a parameter in bf16, is a lower bound of stage 0.
    whole = made.at(0, 64)
    assert whole.weights_bytes + whole.gradients_bytes + whole.optimizer_bytes == 16 * made.shape.parameters


def test_memory_never_grows_with_workers_or_stage() -> None:
    counts = [2, 3, 4, 8, 16, 33, 64]
    base = Job.model_validate({"model": {"preset": "llama-7b"}, "batch": {"sequences": 64, "micro_batch": 1}})
    made = plan(base, 32000, workers=counts)
    for stage in STAGES:
        totals = [made.at(stage, count).total_bytes for count in counts]
        assert totals == sorted(totals, reverse=True)
    for count in counts:
        totals = [made.at(stage, count).total_bytes for stage in (3, 2, 1, 0)]
        assert totals[0] < totals[1] < totals[2] < totals[3]


def test_offload_moves_the_optimizer_to_the_host() -> None:
    plain, offloaded = seven(), seven(zero={"offload_optimizer": True})
    assert offloaded.at(2, 64).optimizer_bytes == 0
    assert offloaded.at(2, 64).host_bytes > plain.at(2, 64).optimizer_bytes > 0
    assert offloaded.at(3, 1).total_bytes < plain.at(3, 1).total_bytes


def test_recomputing_activations_is_cheaper_to_hold() -> None:
    kept, recomputed = (
        activation_bytes(ModelSettings(preset="llama-7b", activation_checkpointing=on), seven().shape, 4096, 1)
        for on in (False, True)
    )
    assert recomputed < kept / 5


def test_flops_are_six_a_matrix_parameter_and_attention() -> None:
    shape = shape_of(ModelSettings(preset="llama-7b"), 32000, 4096)
    matrices = 6_738_415_616 - 32000 * 4096
    assert flops_per_token(shape, 4096) == 6 * matrices + 12 * 32 * 4096 * 4096
    tied = shape_of(ModelSettings(preset="tiny"), 512, 64)
    assert flops_per_token(tied, 64) == 6 * tied.parameters + 12 * 4 * 128 * 64


def test_a_plan_without_a_manifest_takes_what_prepare_would_make() -> None:
    made = plan(Job.model_validate({"model": {"preset": "tiny"}}))
    assert (made.shape.vocabulary, made.sequence_length) == (8192, 512)


def test_the_lines_say_which_stage_fits_and_what_to_do_when_none_does() -> None:
    text = "\n".join(plan_lines(seven()))
    assert "6,738,415,616" in text
    assert "fits 80 GB: no stage" in text
    assert "fits 80 GB: stage 1, 2, 3" in text
    assert "6 x matrix parameters + 12 x layers x width x row length" in text
    assert "<- zero.stage" in text
    assert "host" in "\n".join(plan_lines(seven(zero={"offload_optimizer": True})))


# Against torch.


@pytest.mark.parametrize("preset", SHAPES)
@pytest.mark.parametrize("vocabulary", [512, 32000])
def test_a_presets_parameters_are_torchs(preset: str, vocabulary: int) -> None:
    from raylm.model.build import empty_model, model_config

    settings = ModelSettings(preset=preset)
    model = empty_model(model_config(settings, vocabulary, 64))
    shape = shape_of(settings, vocabulary, 64)
    assert shape.parameters == model.num_parameters()  # type: ignore[operator]
    assert shape.largest == max(parameter.numel() for parameter in model.parameters())
    looked_up = model.get_input_embeddings().weight  # type: ignore[operator]
    tied = looked_up is model.get_output_embeddings().weight  # type: ignore[operator]
    assert shape.looked_up == (0 if tied else looked_up.numel())


@pytest.mark.parametrize("config", [SMALL, SMALL | {"tie_word_embeddings": True}, GPT2], ids=["llama", "tied", "gpt2"])
def test_an_inline_configs_parameters_are_torchs(config: dict[str, Any]) -> None:
    from raylm.model.build import build_model

    settings = ModelSettings(config=config)
    model = build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0)
    assert shape_of(settings, VOCABULARY, LENGTH).parameters == model.num_parameters()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("switches", [{}, {"activation_checkpointing": True}, {"attention": "eager"}], ids=str)
@pytest.mark.parametrize("vocabulary", [64, VOCABULARY])
def test_activations_are_what_a_backward_pass_holds(dtype: str, switches: dict[str, Any], vocabulary: int) -> None:
    import torch

    from raylm.model.build import build_model
    from raylm.objectives.cross_entropy import next_token_loss

    settings = ModelSettings(config=SMALL, dtype=dtype, **switches)  # type: ignore[arg-type]
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    model = build_model(settings, vocab_size=vocabulary, sequence_length=LENGTH, seed=0, dtype=kind)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.randint(0, vocabulary, (MICRO, LENGTH))
    with metered(model) as meter:
        next_token_loss(model, tokens, tokens, None).backward()  # type: ignore[no-untyped-call]
    expected = activation_bytes(settings, shape_of(settings, vocabulary, LENGTH), LENGTH, MICRO)
    assert meter.peak == pytest.approx(expected, rel=0.06)


def test_every_stage_holds_what_the_plan_says() -> None:
    _hold_against_plan("bf16", workers=2)


@pytest.mark.sweep
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("dtype", "workers"), [("bf16", 1), ("bf16", 2), ("fp32", 1), ("fp32", 2)])
def test_every_stage_holds_what_the_plan_says_at_any_type_and_size(dtype: str, workers: int, offload: bool) -> None:
    _hold_against_plan(dtype, workers, offload)


def _hold_against_plan(dtype: str, workers: int, offload: bool = False) -> None:
    settings = job(dtype=dtype).model_copy(update={"zero": ZeroSettings(offload_optimizer=offload)})
    made = plan(settings, VOCABULARY, sequence_length=LENGTH, workers=[workers])
    with ranks(workers) as processes:
        measured = processes.run(measure, workers, dtype, STAGES[1:] if offload else STAGES, offload)[0]
    for stage, peak in measured:
        cell = made.at(stage, workers)
        # Here the host is the device.
        planned = cell.total_bytes + cell.host_bytes
        facts = f"stage {stage}: measured {peak}, planned {planned}, {cell}"
        assert peak <= planned * 1.03, facts
        # Buckets of a model this small are as big as it is, and need not be full at the peak.
        assert peak >= (planned - cell.buffers_bytes) * 0.97, facts


def measure(group: Any, dtype: str, stages: tuple[int, ...], offload: bool) -> list[tuple[int, int]]:
    """A few steps of an engine at each stage, and the most bytes that each held on this rank."""
    found = []
    for stage in stages:
        with metered() as meter:
            engine = _engine(job(dtype=dtype), stage, group, offload)
            gc.collect()
            meter.peak = meter.now
            _run(engine, group.rank, group.size)
            found.append((stage, meter.peak))
            engine.destroy()
        del engine
        gc.collect()
    return found


def _engine(made: Job, stage: int, group: Any, offload: bool = False) -> Any:
    from raylm.model.build import build_model
    from raylm.objectives.causal import Causal
    from raylm.train.engine import Engine, EngineSettings

    zero = ZeroSettings(stage=stage, offload_optimizer=offload)  # type: ignore[arg-type]
    model = build_model(made.model, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0)
    return Engine.build(
        model,
        group,
        Causal(document_attention=made.model.document_attention),
        EngineSettings(zero, made.optim, micro_batch=MICRO, accumulation=2, bf16=made.model.dtype == "bf16"),
    )


def _run(engine: Any, rank: int, world: int, steps: int = 2) -> None:
    import numpy as np

    from raylm.records import MicroBatch

    def lane(number: int) -> MicroBatch:
        tokens = np.random.default_rng(number).integers(0, VOCABULARY, (MICRO, LENGTH))
        starts = tuple(np.zeros(1, np.int32) for _ in range(MICRO))
        return MicroBatch(number, tokens, tokens.copy(), starts, np.arange(MICRO), np.zeros(MICRO, np.int64))

    count = 2 * world * MICRO * (LENGTH - 1)
    for step in range(steps):
        batches = [lane(rank), lane(rank + world)]
        engine.step(batches, step=step, seed=0, global_weight=count, lr=1e-4)


# Against a GPU, where there is one.


def _has_gpu() -> bool:
    torch = pytest.importorskip("torch")
    return bool(torch.cuda.is_available())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpus_peak_is_what_the_plan_says(stage: int, checkpointing: bool) -> None:
    if not _has_gpu():
        pytest.skip("needs a GPU")
    code = f"import test_budget; print(test_budget.gpu_peak({stage}, {checkpointing}))"
    folder = os.path.dirname(__file__)  # noqa: PTH120
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    peak = int(output.splitlines()[-1])
    cell = gpu_plan(checkpointing).at(stage, 1)
    assert (cell.total_bytes - cell.buffers_bytes) * 0.9 <= peak <= cell.total_bytes * 1.1, (
        f"measured {peak}, planned {cell}"
    )


def gpu_job(checkpointing: bool) -> Job:
    return job(config=None, preset="llama-350m", activation_checkpointing=checkpointing)


def gpu_plan(checkpointing: bool) -> Plan:
    return plan(gpu_job(checkpointing), VOCABULARY, sequence_length=LENGTH, workers=[1])


def gpu_peak(stage: int, checkpointing: bool) -> int:
    """Bytes that torch's allocator gave out at most during three steps of llama-350m on this machine's GPU."""
    import torch

    from raylm.train.group import single

    engine = _engine(gpu_job(checkpointing), stage, single())
    torch.cuda.reset_peak_memory_stats()
    _run(engine, 0, 1)
    return int(torch.cuda.max_memory_allocated())
