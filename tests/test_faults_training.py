"""Training with the models, folders and machines of others: what they can do is tried, what they hold compared."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raylm.config.load import load_job
from raylm.config.model import ModelSettings
from raylm.errors import ConfigError
from raylm.run.lease import _began
from raylm.storage import StoragePath
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import environment, run_alone

VOCABULARY, LENGTH = 96, 16
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
MORE: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "falcon": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "afmoe": {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32},
}


def settings_of(family: str, **more: Any) -> ModelSettings:
    attention: Any = "eager" if family in ("gpt_oss", "mamba", "bloom") else "sdpa"
    config = SMALL | {"model_type": family} | MORE.get(family, {})
    return ModelSettings(config=config, attention=attention, **more)


def tried(settings: ModelSettings) -> None:
    from raylm.model.capabilities import try_model

    try_model(settings, VOCABULARY, LENGTH)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3", "gemma3_text", "phi3", "gpt_neox"])
def test_families_that_keep_documents_apart_may(family: str) -> None:
    more = {"pad_token_id": 0} if family == "phi3" else {}
    settings = settings_of(family, document_attention=True)
    tried(settings.model_copy(update={"config": {**settings.config, **more}}))  # type: ignore[dict-item]


@pytest.mark.parametrize("family", ["gpt_oss", "falcon", "opt", "afmoe", "bloom", "mamba"])
def test_document_attention_is_tried_not_inferred_from_a_signature(family: str) -> None:
    tried(settings_of(family))
    with pytest.raises(ConfigError, match=r"does not keep the documents of a row apart|takes no position ids"):
        tried(settings_of(family, document_attention=True))


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_model_that_sees_what_it_is_to_predict_is_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="sees the tokens it is to predict") as caught:
        tried(settings_of(family))
    assert "is_decoder: true" in str(caught.value.hint)
    settings = settings_of(family)
    tried(settings.model_copy(update={"config": {**settings.config, "is_decoder": True}}))  # type: ignore[dict-item]


def test_a_trial_costs_the_same_at_any_size_of_the_model() -> None:
    from raylm.model.build import model_config, unfilled_from
    from raylm.model.capabilities import _small
    from raylm.model.first_weights import units_of

    large = {"model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = model_config(ModelSettings(config=large | {"num_hidden_layers": 80}), 128_000, 4096)
    twin = unfilled_from(ModelSettings(preset="tiny"), _small(config))
    assert sum(unit.elements for unit in units_of(twin)) < 30_000_000


def test_a_pad_token_that_also_ends_texts_is_trained() -> None:
    from raylm.model.build import build_model

    settings = ModelSettings(config=SMALL | {"model_type": "llama", "pad_token_id": 5, "eos_token_id": 5})
    model: Any = build_model(settings, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=1)
    row = model.get_input_embeddings().weight
    assert float(row.detach()[5].abs().sum()) > 0
    tokens = torch.tensor([[1, 5, 2, 5]])
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert float(row.grad[5].abs().sum()) > 0
    assert model.config.pad_token_id == 5


def saved_model(folder: Path, **more: Any) -> Path:
    from raylm.model.build import build_model

    made: Any = build_model(
        ModelSettings(config=SMALL | {"model_type": "llama"} | more), vocab_size=512, sequence_length=64, seed=3
    )
    made.save_pretrained(folder)
    return folder


def test_a_run_whose_model_folder_is_gone_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=200)
    base = saved_model(tmp_path / "base")

    def job(name: str, steps: int, path: Path = base) -> Path:
        settings = job_settings(
            tmp_path / "runs", data, name=name, steps=steps, model__preset=None, model__path=str(path)
        )
        settings["optim"]["schedule"] = "constant"
        return write_job(tmp_path, settings)

    whole = run_alone(job("whole", 6))
    run_alone(job("part", 3))
    shutil.move(base, tmp_path / "elsewhere")
    resumed = run_alone(job("part", 6))
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)
    # Both know what they are of: the folder may come back, at another place, too.
    again = run_alone(job("part", 7, tmp_path / "elsewhere"))
    assert len(again.losses) == 7
    with pytest.raises(RuntimeError, match="there is no"):
        run_alone(job("new", 3))


def test_the_best_checkpoint_is_the_one_that_was_measured(tmp_path: Path) -> None:
    from raylm.checkpoint.restore import committed
    from raylm.run.folder import RunFolder

    data = make_data(tmp_path / "data", rows=400)
    settings = job_settings(
        tmp_path / "runs",
        data,
        name="run",
        steps=24,
        evaluate__every_steps=3,
        checkpoint__every_steps=1000,
        checkpoint__keep=1,
        checkpoint__keep_best=1,
        optim__lr=0.2,  # too high, so that the loss does not only fall
        optim__schedule="constant",
    )
    file = write_job(tmp_path, settings)
    outcome = run_alone(file)
    measured = {event["step"]: event["held_out_loss"] for event in outcome.of("evaluated")}
    assert len(measured) == 8
    best = min(measured, key=lambda step: measured[step])
    kept = {info.step: info.state.held_out_loss for info in committed(RunFolder.of(load_job(file)).checkpoints)}
    assert kept[best] == measured[best]
    assert set(kept) == {best, 24}


def test_the_held_out_loss_of_each_source_is_told(tmp_path: Path) -> None:
    first, second = make_data(tmp_path / "a" / "data", rows=200), make_data(tmp_path / "b" / "data", rows=200, seed=1)
    settings = job_settings(tmp_path / "runs", first, name="run", steps=2, evaluate__every_steps=2)
    settings["data"] = {"mixture": [{"path": str(first)}, {"path": str(second), "weight": 2}]}
    (found,) = run_alone(write_job(tmp_path, settings)).of("evaluated")
    assert set(found["by_source"]) == {"a/data", "b/data"}
    low, high = sorted(found["by_source"].values())
    assert low <= found["held_out_loss"] <= high


def test_a_tokenizer_that_means_other_tokens_is_told_by_the_first_of_them() -> None:
    from raylm.prep.tokenizer.agreement import disagreement

    assert disagreement({0: "a", 1: "b"}, {0: "a", 1: "b", 2: "c"}) is None
    assert disagreement({0: "a", 1: "b"}, {0: "a", 1: "x"}) == "id 1 is 'b' there and 'x' in the data"


def test_a_file_is_created_once_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    place = StoragePath(str(tmp_path / "once"))
    assert place.create_once(b"first")
    assert not place.create_once(b"second")
    assert place.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["once"]


def test_a_process_is_known_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    before = _began(os.getpid())
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 12.0)
    assert _began(os.getpid()) == before
    assert _began(2**22 + 1) is None


def test_an_export_says_everything_in_the_words_of_transformers_4_too() -> None:
    from raylm.hf_export import older_config, older_tokenizer_config

    flat = older_config({"dtype": "float32", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    assert (flat["rope_theta"], flat["rope_scaling"], flat["torch_dtype"]) == (5e5, None, "float32")
    scaled = older_config({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}})
    assert scaled["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    both = older_config({"rope_parameters": kinds})
    assert (both["rope_theta"], both["rope_local_base_freq"]) == (1e6, 1e4)
    assert older_config({"model_type": "gpt2"}) == {"model_type": "gpt2"}
    words = older_tokenizer_config({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"]})
    assert words == {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"]}


REFUSING = """
import sys
from raylm.model import first_weights
from raylm.train.without_ray import main

