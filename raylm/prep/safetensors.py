"""Small facts beside arrays in one safetensors file, as what operators learn is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_safetensors(arrays: Mapping[str, NDArray[Any]], key: str, facts: Mapping[str, Any]) -> bytes:
    """The arrays, and under `key` of the metadata the facts as JSON."""
    from safetensors.numpy import save

    return bytes(save(dict(arrays), {key: json.dumps(facts, sort_keys=True)}))


def from_safetensors(content: bytes, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What to_safetensors was given; KeyError, ValueError or SafetensorError when it is something else."""
    from safetensors.numpy import load

    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts: dict[str, Any] = json.loads(header["__metadata__"][key])
    return arrays, facts
