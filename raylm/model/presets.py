"""Named decoder shapes: comes in a preset's name, leaves the keyword arguments of a transformers LlamaConfig.

Widths are multiples of 64 and heads are 64 or 128 wide, which is what attention kernels and tensor cores like.
The vocabulary is not here: it is the tokenizer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raylm.config.model import PresetName


@dataclass(frozen=True)
class Preset:
    """A Llama-style decoder; `tied` shares the input embedding with the output head."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    tied: bool


# Small models tie: at a vocabulary of 32 000 a second embedding would be up to half of them.
SHAPES: dict[PresetName, Preset] = {
    "tiny": Preset(hidden=128, intermediate=512, layers=4, heads=4, tied=True),
    "llama-25m": Preset(hidden=384, intermediate=1024, layers=8, heads=6, tied=True),
    "llama-125m": Preset(hidden=768, intermediate=2048, layers=12, heads=12, tied=True),
    "llama-350m": Preset(hidden=1024, intermediate=2816, layers=24, heads=16, tied=True),
    "llama-1b": Preset(hidden=2048, intermediate=5632, layers=18, heads=16, tied=False),
    "llama-3b": Preset(hidden=3072, intermediate=8192, layers=26, heads=24, tied=False),
    "llama-7b": Preset(hidden=4096, intermediate=11008, layers=32, heads=32, tied=False),  # as Llama-2-7B
}


def preset_config(name: PresetName) -> dict[str, Any]:
    """The transformers config of a preset, as a plain mapping without `vocab_size`."""
    shape = SHAPES[name]
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
    }
