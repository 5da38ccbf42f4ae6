"""What a text must not be cut into, control tokens, and what a tokenizer cannot spell of it.

A tokenizer is told to take the spelling of a special token for plain text, but its model may still find the whole token
in its vocabulary: unigram models and those that look for whole words do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raylm.errors import DataError
from raylm.prep.tokenizer.folder import SAVED, load, partial_and_unknown
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@functools.lru_cache(maxsize=4)
def control_ids(folder: StoragePath) -> NDArray[np.bool_]:
    """Which ids no text may be cut into: the end of text, and special tokens but the unknown one."""
    import numpy as np

    tokenizer, facts = load(folder)
    found = np.zeros(facts.vocab_size, dtype=bool)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        found[number] = token.special
    found[facts.eos_id] = True
    return found & ~partial_and_unknown(folder)["unknown"]


def spelled_apart(folder: StoragePath, text: str) -> list[int]:
    """The ids of a text in which the spelling of a control token stands, cut so that it is none."""
    tokenizer, _ = load(folder)
    control = control_ids(folder)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for number, spelling in zip(encoding.ids, encoding.tokens, strict=True):
        ids += [number] if not control[number] else _in_two(tokenizer, spelling, control, folder)
    return ids


def _in_two(tokenizer: Any, spelling: str, control: NDArray[np.bool_], folder: StoragePath) -> list[int]:
    for cut in range(1, len(spelling)):
        parts = [token.id for part in (spelling[:cut], spelling[cut:]) for token in tokenizer.model.tokenize(part)]
        if parts and not control[parts].any():
            return parts
    raise DataError(
        f"a text holds {spelling!r}, which is a control token of {folder.url} and cannot be spelled in another way",
        hint="set prepare.tokenizer.eos to a token that no text holds, or bring a tokenizer that spells its characters",
    )


@functools.lru_cache(maxsize=4)
def may_lose(folder: StoragePath) -> bool:
    """Whether the tokenizer drops characters that it has no token for: it has no unknown token and spells no bytes."""
    model = json.loads((folder / SAVED).read_bytes())["model"]
    unknown = model.get("unk_token") if model.get("unk_token") is not None else model.get("unk_id")
    if unknown is not None or model.get("byte_fallback") or model.get("type") == "WordPiece":
        return False
    tokenizer, _ = load(folder)
    return not all(
        tokenizer.encode(letter, add_special_tokens=False).ids for letter in ("\u0378", "\U000e0080", "\x07")
    )


def lost_characters(text: str, offsets: Sequence[tuple[int, int]]) -> int:
    """How many characters of a text, white space aside, no token stands for."""
    lost, at = 0, 0
    for start, stop in offsets:
        lost += sum(not letter.isspace() for letter in text[at:start])
        at = max(at, stop)
    return lost + sum(not letter.isspace() for letter in text[at:])
