"""Keys of an inline `model.config` that the model's family does not have: transformers keeps what nothing reads."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from raylm.errors import ConfigError

log = logging.getLogger(__name__)

# What the families' own validators raise over a value.
CONFIG_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    ArithmeticError,
    NotImplementedError,
    StrictDataclassError,
)
_NEAR = 0.8
# Older spellings that transformers turns into its own while it reads a config.
_OLDER = frozenset(
    {"rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_pct", "rotary_emb_base", "partial_rotary_factor"}
    | {"torch_dtype", "model_type", "architectures", "transformers_version", "auto_map", "attn_implementation"}
    | {"output_attentions", "output_hidden_states", "return_dict", "use_return_dict"}
)


def check_keys(given: Mapping[str, Any], config: Any) -> None:
    """Refuse a key that looks like another one misspelt, and warn of others that the family does not have."""
    known = _known(config)
    unknown = sorted(key for key in given if key not in known)
    for key in unknown:
        near = difflib.get_close_matches(key, known - given.keys(), 1, _NEAR)
        if near:
            raise ConfigError(
                f"model.config.{key}={given[key]!r}: a {config.model_type!r} model has no such key",
                hint=f"did you mean {near[0]}?",
                key="model.config",
            )
    if unknown:
        log.warning(
            "model.config: a %r model does not know %s, and nothing reads %s",
            config.model_type,
            ", ".join(unknown),
            "it" if len(unknown) == 1 else "them",
        )


def _known(config: Any) -> set[str]:
    """What a family's config takes: its arguments, its attributes and their other names."""
    kind = type(config)
    arguments: Iterable[str] = (
        name for base in kind.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters
    )
    annotated = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
    try:
        attributes = set(vars(kind()))
    except CONFIG_ERRORS as error:  # a family whose config cannot be made from nothing
        log.debug("%s has no defaults: %s", kind.__name__, error)
        attributes = set()
    return {*arguments, *annotated, *attributes, *config.attribute_map, *config.attribute_map.values(), *_OLDER}
