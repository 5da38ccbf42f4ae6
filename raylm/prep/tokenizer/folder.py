"""The folder of a tokenizer: files that transformers loads, and facts about it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.errors import DataError, RaylmError
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAVED = "tokenizer.json"
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that is to become a folder.

    definition: what tokenizer.json holds. bos, unk: None where the vocabulary has none.
    """

    definition: bytes
    eos: str
    bos: str | None = None
    pad: str | None = None
    unk: str | None = None

    def named(self) -> dict[str, str]:
        """The tokens that have a role, as transformers calls them; what pads is the end of text if nothing else is."""
        tokens = {
            "eos_token": self.eos,
            "bos_token": self.bos,
            "pad_token": self.pad or self.eos,
            "unk_token": self.unk,
        }
        return {role: token for role, token in tokens.items() if token is not None}


@dataclass(frozen=True)
class TokenizerFacts:
    """What shards record of a tokenizer; `fingerprint` is a digest of its whole definition."""

    fingerprint: str
    vocab_size: int
    eos_id: int


def write_tokenizer(folder: StoragePath, built: TokenizerFiles) -> None:
    """Write a tokenizer as a folder that transformers loads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **built.named(),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": 1_000_000_000,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / SAVED).write_bytes(built.definition)


def parsed(definition: bytes, url: str) -> Any:
    """The tokenizer that tokenizer.json holds; `url` is for the message."""
    from tokenizers import Tokenizer

    with refused_by_library(lambda error: DataError(f"{url} is no tokenizer: {error}", hint="restore the file")):
        return Tokenizer.from_str(definition.decode())


@contextlib.contextmanager
def refused_by_library(refusal: Callable[[Exception], RaylmError]) -> Iterator[None]:
    """Raise the error that `refusal` makes of whatever the tokenizers library raises inside."""
    try:
        yield
    except Exception as error:  # the library's own errors are bare Exceptions, so there is nothing narrower to catch
        raise refusal(error) from error


@functools.lru_cache(maxsize=4)
def load(folder: StoragePath) -> tuple[Any, TokenizerFacts]:
    """The tokenizer in this folder, kept a process; special tokens that a text happens to spell stay plain text."""
    place = folder / SAVED
    definition = place.read_bytes()
    tokenizer = parsed(definition, place.url)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    eos = eos_in(read_configs(folder))
    eos_id = None if eos is None else tokenizer.token_to_id(eos)
    if eos_id is None:
        raise no_end_of_text(folder.url, eos, tokenizer)
    # Ids may have gaps: what the embedding has to hold is the largest id.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return tokenizer, TokenizerFacts(hashlib.sha256(definition).hexdigest()[:32], vocab_size, eos_id)


def no_end_of_text(url: str, named: str | None, tokenizer: Any) -> DataError:
    """The error that says which end of text is missing in the tokenizer at `url`, and what could be named instead."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    such = f"one of its special tokens ({', '.join(special[:8])})" if special else "a token of its vocabulary"
    what = "names no end-of-text token" if named is None else f"has no token {named!r} to end a text with"
    return DataError(f"the tokenizer {url} {what}", hint=f"set prepare.tokenizer.eos to {such}: it tells texts apart")


def read_configs(folder: StoragePath) -> list[dict[str, Any]]:
    """What the folder's files say about special tokens, the most telling first."""
    places = (folder / name for name in (CONFIG, "special_tokens_map.json"))
    return [mapping_in(place) for place in places if place.is_file()]


def eos_in(configs: list[dict[str, Any]]) -> str | None:
    """The end-of-text token that the first of these names."""
    return token_in(configs, "eos_token")


def token_in(configs: list[dict[str, Any]], name: str) -> str | None:
    """The special token of this name that the first of these gives, as a text or a record."""
    for config in configs:
        token = config.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None


def mapping_in(place: StoragePath) -> dict[str, Any]:
    """What a file of settings holds; DataError where it is no JSON object."""
    try:
        content = json.loads(place.read_bytes())
    except ValueError as error:
        raise DataError(f"{place.url} is not JSON: {error}", hint="restore the file") from error
    if not isinstance(content, dict):
        raise DataError(f"{place.url} holds no mapping of settings", hint="restore the file")
    return content


@functools.lru_cache(maxsize=4)
def partial_and_unknown(folder: StoragePath) -> Mapping[str, NDArray[np.bool_]]:
    """Which ids stand for less than a character ("partial", a byte or two of one), and which for none ("unknown")."""
    import numpy as np

    tokenizer, facts = load(folder)
    size = facts.vocab_size
    # A part of a character is no UTF-8 by itself, and the decoder says so with this sign.
    partial = np.array(["\ufffd" in text for text in tokenizer.decode_batch([[number] for number in range(size)])])
    unknown = np.zeros(size, dtype=bool)
    model = json.loads((folder / SAVED).read_bytes())["model"]
    name = model.get("unk_token")
    number = model.get("unk_id") if name is None else tokenizer.token_to_id(name)
    if number is not None:
        unknown[number] = True
    return {"partial": partial & ~unknown, "unknown": unknown}
