"""Models and machines that cannot work are told in words, and what a hint advises is then taken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from test_faults_early import said
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raylm.config.model import ModelSettings
from raylm.deploy.local import LocalCluster, NodeShape
from raylm.errors import ClusterError, ConfigError
from raylm.model.build import build_model, config_dict, config_from, model_config
from raylm.model.capabilities import try_model
from raylm.model.flops import shape_of
from raylm.model.token_ids import TOKEN_IDS, token_ids
from raylm.runtime.connect import LocalRay, _connection, connected
from raylm.runtime.ports import free_port
from raylm.runtime.sockets import FOLDER_BYTES, temporary_folder
from raylm.testing.datasets import job_settings, make_data, write_job

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "num_key_value_heads": 4, **SMALL}


def refusal(config: dict[str, Any], **settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        shape_of(ModelSettings(config=config, **settings), 300, 64)
    return refused.value


@pytest.mark.parametrize(
    ("kind", "alone"),
    [("gemma3", "gemma3_text"), ("llama4", "llama4_text"), ("mllama", "mllama_text_model"), ("fuyu", "persimmon")],
)
def test_a_model_of_several_models_is_refused_with_the_name_of_its_text_model(kind: str, alone: str) -> None:
    error = refusal({"model_type": kind})
    assert f"model type '{kind}' joins several models" in error.message
    assert error.hint == f"use its text model alone: {alone}"


@pytest.mark.parametrize("kind", ["vit", "resnet", "t5", "musicgen", "xlnet", "reformer", "dbrx", "nemotron"])
def test_what_transformers_raises_over_a_family_is_told_in_words(kind: str) -> None:
    assert refusal({"model_type": kind}).hint


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_family_is_counted_or_refused_in_words(kind: str) -> None:
    for attention in ("sdpa", "eager"):
        try:
            assert shape_of(ModelSettings(config={"model_type": kind}, attention=attention), 300, 64).parameters > 0
        except ConfigError as error:
            if error.hint != "set model.attention to eager":
                return
        else:
            return
    raise AssertionError("the hint was refused")


@pytest.mark.parametrize("pad", [300, 99_999, -1])
def test_a_pad_token_outside_the_vocabulary_is_refused(pad: int) -> None:
    error = refusal({**LLAMA, "pad_token_id": pad})
    assert error.message == f"the model's pad_token_id={pad} is not in its vocabulary of 300"
    assert "take pad_token_id out" in str(error.hint)
    assert shape_of(ModelSettings(config={**LLAMA, "pad_token_id": 299}), 300, 64)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("cwm", {"bos_token_id"}),
        ("modernbert-decoder", {"bos_token_id", "pad_token_id"}),
        ("llama", set()),
        ("opt", set()),
    ],
)
def test_a_special_token_is_none_or_the_end_of_text_where_a_family_wants_a_number(kind: str, numbers: set[str]) -> None:
    settings = ModelSettings(config={"model_type": kind, "num_key_value_heads": 4, **SMALL})
    for end, otherwise in ((7, 7), (None, 0)):
        ids = token_ids(kind, 300, end)
        assert ids["eos_token_id"] == end
        assert {name: ids[name] for name in TOKEN_IDS if name != "eos_token_id"} == {
            name: otherwise if name in numbers else None for name in ("bos_token_id", "pad_token_id")
        }
        config = model_config(settings, 300, 64, eos_id=end)
        assert {name: getattr(config, name) for name in numbers} == dict.fromkeys(numbers, otherwise)
        assert config_dict(config_from(config_dict(config))) == config_dict(config)
        try_model(settings, 300, 64, eos_id=end)
        model = build_model(settings, vocab_size=300, sequence_length=64, seed=0, eos_id=end)
        tokens = torch.arange(20)[None]
        assert torch.isfinite(model(input_ids=tokens).logits).all()
    own = token_ids(kind, 200_000, None)
    assert {name: own[name] for name in numbers} == {name: CONFIG_MAPPING[kind]().to_dict()[name] for name in numbers}


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "data2vec-text"])
@pytest.mark.parametrize("pad", [{}, {"pad_token_id": 1}])
def test_a_family_that_counts_positions_from_the_pad_token_is_refused(kind: str, pad: dict[str, Any]) -> None:
    """Trained without positions, it counts from there; whoever generates with it gives it 0, 1, …"""
    settings = ModelSettings(config={"model_type": kind, "is_decoder": True, **SMALL, **pad})
    with pytest.raises(ConfigError, match=f"'{kind}' numbers positions in a way of its own"):
        try_model(settings, 300, 64)


def test_a_model_of_several_text_models_is_refused_whatever_its_config_says() -> None:
    with pytest.raises(ConfigError, match="'musicgen' joins several models, of which several read text"):
        try_model(ModelSettings(config={"model_type": "musicgen", **SMALL}), 300, 64)


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        ({"hidden_act": "silo"}, "hidden_act='silo' is unknown", "did you mean silu?"),
        ({"hidden_act": "nosuch"}, "hidden_act='nosuch' is unknown", "known: gelu, "),
        ({"rope_parameters": {"rope_type": "yarm", "factor": 2}}, "rope_type='yarm' is unknown", "did you mean yarn?"),
        ({"rope_scaling": {"type": "nosuch", "factor": 2}}, "rope_type='nosuch' is unknown", "known: "),
    ],
)
def test_a_name_that_transformers_does_not_know_is_told_with_the_nearest(
    changes: dict[str, Any], words: str, hint: str
) -> None:
    error = refusal({**LLAMA, **changes})
    assert words in error.message
    assert hint in str(error.hint)


def test_known_names_are_taken() -> None:
    per_layer = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    for config in (
        {**LLAMA, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"model_type": "gemma3_text", **SMALL, "head_dim": 16, "num_key_value_heads": 4, "rope_parameters": per_layer},
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "activation_function": "relu"},
    ):
        assert shape_of(ModelSettings(config=config), 300, 64).hidden == 64


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv"])
def test_the_hint_about_attention_is_then_taken(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 64, "num_hidden_layers": 2}
    if kind == "mamba2":
        config |= {"num_heads": 8, "head_dim": 16, "n_groups": 1}
    assert refusal(config).hint == "set model.attention to eager"
    assert shape_of(ModelSettings(config=config, attention="eager"), 300, 64).heads == 0


def test_quantized_weights_are_refused_before_a_worker_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "quantized"
    folder.mkdir()
    config = {**LLAMA, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(config))
    data = make_data(tmp_path / "data", rows=24)
    file = write_job(tmp_path, job_settings(tmp_path / "runs", data, name="a", steps=2, model={"path": str(folder)}))
    for words in (["plan", str(file)], ["train", str(file), "--dry-run"], ["train", str(file)]):
        code, out, err = said(capsys, *words)
        assert (code, out) == (2, "")
        assert "weights are quantized (bitsandbytes)" in err
        assert "before it was quantized" in err


# -- Ray on this machine -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("no_address")
def test_the_hint_about_an_address_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def hint(address: str | None) -> str:
        with pytest.raises(ClusterError, match="no Ray cluster answers") as refused, connected(address, LocalRay(1)):
            pass
        assert _connection._keeper is not None
        _connection._keeper.ended.wait()  # it puts the environment back
        return str(refused.value.hint)

    nobody = f"127.0.0.1:{free_port()}"
    assert hint(nobody) == "check cluster.address, or leave it out to use this machine"
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    assert hint(None) == "that address is RAY_ADDRESS's: correct it, or unset it to use this machine"
    assert hint(nobody) == "check cluster.address; to use this machine leave it out and unset RAY_ADDRESS"


@pytest.mark.usefixtures("no_address")
@pytest.mark.parametrize(("length", "used"), [(80, "/tmp"), (FOLDER_BYTES - len("/ray"), None)])
def test_ray_starts_where_tmpdir_is_too_long_for_its_sockets(
    monkeypatch: pytest.MonkeyPatch, length: int, used: str | None
) -> None:
    folder = "/tmp/".ljust(length, "a")
    seen: list[str] = []
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ["RAY_TMPDIR"]))
    with connected(None, LocalRay(1)):
        assert "RAY_TMPDIR" not in os.environ
    assert seen == [used or folder]
    # The longest of a socket's names below the folder is one that Linux takes.
    name = f"{seen[0]}/ray/session_2026-11-27_00-41-41_943186_4194304/sockets/plasma_store"
    assert len(name) <= 107


@pytest.mark.usefixtures("no_address")
def test_a_folder_that_ray_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 90)
    with (
        pytest.raises(ClusterError, match="Ray cannot be started with its files in /xxx") as told,
        connected(None, LocalRay(1)),
    ):
        pass
    assert "RAY_TMPDIR" in str(told.value.hint)


def test_a_cluster_of_this_machine_stands_where_its_sockets_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 80)
    assert temporary_folder("raylm-cluster-1000") == "/tmp"
    from raylm.cli.cluster import default_folder

    assert len(str(default_folder())) <= FOLDER_BYTES
    with pytest.raises(ConfigError, match="too long a path for Ray's sockets"):
        LocalCluster(Path("/tmp/" + "a" * 80)).up(0, head=NodeShape(), each=NodeShape())
    monkeypatch.setenv("TMPDIR", "/tmp/b")
    assert temporary_folder("raylm-cluster-1000") == "/tmp/b"
