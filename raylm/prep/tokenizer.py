"""The tokenizer: a byte-level BPE trained on the documents, or one loaded from a Hugging Face folder.

Comes in: texts, or a folder. Leaves: a folder that transformers loads, and the few facts that shards need of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.errors import DataError
from raylm.storage import Place

END_OF_TEXT = "<|endoftext|>"
_SAVED = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


@dataclass(frozen=True)
class TokenizerFacts:
    """What shards record of a tokenizer; `fingerprint` is a digest of its whole definition."""

    fingerprint: str
    vocab_size: int
    eos_id: int


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """The definition (tokenizer.json) of a byte-level BPE trained on these texts; any text survives it unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return bytes(tokenizer.to_str(pretty=False), "utf-8")


def sample(texts: Iterable[str], most_bytes: int) -> Iterator[str]:
    """The first texts that together hold `most_bytes`, the last one cut."""
    left = most_bytes
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text.encode())


def write_trained(folder: Place, definition: bytes) -> None:
    """Write a trained tokenizer as a folder that transformers loads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": 1_000_000_000,
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / _SAVED).write_bytes(definition)


def copy_loaded(source: Place, folder: Place) -> None:
    """Bring a Hugging Face tokenizer folder into the output, as a fast tokenizer."""
    files = {place.name: place for place in source.list() if place.is_file()}
    if not files:
        raise DataError(
            f"no tokenizer in {source.url}: the folder is missing or empty",
            hint="set prepare.tokenizer.path to a folder with tokenizer.json, or remove it to train one",
        )
    if _SAVED in files:
        wanted = {name for name in files if name.startswith(_COPIED)}
        for name in sorted(wanted - {_SAVED}):
            (folder / name).write_bytes(files[name].read_bytes())
        (folder / _SAVED).write_bytes(files[_SAVED].read_bytes())
        return
    _convert(source, files, folder)


def _convert(source: Place, files: dict[str, Place], folder: Place) -> None:
    """A folder without tokenizer.json (SentencePiece, vocab.json and merges.txt) goes through transformers."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        here, saved = Path(scratch) / "in", Path(scratch) / "out"
        here.mkdir()
        for name, place in files.items():
            (here / name).write_bytes(place.read_bytes())
        try:
            AutoTokenizer.from_pretrained(str(here), local_files_only=True).save_pretrained(str(saved))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise DataError(
                f"{source.url} is no tokenizer that transformers can load: {error}",
                hint="set prepare.tokenizer.path to a folder with tokenizer.json",
            ) from error
        for path in sorted(saved.iterdir(), key=lambda entry: (entry.name == _SAVED, entry.name)):
            (folder / path.name).write_bytes(path.read_bytes())


@functools.lru_cache(maxsize=4)
def load(folder: Place) -> tuple[Any, TokenizerFacts]:
    """The tokenizer in this folder, kept a process; special tokens that a text happens to spell stay plain text."""
    from tokenizers import Tokenizer

    definition = (folder / _SAVED).read_bytes()
    try:
        tokenizer = Tokenizer.from_str(definition.decode())
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{(folder / _SAVED).url} is no tokenizer: {error}", hint="restore the file") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    eos = _eos_token(folder)
    eos_id = tokenizer.token_to_id(eos)
    if eos_id is None:
        raise DataError(
            f"the tokenizer in {folder.url} names {eos!r} as its end of text, but has no such token",
            hint=f"set eos_token in {_CONFIG} to a token of its vocabulary",
        )
    # Ids may have gaps: what the embedding has to hold is the largest id.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return tokenizer, TokenizerFacts(hashlib.sha256(definition).hexdigest()[:32], vocab_size, eos_id)


def _eos_token(folder: Place) -> str:
    for name in (_CONFIG, "special_tokens_map.json"):
        place = folder / name
        if place.is_file():
            token = json.loads(place.read_bytes()).get("eos_token")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                return token
    raise DataError(
        f"the tokenizer in {folder.url} names no end-of-text token",
        hint=f"set eos_token in {_CONFIG}: documents are told apart by it",
    )
