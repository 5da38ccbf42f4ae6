"""Exports are read by transformers 4.x as they are by 5.x: the same scores, the same text, the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import older_reader
import pytest
import torch

from raylm.config.model import ModelSettings
from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.hf_export import export, older_config
from raylm.model.build import build_model
from raylm.prep import tokenizer as tokenizers_
from raylm.storage import StoragePath
from raylm.trained import Info, Trained, read_tokenizer

# transformers and those of its requirements whose versions it checks; torch and the others are this environment's.
OLDER = {
    "4.57.1": ("transformers==4.57.1", "huggingface_hub>=0.34,<1.0", "tokenizers>=0.22,<0.23"),
    "4.51.3": ("transformers==4.51.3", "huggingface_hub>=0.30,<1.0", "tokenizers>=0.21,<0.22"),
}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # so that a misread setting shows
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 5e5},
    "llama, scaled": {"model_type": "llama", "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"rope_parameters": PARTIAL},
    "qwen3": {"head_dim": 16, "rope_theta": 1e6},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mixtral": {"num_local_experts": 4, "rope_theta": 1e6},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 32, "rope_parameters": LONG},
}
LENGTH = 64
TOKENS = list(range(3, 43))
TEXT = "Größe, 日本語 🙂: a line<|call|> counts.<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = StoragePath(str(tmp_path_factory.mktemp("tokenizer")))
    texts = ["Größe, naïve, 日本語, 🙂🚀: bytes", *(f"Line {number} counts once it is there." for number in range(40))]
    tokenizers_.write_tokenizer(place, tokenizers_.train(texts, TokenizerSettings(vocab_size=300)))
    read = read_tokenizer(place)
    read.add_special_tokens({"extra_special_tokens": ["<|call|>"]})
    return read


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    folders = {}
    for name, changes in FAMILIES.items():
        settings = ModelSettings(config={"model_type": name} | SMALL | changes)
        model: Any = build_model(
            settings, vocab_size=len(tokenizer), sequence_length=LENGTH, seed=1, eos_id=tokenizer.eos_token_id
        )
        folder = tmp_path_factory.mktemp("exports") / name.replace(", ", "-")
        info = Info("checkpoint", StoragePath(str(folder)), None, 1, "fp32", None)
        export(Trained(model.eval(), tokenizer, info), str(folder))
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def asked(exports: dict[str, Path]) -> dict[str, Any]:
    folders = {name: str(folder) for name, folder in exports.items()}
    return {"tokens": TOKENS, "text": TEXT, "attention": "sdpa", "folders": folders}


@pytest.fixture(scope="module", params=OLDER)
def read_by_older(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]
) -> dict[str, Any]:
    """What that transformers makes of each export, in a process of its own."""
    place = tmp_path_factory.mktemp("older")
    install = [sys.executable, "-m", "pip", "install", "-q", "--retries=1", "--no-deps", f"--target={place / 'site'}"]
    try:
        subprocess.run([*install, *OLDER[request.param]], check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        pytest.skip(f"pip cannot install transformers {request.param}: {said[-1]}")
    (place / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, older_reader.__file__, str(place / "asked.json"), str(place / "answers.json")],
        env=os.environ | {"PYTHONPATH": str(place / "site")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((place / "answers.json").read_text())
    assert said["version"] == request.param
    answers: dict[str, Any] = said["answers"]
    return answers


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_an_older_transformers_reads_an_export_as_this_one_does(
    family: str, asked: dict[str, Any], exports: dict[str, Path], read_by_older: dict[str, Any]
) -> None:
    ours, theirs = older_reader.read(exports[family], asked), dict(read_by_older[family])
    assert "error" not in theirs
    expected, found = (torch.tensor(answer.pop("logits")) for answer in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.std()))
    assert theirs == ours
    assert ours["text"] == TEXT
    assert ours["shown"] == "Größe, 日本語 🙂: a line counts."


def test_the_names_that_older_versions_read_say_the_same() -> None:
    plain = {"model_type": "llama", "dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert older_config(plain) == plain | {"torch_dtype": "float32", "rope_theta": 7.0, "rope_scaling": None}
    scaled = older_config({"model_type": "phi3", "rope_parameters": LONG | {"original_max_position_embeddings": 32}})
    assert sorted(scaled["rope_scaling"]) == ["long_factor", "short_factor", "type"]
    assert older_config({"model_type": "qwen3_moe", "num_local_experts": 4})["num_experts"] == 4
    assert older_config({"model_type": "gpt2", "n_positions": 64})["n_ctx"] == 64


@pytest.mark.parametrize(
    ("kinds", "every"), [("sfsf", 2), ("sssfs", 4), ("ff", 1), ("sss", 4), ("ssfffs", None), ("fs", None), ("", None)]
)
def test_kinds_of_layers_are_given_by_a_number_where_they_are_regular(kinds: str, every: int | None) -> None:
    named = [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds]
    assert older_config({"model_type": "gemma3_text", "layer_types": named}).get("sliding_window_pattern") == every
    assert "sliding_window_pattern" not in older_config({"model_type": "qwen3", "layer_types": named})
