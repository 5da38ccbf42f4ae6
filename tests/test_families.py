"""Families of transformers: trained, stopped, resumed at another size and stage, exported, and read by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raylm.config.load import load_job
from raylm.testing.datasets import VOCABULARY, job_settings, make_data, write_job
from raylm.testing.elastic import run_alone

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500000.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "falcon": {},
    "mistral": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
    "cwm": {"head_dim": 16},
    "modernbert-decoder": {},
}
STEPS, STOPPED = 5, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), rows=200)


def job_of(folder: Path, data: Path, family: str, name: str, steps: int, stage: int) -> Path:
    settings = job_settings(
        folder / "runs",
        data,
        name=name,
        steps=steps,
        stage=stage,
        model__preset=None,
        model__config=SMALL | {"model_type": family} | FAMILIES[family],
        model__attention="eager" if family == "gpt_oss" else "sdpa",
        optim__schedule="constant",
        optim__warmup_steps=0,
    )
    return write_job(folder, settings)


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_resumed_exported_and_read_by_transformers(tmp_path: Path, data: Path, family: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from raylm.hf_export import export
    from raylm.model.build import config_from
    from raylm.run.folder import RunFolder
    from raylm.trained import Info, Trained, _loaded, find_checkpoint

    whole = run_alone(job_of(tmp_path, data, family, "whole", STEPS, stage=1))
    run_alone(job_of(tmp_path, data, family, "part", STOPPED, stage=3), workers=2)
    file = job_of(tmp_path, data, family, "part", STEPS, stage=1)
    resumed = run_alone(file)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-4)

    run = RunFolder.of(load_job(file))
    found = find_checkpoint(run.path)
    attention = found.state.model.attention
    ours = _loaded(found, config_from(found.state.model_config), "fp32", attention).eval()
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, "w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0")
    info = Info("checkpoint", found.path, run.path, found.step, "fp32", None)
    export(Trained(ours, tokenizer, info), str(tmp_path / "exported"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation=attention).eval()
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=tokens).logits, ours(input_ids=tokens).logits, atol=1e-6)
        greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(theirs.generate(tokens, **greedy), ours.generate(tokens, **greedy))
