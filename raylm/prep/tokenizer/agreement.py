"""Whether two tokenizers mean the same tokens by the same ids."""

from __future__ import annotations

from collections.abc import Mapping

from raylm.prep.tokenizer.folder import SAVED, parsed
from raylm.storage import StoragePath


def tokens_in(folder: StoragePath) -> dict[int, str] | None:
    """Id → token of the tokenizer in a folder; None where it has no tokenizer.json."""
    file = folder / SAVED
    if not file.exists():
        return None
    tokenizer = parsed(file.read_bytes(), file.url)
    return {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}


def disagreement(there: Mapping[int, str], here: Mapping[int, str]) -> str | None:
    """The first id that stands for two tokens, in words; None where all that both have agree.

    A library that saves a tokenizer anew changes the bytes of its file, and one may have more tokens than the other.
    """
    for number in sorted(there.keys() & here.keys()):
        if there[number] != here[number]:
            return f"id {number} is {there[number]!r} there and {here[number]!r} in the data"
    return None
