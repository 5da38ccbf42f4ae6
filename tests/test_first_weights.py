"""A model's first weights: the same at any number of ranks, drawn or read once, and whole in no process at stage 3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raylm.config.model import ModelSettings
from raylm.config.optim import OptimSettings, ZeroSettings
from raylm.errors import ConfigError
from raylm.objectives.causal import Causal
from raylm.records import MicroBatch
from raylm.storage import StoragePath
from raylm.testing.ranks import Ranks, ranks

VOCABULARY, LENGTH, LANES = 96, 16, 6
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = LLAMA | {"num_hidden_layers": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_layer": 6, "n_head": 4},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "falcon": {},
    "mistral": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(3) as processes:
        yield processes


def settings_of(family: str) -> ModelSettings:
    attention: Any = "eager" if family == "gpt_oss" else "sdpa"
    return ModelSettings(config=SMALL | {"model_type": family} | FAMILIES[family], dtype="fp32", attention=attention)


def micro_batches(rank: int, size: int) -> list[MicroBatch]:
    some = []
    for lane in range(rank, LANES, size):
        tokens = np.random.default_rng(lane).integers(0, VOCABULARY, (2, LENGTH))
        starts = (np.array([0], dtype=np.int32),) * 2
        some.append(MicroBatch(lane, tokens, tokens.copy(), starts, np.zeros(2, np.int64), np.zeros(2, np.int64)))
    return some


def first_losses(group: Any, settings: ModelSettings, stage: Any, whole: bool = False) -> list[float]:
    """Losses of three steps of an engine on a model that is placed on this group, or made whole by each rank."""
    from raylm.model.build import build_model, first_weights, unfilled_model
    from raylm.train.engine import Engine, EngineSettings

    objective = Causal(document_attention=False)
    trained = EngineSettings(
        ZeroSettings(stage=stage),
        OptimSettings(),
        micro_batch=2,
        accumulation=-(-LANES // group.size),
        bf16=settings.dtype == "bf16",
    )
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "sequence_length": LENGTH}
    if whole:
        engine = Engine.build(build_model(settings, **sizes, seed=5), group, objective, trained)
    else:
        model = unfilled_model(settings, **sizes)
        engine = Engine.build(model, group, objective, trained, first_weights(settings, model, 5))
    mine = micro_batches(group.rank, group.size)
    weight = float(LANES * 2 * (LENGTH - 1))
    losses = [engine.step(mine, step=n, seed=0, global_weight=weight, lr=0.01).loss_sum / weight for n in range(3)]
    engine.destroy()
    return losses


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_number_of_ranks_begins_with_the_weights_of_a_whole_build(pool: Ranks, family: str) -> None:
    settings = settings_of(family)
    expected = pool.run(first_losses, 1, settings, 0, True)[0]
    assert expected[0] == pytest.approx(np.log(VOCABULARY), abs=0.5)
    for size in (1, 2, 3):
        for stage in (0, 1, 2, 3):
            found = pool.run(first_losses, size, settings, stage)
            assert found == [pytest.approx(expected, abs=1e-6)] * size, (size, stage)
    other = pool.run(first_losses, 2, settings.model_copy(update={"attention": "eager"}), 3, True)[0]
    assert other[0] == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "ctrl", "modernbert-decoder"])
def test_weights_are_the_same_where_each_is_divided_once_it_is_placed(family: str) -> None:
    """A head with a bias of its own has a tied weight that another unit drew; drawing the bias leaves it alone."""
    from raylm.model.build import build_model, unfilled_model
    from raylm.model.first_weights import Drawn, place

    own: dict[str, Any] = {"is_decoder": True} if family == "bert" else {}
    settings = ModelSettings(config=SMALL | {"model_type": family} | FAMILIES.get(family, own), dtype="fp32")
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "sequence_length": LENGTH}
    whole = dict(build_model(settings, **sizes, seed=5).named_parameters())
    model = unfilled_model(settings, **sizes)
    values: dict[int, torch.Tensor] = {}

    def divide(parameter: torch.nn.Parameter) -> None:
        values[id(parameter)] = parameter.detach().clone()
        parameter.data = torch.empty(0)

    place(model, Drawn(5), settle=divide)
    divided = dict(model.named_parameters())
    assert divided.keys() == whole.keys()
    for name, parameter in divided.items():
        assert torch.equal(values[id(parameter)], whole[name]), name
        assert parameter.numel() == 0, name


def test_in_bf16_too(pool: Ranks) -> None:
    settings = settings_of("llama").model_copy(update={"dtype": "bf16"})
    expected = pool.run(first_losses, 2, settings, 3, True)
    for stage in (0, 1, 3):
        assert pool.run(first_losses, 2, settings, stage)[0][0] == pytest.approx(expected[0][0], abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_drawn_as_the_family_draws_them(family: str) -> None:
    from raylm.model.build import build_model, config_dict, config_from

    settings = settings_of(family)
    ours, again, other = (
        build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=seed) for seed in (3, 3, 2)
    )
    config = config_from(config_dict(ours.config))  # type: ignore[arg-type]
    torch.manual_seed(0)
    theirs = type(ours)._from_config(config, attn_implementation=settings.attention)  # type: ignore[attr-defined]
    reference = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(reference)
    for name, parameter in ours.named_parameters():
        here, there = parameter.detach(), reference[name].detach()
        assert torch.equal(here, dict(again.named_parameters())[name])
        if there.numel() == 1 or float(there.std()) == 0:  # a constant
            assert torch.equal(here, there), name
            continue
        assert float(here.std()) == pytest.approx(float(there.std()), rel=max(0.2, 4 / there.numel() ** 0.5)), name
        assert abs(float(here.mean() - there.mean())) < 5 * float(there.std()) / there.numel() ** 0.5, name
        assert not torch.equal(here, dict(other.named_parameters())[name]), name
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())


def test_two_layers_are_not_drawn_alike() -> None:
    from raylm.model.build import build_model

    model = build_model(settings_of("llama"), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=1)
    first, second = (model.get_parameter(f"model.layers.{layer}.mlp.up_proj.weight") for layer in (0, 1))
    both = torch.stack([first.detach().flatten(), second.detach().flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def build_bytes(group: Any, config: dict[str, Any]) -> tuple[int, int]:
    """Bytes held at most while weights are placed at stage 3, and the plan's figure for it."""
    from raylm.config.job import Job
    from raylm.model.budget import memory
    from raylm.model.build import first_weights, unfilled_model
    from raylm.model.first_weights import place
    from raylm.model.flops import shape_of
    from raylm.testing.meter import metered
    from raylm.train.deepspeed_internals import parameter_divider, quiet_deepspeed
    from raylm.train.engine import EngineSettings, deepspeed_config

    deepspeed = quiet_deepspeed()
    settings = ModelSettings(config=config, dtype="fp32")
    deepspeed.comm.init_distributed(dist_init_required=False)
    zero = EngineSettings(ZeroSettings(stage=3), OptimSettings(), 1, 1, bf16=False)
    with metered() as meter:
        model = unfilled_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH)
        divide = parameter_divider(deepspeed_config(zero, group, elements=1 << 20), torch.float32)
        place(model, first_weights(settings, model, 1), among=group, settle=divide)
    shape = shape_of(settings, VOCABULARY, LENGTH)
    return meter.peak, memory(Job(model=settings), shape, LENGTH, 3, group.size).building_bytes


