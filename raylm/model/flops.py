"""The shape of a model, the floating-point operations of a token, and the peak of devices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raylm.config.model import ModelSettings
from raylm.errors import ConfigError, first_line
from raylm.model.presets import SHAPES

# Dense bf16 peak in FLOP/s by the words of a device's name (vendors' data sheets), for MFU.
PEAK_FLOPS = {
    "A100": 312e12,
    "B200": 2250e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder. `parameters` counts tied weights once; `looked_up` is the part that is no matrix product.

    `largest` is the biggest single parameter, `block` the most parameters whose first weights are made together;
    widths are those of all heads together.
    """

    parameters: int
    looked_up: int
    largest: int
    block: int
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    query_width: int
    key_width: int
    heads: int


def shape_of(
    settings: ModelSettings, vocab_size: int, sequence_length: int, auto_class: str = "AutoModelForCausalLM"
) -> ModelShape:
    """The shape of a job's model: a preset's by arithmetic, any other's counted by torch on its meta device."""
    if settings.preset is None or auto_class != "AutoModelForCausalLM":
        return _counted_shape(settings.model_dump_json(), vocab_size, sequence_length, auto_class)
    preset = SHAPES[settings.preset]
    hidden, table = preset.hidden, vocab_size * preset.hidden
    block = 4 * hidden * hidden + 3 * hidden * preset.intermediate + 2 * hidden
    return ModelShape(
        parameters=preset.layers * block + hidden + (table if preset.tied else 2 * table),
        looked_up=0 if preset.tied else table,
        largest=max(table, hidden * preset.intermediate),
        block=max(table, block),
        vocabulary=vocab_size,
        hidden=hidden,
        intermediate=preset.intermediate,
        layers=preset.layers,
        query_width=hidden,
        key_width=hidden,
        heads=preset.heads,
    )


def flops_per_token(shape: ModelShape, sequence_length: int) -> int:
    """Forward and backward: 6 per matrix parameter and 12 x layers x width x length for attention.

    As in PaLM, appendix B (arXiv:2204.02311): attention is counted whole, not halved for the causal mask, and
    recomputed activations are not counted. An input embedding that is only looked up multiplies nothing. Of a
    mixture of experts every expert is counted, which is too many.
    """
    return 6 * (shape.parameters - shape.looked_up) + 12 * shape.layers * shape.query_width * sequence_length


def peak_flops(device: str) -> float | None:
    """The peak of the device of this name, such as "NVIDIA L40S"; None where it is not known."""
    words = set(re.split(r"[^0-9A-Za-z]+", device))  # whole words: an L40S is no L4, a GH200 no H200
    named = [name for name in PEAK_FLOPS if set(name.split()) <= words]
    return PEAK_FLOPS[max(named, key=len)] if named else None


@lru_cache(maxsize=8)  # MFU asks at every step, and counting builds the module
def _counted_shape(settings_json: str, vocab_size: int, sequence_length: int, auto_class: str) -> ModelShape:
    from raylm.model.build import empty_model, model_config
    from raylm.model.config_keys import CONFIG_ERRORS

    settings = ModelSettings.model_validate_json(settings_json)
    try:
        config = model_config(settings, vocab_size, sequence_length)
        return _shape(config, empty_model(config, settings.attention, auto_class))
    except (*CONFIG_ERRORS, RuntimeError, AssertionError, ImportError) as error:
        # What transformers' some hundred families raise over a value that each understands in its own way.
        raise ConfigError(
            f"the model cannot be built: {type(error).__name__}: {first_line(error)}",
            hint="correct the values of model.config, or use another model type such as llama, mistral or gpt2",
        ) from error


def _shape(config: Any, model: Any) -> ModelShape:
    from raylm.model.first_weights import units_of

    sizes = [parameter.numel() for parameter in model.parameters()]
    # Some families have no attention, others heads of several sizes: the largest stands for all.
    hidden, heads = int(config.hidden_size), _size(config, ("num_attention_heads",), 0)
    width = _size(config, ("head_dim",), hidden // max(1, heads))
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs.weight
    return ModelShape(
        parameters=sum(sizes),
        looked_up=0 if tied else inputs.weight.numel(),
        largest=max(sizes),
        block=max(unit.elements for unit in units_of(model)),
        vocabulary=int(config.vocab_size),
        hidden=hidden,
        intermediate=_size(config, ("intermediate_size", "n_inner", "ffn_dim"), 4 * hidden),
        layers=int(config.num_hidden_layers),
        query_width=heads * width,
        key_width=_size(config, ("num_key_value_heads",), heads) * width,
        heads=heads,
    )


def _size(config: Any, names: Sequence[str], otherwise: int) -> int:
    """The first of these that a config says; the largest, where it says one for each layer."""
    for name in names:
        try:
            value: Any = getattr(config, name, None)
        except RuntimeError:  # transformers', where layers differ
            value = [getattr(layer, name, None) for layer in config.per_layer_config]
        found = [int(each) for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]
        if found:
            return max(found)
    return otherwise
