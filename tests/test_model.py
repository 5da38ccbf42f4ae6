"""The network: documents apart, an exact loss, the same weights from the same seed, and clear words for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from raylm.checkpoint.state import tied_names  # noqa: E402
from raylm.config.model import ModelSettings  # noqa: E402
from raylm.errors import ConfigError  # noqa: E402
from raylm.model.build import (  # noqa: E402
    build_model,
    config_dict,
    config_from,
    model_config,
)
from raylm.model.flops import shape_of  # noqa: E402
from raylm.model.presets import SHAPES  # noqa: E402
from raylm.objectives import cross_entropy as loss_module  # noqa: E402
from raylm.objectives.causal import Causal  # noqa: E402
from raylm.objectives.cross_entropy import cross_entropy_sum, next_token_loss, position_ids  # noqa: E402
from raylm.records import MicroBatch  # noqa: E402

VOCABULARY = 96
LENGTH = 24
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
SLIDING = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 5,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
FAMILIES = {"llama": LLAMA, "gpt2": GPT2, "mistral": SLIDING}


def build(config: dict[str, Any] | None = None, seed: int = 0, **settings: Any) -> Any:
    return build_model(
        ModelSettings(config=config or LLAMA, **settings), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=seed
    )


def rows(count: int, seed: int = 0) -> Any:
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def starts(*documents: list[int]) -> list[Any]:
    return [np.array(row, dtype=np.int32) for row in documents]


def masked_at(labels: Any, documents: list[Any]) -> Any:
    """Labels as the loader gives them: nothing predicts the first token of a document."""
    labels = labels.clone()
    for row, first in enumerate(documents):
        labels[row, first] = -100
    return labels


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_the_loss_and_gradients_of_each_document_alone(family: str, attention: str) -> None:
    model = build(FAMILIES[family], attention=attention, document_attention=True, dtype="fp32").eval()
    tokens, documents = rows(3), starts([0, 7, 8, 19], [0], [0, 23])
    packed = next_token_loss(model, tokens, masked_at(tokens, documents), documents)
    packed_gradients = torch.autograd.grad(packed, list(model.parameters()))
    alone = torch.zeros(())
    for row, first in zip(tokens, documents, strict=True):
        for start, stop in zip(first, [*first[1:], LENGTH], strict=True):
            document = row[None, start:stop]
            if document.shape[1] > 1:
                alone = alone + next_token_loss(model, document, document, None)
    alone_gradients = torch.autograd.grad(alone, list(model.parameters()))
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    for got, wanted in zip(packed_gradients, alone_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_without_document_attention_a_document_does_see_the_one_before() -> None:
    model, tokens, documents = build().eval(), rows(1), starts([0, 12])
    labels = masked_at(tokens, documents)
    apart, together = (next_token_loss(model, tokens, labels, given).item() for given in (documents, None))
    assert abs(apart - together) > 1e-4


def test_positions_start_again_with_each_document() -> None:
    assert position_ids(starts([0, 2, 5], [0]), 6).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]


def test_loss_is_torchs_cross_entropy_over_any_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 7, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, 2:5] = -100
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected * 0.3, logits)
    for elements in (1, 40, 1 << 20):
        monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", elements)
        got = cross_entropy_sum(logits, labels)
        (gradient,) = torch.autograd.grad(got * 0.3, logits)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda scores: cross_entropy_sum(scores, labels), (logits,))


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(4, 64, 50, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 50, (4, 64))
    got = cross_entropy_sum(logits, labels)
    got.backward()
    expected = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    assert got.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_a_micro_batch_without_labels_weighs_exactly_nothing() -> None:
    model, tokens = build(), rows(2)
    nothing = next_token_loss(model, tokens, torch.full_like(tokens, -100), None)
    nothing.backward()
    assert nothing.item() == 0.0
    assert weight_of(np.full((2, 8), -100)) == 0
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in model.parameters())


def test_infinite_scores_of_tokens_that_do_not_count_stay_out_of_the_loss() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    with torch.no_grad():
        logits[0] = float("inf")
    got = cross_entropy_sum(logits, torch.tensor([-100, 3]))
    got.backward()
    assert torch.isfinite(got)
    assert torch.isfinite(logits.grad).all()


def weight_of(labels: Any) -> float:
    """What causal language modelling says that a batch of these labels weighs."""
    rows = len(labels)
    numbers = np.zeros(rows, np.int64)
    micro = MicroBatch(0, np.zeros_like(labels), labels, (np.zeros(1, np.int32),) * rows, numbers, numbers)
    assert Causal().tokens(micro) == Causal().weight(micro)
    return Causal().weight(micro)


def test_the_sum_counts_what_it_is_over() -> None:
    labels = torch.tensor([[5, 1, -100, 2], [-100, -100, 4, -100]])
    assert weight_of(labels.numpy()) == 3


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    first = build(seed=3)
    torch.rand(17)
    before = torch.random.get_rng_state()
    second = build(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    other = build(seed=4)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.unique().numel() == 1 or not torch.equal(a, c), name


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    plain = build(FAMILIES[family], dropout=0.1)
    again = build(FAMILIES[family], dropout=0.1, activation_checkpointing=True)
    tokens = rows(2)
    for model in (plain, again):
        torch.manual_seed(1)
        next_token_loss(model, tokens, tokens, None).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.long
def test_a_compiled_model_gives_the_same_loss_under_the_same_names() -> None:
    plain, compiled = build(document_attention=True), build(document_attention=True, compile=True)
    tokens, documents = rows(2), starts([0, 9], [0, 3, 20])
    for given in (None, documents):
        a, b = (next_token_loss(model, tokens, tokens, given).item() for model in (plain, compiled))
        assert a == pytest.approx(b, rel=1e-6)
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_dropout_follows_the_random_seed_and_is_off_in_evaluation() -> None:
    model, tokens = build(dropout=0.2), rows(2)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(next_token_loss(model, tokens, tokens, None).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert next_token_loss(model, tokens, tokens, None).item() == next_token_loss(model, tokens, tokens, None).item()


@pytest.mark.parametrize("preset", SHAPES)
def test_every_preset_resolves(preset: str) -> None:
    config = model_config(ModelSettings(preset=preset), 1000, 64, eos_id=7)
    assert (config.vocab_size, config.max_position_embeddings, config.eos_token_id) == (1000, 64, 7)
    assert config.tie_word_embeddings is SHAPES[preset].tied


def test_tiny_is_about_a_million_parameters_without_embeddings() -> None:
    assert 0.9e6 < shape_of(ModelSettings(preset="tiny"), 512, 32).parameters - 512 * 128 < 1.2e6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_json(family: str) -> None:
    config = model_config(ModelSettings(config=FAMILIES[family], dropout=0.1), VOCABULARY, LENGTH)
    values = json.loads(json.dumps(config_dict(config)))
    assert config_dict(config_from(values)) == config_dict(config)


def test_weights_come_from_a_local_folder_tied_ones_too(tmp_path: Path) -> None:
    source = build(seed=5)
    source.save_pretrained(tmp_path)
    loaded = build_model(ModelSettings(path=str(tmp_path)), vocab_size=VOCABULARY, sequence_length=LENGTH, seed=9)
    for a, b in zip(source.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_config_file_may_be_named_by_itself_or_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    by_file, by_folder = (model_config(ModelSettings(config=str(p)), VOCABULARY, LENGTH) for p in (file, tmp_path))
    assert config_dict(by_file) == config_dict(by_folder)


def bad(settings: ModelSettings, vocab_size: int = VOCABULARY, sequence_length: int = LENGTH) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_model(settings, vocab_size=vocab_size, sequence_length=sequence_length, seed=0)
    return caught.value


def test_bad_models_are_refused_in_plain_words(tmp_path: Path) -> None:
    assert str(bad(ModelSettings())) == "the job says no model: model.preset, model.config and model.path are not set"
    assert bad(ModelSettings()).key == "model.preset"
    assert "unknown model_type 'lama'" in str(bad(ModelSettings(config={"model_type": "lama"})))
    assert "no model_type" in str(bad(ModelSettings(config={"hidden_size": 8})))
    assert "not a causal language model" in str(bad(ModelSettings(config={"model_type": "vit", "vocab_size": 96})))
    uneven = LLAMA | {"hidden_size": 30}
    assert "cannot work" in str(bad(ModelSettings(config=uneven)))
    mistyped = LLAMA | {"hidden_size": "wide"}
    assert "cannot work" in str(bad(ModelSettings(config=mistyped)))
    small = bad(ModelSettings(config=LLAMA | {"vocab_size": 50}))
    assert "vocabulary of 50 is smaller than the tokenizer's 96" in str(small)
    long = bad(ModelSettings(config=GPT2), sequence_length=LENGTH + 1)
    assert f"rows of {LENGTH + 1} tokens exceed the model's n_positions={LENGTH}" in str(long)
    assert all(error.hint for error in (small, long))
    no_dropout = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    assert "has no attention dropout" in str(bad(ModelSettings(config=no_dropout, dropout=0.1)))
    bloom = {"model_type": "bloom", "hidden_size": 16, "n_head": 2}
    assert "'bloom' has no sdpa attention" in str(bad(ModelSettings(config=bloom)))
    no_positions = ModelSettings(config=bloom, attention="eager", document_attention=True)
    assert "takes no position ids" in str(bad(no_positions))


def test_bad_model_folders_are_refused_in_plain_words(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert f"model.path='{missing}': there is no {missing}" in str(bad(ModelSettings(path=str(missing))))
    broken = tmp_path / "broken"
    build().save_pretrained(broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert str(broken) in str(bad(ModelSettings(path=str(broken))))
    weights.unlink()
    assert "cannot be loaded" in str(bad(ModelSettings(path=str(broken))))
    weights.write_bytes(whole)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks" in str(bad(ModelSettings(path=str(broken))))
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "cannot be loaded" in str(bad(ModelSettings(path=str(broken))))
    (broken / "config.json").write_text("{")
    assert "is not JSON" in str(bad(ModelSettings(path=str(broken))))


@pytest.mark.parametrize("preset", ["tiny", "llama-25m"])
def test_an_empty_model_has_the_names_shapes_ties_and_buffers_of_a_full_one(preset: Any) -> None:
    """What is not filled from a checkpoint's tensors, because it is computed, must be right from the start."""
    settings = ModelSettings(preset=preset)
    full, empty = (build_model(settings, vocab_size=512, sequence_length=64, seed=seed) for seed in (0, None))
    shapes = [{name: tuple(each.shape) for name, each in model.named_parameters()} for model in (full, empty)]
    assert shapes[0] == shapes[1]
    tied = [tied_names(model) for model in (full, empty)]
    assert tied[0] == tied[1] != {}
    computed = dict(full.named_buffers())
    assert computed.keys() == dict(empty.named_buffers()).keys()
    for name, buffer in empty.named_buffers():
        assert torch.equal(buffer, computed[name]), name
