"""What a model can do, tried on a small twin of it rather than inferred from its name or its signature.

The twin has the family's parts and switches with few layers, heads and words, so that a trial takes a moment whatever
the model's size is.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylm.config.model import ModelSettings
from raylm.errors import ConfigError
from raylm.model.build import model_config, unfilled_from
from raylm.model.config_keys import CONFIG_ERRORS
from raylm.model.first_weights import Drawn, place
from raylm.model.fitness import text_part
from raylm.model.token_ids import TOKEN_IDS

# Of the scores' own spread. What a token of another document adds is a thousand times as much, rounding a hundredth.
TOLERANCE = 1e-4
_LENGTH, _SECOND = 12, 5  # of the trial's row, and where its second document starts
_WORDS = 64
_NO_POSITIONS = (TypeError, RuntimeError)  # what a model raises that takes no positions, or not these

# (what a config may call it, how many the twin has at most)
_FEWER = (
    ("vocab_size", _WORDS),
    ("num_local_experts", 4),
    ("num_experts", 4),
    ("n_routed_experts", 4),
    ("num_experts_per_tok", 2),
    ("n_group", 1),
    ("topk_group", 1),
)


def try_model(settings: ModelSettings, vocab_size: int, sequence_length: int, *, eos_id: int | None = None) -> None:
    """Raise ConfigError when a model cannot be trained to predict the next token the way the job says.

    Tried: that it can be built and called with its attention, that positions count from 0, that no score depends on a
    later token, and with model.document_attention that none depends on another document of its row.
    """
    config = model_config(settings, vocab_size, sequence_length, eos_id=eos_id)
    text = text_part(config)
    if text is None:
        raise ConfigError(
            f"model type {config.model_type!r} joins several models, of which several read text",
            hint="use a decoder such as llama, mistral, qwen2 or gpt2",
            key="model.config",
        )
    if text is not config:
        raise ConfigError(
            f"model type {config.model_type!r} joins several models, of which only one reads text",
            hint=f"train its text model: model_type {text.model_type}",
            key="model.config",
        )
    model = _twin(settings, config)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, _WORDS - 1, (1, _LENGTH)))
    scores = _scores(model, tokens)
    later = tokens.clone()
    later[0, -1] += 1
    if _differ(_scores(model, later)[:, :-1], scores[:, :-1]):
        raise ConfigError(
            f"model type {config.model_type!r} sees the tokens it is to predict: its scores change with later ones",
            hint="use a decoder such as llama, or set is_decoder: true in model.config where the family has it",
            key="model.config",
        )
    if settings.document_attention and not _isolates(model, tokens):
        raise ConfigError(
            f"model type {config.model_type!r} does not keep the documents of a row apart with {settings.attention} "
            "attention: its scores change with the document before",
            hint="set model.document_attention to false, or use another model type, such as llama",
            key="model.document_attention",
        )


def _twin(settings: ModelSettings, config: Any) -> Any:
    """The small model, with weights; with fewer layers only, where a smaller one cannot be built."""
    for shrink in (_small, _shallow):
        try:
            made = shrink(config)
            model = unfilled_from(settings, made)
            place(model, Drawn(0))
            model.eval()
            _check_positions(model)
            _scores(model, torch.ones(1, 2, dtype=torch.long))
        except (ConfigError, *CONFIG_ERRORS, RuntimeError, AssertionError) as error:
            if shrink is _shallow:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(
                    f"a {config.model_type!r} model cannot be run: {error}",
                    hint="correct the values of model.config, or use another model type",
                    key="model.config",
                ) from error
            continue
        return model
    raise AssertionError


def _scores(model: Any, tokens: Tensor, **more: Any) -> Tensor:
    """(rows, sequence, vocabulary) logits."""
    with torch.no_grad():
        scores: Tensor = model(input_ids=tokens, use_cache=False, **more).logits
    return scores


def _check_positions(model: Any) -> None:
    """Raise ConfigError for a model that numbers positions in its own way when it is given none, as in training.

    Whoever generates with it gives it 0, 1, …, and would get other scores than it was trained for. RoBERTa and its
    kin count from the pad token.
    """
    tokens = torch.arange(3, 3 + _LENGTH)[None]
    try:
        given = _scores(model, tokens, position_ids=torch.arange(_LENGTH)[None])
    except _NO_POSITIONS:
        return
    try:
        own = _scores(model, tokens)
    except _NO_POSITIONS:
        own = given + torch.inf  # it counts from a token that its config does not name
    if _differ(own, given):
        raise ConfigError(
            f"model type {model.config.model_type!r} numbers positions in a way of its own, which generating does not",
            hint="use a decoder such as llama, mistral, qwen2 or gpt2",
            key="model.config",
        )


def _isolates(model: Any, tokens: Tensor) -> bool:
    positions = torch.cat([torch.arange(_SECOND), torch.arange(_LENGTH - _SECOND)])[None]
    try:
        together = _scores(model, tokens, position_ids=positions)
    except _NO_POSITIONS:
        return False  # it takes no positions, or not those of several documents
    parts = [_scores(model, part) for part in (tokens[:, :_SECOND], tokens[:, _SECOND:])]
    return not _differ(together, torch.cat(parts, dim=1))


def _differ(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) > TOLERANCE * float(other.std() + 1e-30)


def _small(config: Any) -> Any:
    """The config with few layers, heads, experts and words; a head's width stays, on which positions depend."""
    made = _shallow(config)
    for name, most in _FEWER:
        value = getattr(made, name, None)
        if isinstance(value, int) and value > most:
            setattr(made, name, most)
    for name in TOKEN_IDS:
        if getattr(made, name, None) is not None:
            setattr(made, name, 0)  # in its vocabulary, and a number, which some families want
    heads, hidden = made.num_attention_heads, made.hidden_size
    shared = heads // (getattr(made, "num_key_value_heads", None) or heads)  # queries for each key
    fewer = shared if shared > 1 else min(heads, 2)
    width = getattr(made, "head_dim", None) or hidden // heads
    made.num_attention_heads = fewer
    if getattr(made, "num_key_value_heads", None):
        made.num_key_value_heads = fewer // shared
    made.hidden_size = fewer * width
    if isinstance(inner := getattr(made, "intermediate_size", None), int):
        made.intermediate_size = min(inner, 2 * made.hidden_size)
    return made


def _shallow(config: Any) -> Any:
    """The config with two layers, or one of each kind where it lists kinds."""
    made = copy.deepcopy(config)
    layers = made.num_hidden_layers
    kinds = getattr(made, "layer_types", None)
    kept = list(range(min(2, layers)))
    if isinstance(kinds, list) and len(kinds) == layers:
        kept = sorted({*kept, *(kinds.index(kind) for kind in kinds)})
    made.num_hidden_layers = len(kept)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:
            setattr(made, name, [value[layer] for layer in kept])
    return made