def refused(self, unit):
    raise SystemExit("drawn: " + unit.name)

first_weights.Drawn.of = refused
main(sys.argv[1:])
"""


def test_a_restart_draws_no_random_weights(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=200)

    def start(name: str, steps: int) -> subprocess.CompletedProcess[str]:
        file = write_job(tmp_path, job_settings(tmp_path / "runs", data, name=name, steps=steps, optim__warmup_steps=1))
        command = [sys.executable, "-c", REFUSING, str(file)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)

    run_alone(write_job(tmp_path, job_settings(tmp_path / "runs", data, name="run", steps=2, optim__warmup_steps=1)))
    resumed = start("run", 3)
    assert resumed.returncode == 0, resumed.stderr
    fresh = start("other", 1)
    assert fresh.returncode == 1
    assert "drawn: " in fresh.stderr


def test_a_dropout_of_0_is_none_at_all_and_one_that_is_not_set_is_the_models_own() -> None:
    from raylm.model.build import model_config

    small = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    names = ("attn_pdrop", "resid_pdrop", "embd_pdrop")
    own, off, some = (
        model_config(ModelSettings(config=small, dropout=share), VOCABULARY, LENGTH) for share in (None, 0.0, 0.3)
    )
    assert [getattr(own, name) for name in names] == [0.1, 0.1, 0.1]
    assert [getattr(off, name) for name in names] == [0.0, 0.0, 0.0]
    assert [getattr(some, name) for name in names] == [0.3, 0.1, 0.1]


def test_a_setting_of_experts_that_does_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from raylm.config.job import Job
    from raylm.train.launch.preflight import try_job_model

    config = SMALL | {"model_type": "mixtral", "num_local_experts": 4, "router_aux_loss_coef": 0.02}
    try_job_model(Job(model=ModelSettings(config=config)), VOCABULARY, LENGTH)
    assert "router_aux_loss_coef=0.02 is not used" in caplog.text


def test_an_end_of_text_behind_a_gap_of_ids_can_be_generated() -> None:
    from types import SimpleNamespace

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from raylm.generation import Sampling, _Decoding
    from raylm.model.build import build_model

    words = {f"w{number}": number for number in range(60)} | {"<end>": 90}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "w0")), eos_token="<end>")
    model: Any = build_model(
        ModelSettings(config=SMALL | {"model_type": "llama"}), vocab_size=91, sequence_length=64, seed=1
    ).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    trained: Any = SimpleNamespace(model=model, tokenizer=tokenizer, device="cpu")
    generate = _Decoding(trained, Sampling(temperature=1.0, top_p=1.0), 1)
    drawn = {token for _ in range(20) for token in generate([[1]], 40)[0]}
    assert 90 in drawn
    assert not drawn & set(range(60, 90))
