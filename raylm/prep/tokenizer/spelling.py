"""What a text must not be cut into, control tokens, and what a tokenizer cannot spell of it.

A tokenizer is told to take the spelling of a special token for plain text, but its model may still find the whole token
in its vocabulary: unigram models and those that look for whole words do.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raylm.errors import DataError
from raylm.prep.tokenizer.folder import SAVED, load, partial_and_unknown
from raylm.storage import StoragePath

_RARE = ("\u0378", "\U000e0080", "\x07")
BYTE = re.compile("<0x[0-9A-F]{2}>")

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
    pieces = byte_pieces(folder)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for number, spelling, (start, stop) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
        found_whole = pieces is not None and pieces[number] and stop - start == len(spelling)
        ids += _in_two(tokenizer, spelling, control, folder) if control[number] or found_whole else [number]
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
    definition = json.loads((folder / SAVED).read_bytes())
    model = definition["model"]
    unknown = model.get("unk_token") if model.get("unk_token") is not None else model.get("unk_id")
    if model.get("type") in ("WordLevel", "WordPiece") and unknown not in model["vocab"]:
        raise _no_unknown(folder, f"{unknown!r} is not in its vocabulary")
    if _takes_out(definition.get("normalizer")) or _takes_out(definition.get("pre_tokenizer")):
        return True
    if unknown is not None or model.get("byte_fallback") or model.get("type") == "WordPiece":
        return False
    tokenizer, _ = load(folder)
    if model.get("type") == "Unigram":
        given = {piece for piece, _ in model["vocab"]}
        if not given.issuperset(letter for probe in _RARE for letter in _as_the_model_sees(tokenizer, probe)):
            raise _no_unknown(folder, "names none")
    return not all(tokenizer.encode(letter, add_special_tokens=False).ids for letter in _RARE)


def _as_the_model_sees(tokenizer: Any, text: str) -> str:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return text
    return "".join(part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))


def _no_unknown(folder: StoragePath, why: str) -> DataError:
    return DataError(
        f"the tokenizer {folder.url} stops at characters that it does not know: it has no unknown token ({why})",
        hint="give it one, or bytes to spell them with, or bring another tokenizer",
    )


def _takes_out(part: Any) -> bool:
    """Whether a normalizer or pre-tokenizer, or one within it, leaves out what its pattern finds, but for blanks."""
    if isinstance(part, list):
        return any(map(_takes_out, part))
    if not isinstance(part, dict):
        return False
    removes = part.get("behavior") == "Removed" or (part.get("type") == "Replace" and part.get("content") == "")
    return removes or part.get("type") == "CharDelimiterSplit" or any(map(_takes_out, part.values()))


@functools.lru_cache(maxsize=4)
def byte_pieces(folder: StoragePath) -> NDArray[np.bool_] | None:
    """Which ids are single bytes that a unigram model may also find by their spelling, `<0x41>`; None for others.

    It does where a text has other characters without a piece, whose score is below that of the bytes.
    """
    import numpy as np

    model = json.loads((folder / SAVED).read_bytes())["model"]
    if model.get("type") != "Unigram" or not model.get("byte_fallback"):
        return None
    tokenizer, facts = load(folder)
    found = np.zeros(facts.vocab_size, dtype=bool)
    found[[number for token, number in tokenizer.get_vocab().items() if BYTE.fullmatch(token)]] = True
    return found


def lost_characters(text: str, offsets: Sequence[tuple[int, int]]) -> int:
    """How many characters of a text, white space aside, no token stands for."""
    lost, at = 0, 0
    for start, stop in offsets:
        lost += sum(not letter.isspace() for letter in text[at:start])
        at = max(at, stop)
    return lost + sum(not letter.isspace() for letter in text[at:])