def test_stage_3_never_holds_the_whole_model(pool: Ranks) -> None:
    config = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 24}
    layer = 4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 256)
    for peak, planned in pool.run(build_bytes, 3, config):
        assert peak <= planned + 2 * layer  # what is drawn lies in the host's memory, one layer at a time
        assert peak < 24 * layer / 2


def saved(folder: Path, config: dict[str, Any], **more: Any) -> Any:
    from raylm.model.build import build_model

    model: Any = build_model(ModelSettings(config=config), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=3)
    model.save_pretrained(folder, **more)
    return model


def bytes_read(group: Any, folder: str) -> tuple[int, bool]:
    """How many bytes of weights this rank read, and whether it has the folder's."""
    from raylm.model import stored_weights
    from raylm.model.build import build_model, first_weights, unfilled_model
    from raylm.model.first_weights import place

    settings = ModelSettings(path=folder)
    model = unfilled_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH)
    source = first_weights(settings, model, 1)
    read = 0
    original = stored_weights.StoredTensor.read

    def counted(self: stored_weights.StoredTensor) -> torch.Tensor:
        nonlocal read
        read += self.length
        return original(self)

    stored_weights.StoredTensor.read = counted  # type: ignore[method-assign]
    try:
        place(model, source, among=group)
    finally:
        stored_weights.StoredTensor.read = original  # type: ignore[method-assign]
    whole = build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=9)
    return read, all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_folders_weights_are_read_once_by_all_ranks_together(pool: Ranks, tmp_path: Path) -> None:
    model = saved(tmp_path, LLAMA, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = pool.run(bytes_read, 3, str(tmp_path))
    assert [same for _, same in found] == [True] * 3
    assert sum(read for read, _ in found) == sum(4 * parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folders_weights_are_what_transformers_reads(family: str, tmp_path: Path) -> None:
    from raylm.model.build import build_model

    config = SMALL | {"model_type": family} | FAMILIES[family]
    attention: Any = "eager" if family == "gpt_oss" else "sdpa"
    made: Any = build_model(
        ModelSettings(config=config, attention=attention), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=3
    )
    made.save_pretrained(tmp_path)
    ours = build_model(
        ModelSettings(path=str(tmp_path), attention=attention), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=8
    )
    for (name, here), there in zip(ours.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(here, there), name


def test_a_head_of_its_own_stays_one_although_the_config_says_tied(tmp_path: Path) -> None:
    from raylm.model.build import build_model

    model = saved(tmp_path, LLAMA | {"tie_word_embeddings": False})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    ours = build_model(ModelSettings(path=str(tmp_path)), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=8)
    assert torch.equal(ours.get_parameter("lm_head.weight"), model.lm_head.weight)
    assert not ours.config.tie_word_embeddings  # type: ignore[union-attr]


def test_weights_that_are_quantised_are_refused_in_words(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from raylm.model.build import build_model

    saved(tmp_path, LLAMA)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight is stored as I8, which is quantised"):
        build_model(ModelSettings(path=str(tmp_path)), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=8)


@pytest.mark.parametrize(("preset", "seconds"), [("llama-7b", 5.0), ("70b", 10.0)])
def test_a_large_model_is_described_in_no_time_and_memory(preset: str, seconds: float) -> None:
    """C1 of the scale: neither building nor a restart may cost what the model's size is."""
    import resource
    import time

    from raylm.model.build import unfilled_model
    from raylm.model.first_weights import units_of

    large = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    settings = ModelSettings(config=large) if preset == "70b" else ModelSettings(preset=preset)  # type: ignore[arg-type]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    model = unfilled_model(settings, vocab_size=32000, sequence_length=4096)
    assert time.process_time() - began < seconds
    elements = sum(parameter.numel() for parameter in model.parameters())
    assert elements > 6.7e9
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / elements < 0.2
    # What a rank of eight draws or reads at a time, in fp32, is a fifth of a byte a parameter at most.
    assert max(unit.elements for unit in units_of(model)) * 4 / elements < 0.2


def test_a_70b_model_fits_64_cards() -> None:
    from raylm.config.job import Job
    from raylm.model.budget import plan

    large = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    job = Job(
        model={"config": large, "activation_checkpointing": True},  # type: ignore[arg-type]
        batch={"micro_batch": 1},  # type: ignore[arg-type]
    )
    made = plan(job, 32000, sequence_length=4096, workers=[64])
    assert made.fitting(64) == (3,)


def test_where_storage_holds_the_weights_is_the_connections_business(tmp_path: Path) -> None:
    from raylm.model.build import unfilled_model
    from raylm.model.first_weights import place
    from raylm.model.stored_weights import stored_weights

    model = saved(tmp_path, LLAMA)
    folder = StoragePath("memory://weights-of-a-test")
    for file in tmp_path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    empty = unfilled_model(ModelSettings(config=LLAMA), vocab_size=VOCABULARY, sequence_length=LENGTH)
    place(empty, stored_weights(folder, empty, key="init_from.path"))
    assert all(torch.equal(a, b) for a, b in zip(empty.parameters(), model.parameters(), strict=True))
