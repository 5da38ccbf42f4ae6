"""The ids of special tokens that a model's config gets where it names none.

The family's own mean nothing to this tokenizer, so there are none; but some families' configs want a number.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from transformers import CONFIG_MAPPING

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def token_ids(model_type: Any, vocab_size: int, eos_id: int | None) -> dict[str, int | None]:
    """The end of text, and None for the others; the end of text for those too where None is no value of the family's.

    Without an end of text a number that is wanted is the family's own, or 0 where that is outside the vocabulary.
    """
    ids: dict[str, int | None] = dict.fromkeys(TOKEN_IDS) | {"eos_token_id": eos_id}
    for name, own in _wanted(model_type).items():
        within = isinstance(own, int) and 0 <= own < vocab_size
        ids[name] = eos_id if eos_id is not None else own if within else 0
    return ids


def _wanted(model_type: Any) -> dict[str, Any]:
    """The family's own ids under the names for which its config takes no None."""
    if model_type not in CONFIG_MAPPING:
        return {}
    kind = CONFIG_MAPPING[model_type]
    if not dataclasses.is_dataclass(kind):
        return {}  # a class that checks no types
    fields = [field for field in dataclasses.fields(kind) if field.name in TOKEN_IDS]
    return {field.name: field.default for field in fields if not _takes_none(field.type)}


def _takes_none(kind: Any) -> bool:
    return kind is Any or type(None) in get_args(kind)
