"""Whether a transformers config describes a network that can be trained here, in words; asked before one is built.

What it lets pass may still not work: who builds the network turns what transformers raises into words as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from raylm.errors import ConfigError

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_ROPES = ("default", "axial", *ROPE_INIT_FUNCTIONS)
_DECODER = "use a decoder such as llama, mistral, qwen2 or gpt2"


def check_config(config: Any, given: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a config that cannot be trained; `given` is the mapping that it was made of."""
    for error in (_joined(config), _quantized(given), _padded(config), *_unknown_names(config)):
        if error is not None:
            raise error


def _joined(config: Any) -> ConfigError | None:
    """Models of several parts say the sizes of none; other parts than text would be built and never trained."""
    if _has(config, "vocab_size") and _has(config, "hidden_size"):
        return None
    text = text_part(config)
    if text is config:
        missing = "vocab_size" if not _has(config, "vocab_size") else "hidden_size"
        return ConfigError(f"model type {config.model_type!r} has no {missing}, so it is no text model", hint=_DECODER)
    parts = ", ".join(sorted(config.sub_configs))
    kind = getattr(text, "model_type", None)
    alone = f"use its text model alone: {kind}" if kind in CONFIG_MAPPING else _DECODER
    return ConfigError(f"model type {config.model_type!r} joins several models ({parts})", hint=alone)


def text_part(config: Any) -> Any:
    """The config of the part of a model that reads text, often itself; None where several do."""
    try:
        return config.get_text_config()
    except ValueError:
        return None


def _quantized(given: Mapping[str, Any]) -> ConfigError | None:
    quantized = given.get("quantization_config")
    if not quantized:
        return None
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    return ConfigError(
        f"the model's weights are quantized ({method or 'quantization_config in its config'}), and such weights cannot "
        "be trained",
        hint="use the model's folder in bf16 or fp32, from before it was quantized",
    )


def _padded(config: Any) -> ConfigError | None:
    pad = getattr(config, "pad_token_id", None)
    if not isinstance(pad, int) or 0 <= pad < config.vocab_size:
        return None
    return ConfigError(
        f"the model's pad_token_id={pad} is not in its vocabulary of {config.vocab_size}",
        hint="take pad_token_id out of the model's config; training pads nothing",
    )


def _unknown_names(config: Any) -> Iterator[ConfigError]:
    """Activations and position embeddings are looked up by name when the network is built."""
    for key in _ACTIVATIONS:
        name = getattr(config, key, None)
        if isinstance(name, str) and name not in ACT2FN:
            yield _unknown(key, name, ACT2FN)
    rope = getattr(config, "rope_parameters", None)
    for one in (
        (rope, *rope.values()) if isinstance(rope, Mapping) else ()
    ):  # one for all layers, or one a kind of layer
        name = one.get("rope_type") if isinstance(one, Mapping) else None
        if name is not None and name not in _ROPES:
            yield _unknown("rope_type", name, _ROPES)


def _unknown(key: str, name: Any, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1)
    return ConfigError(
        f"the model's {key}={name!r} is unknown to the installed transformers",
        hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}",
    )


def _has(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), int)
