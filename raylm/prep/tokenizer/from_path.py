"""A tokenizer that exists, from a folder or a file, as a folder that transformers loads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from raylm.config.prepare.tokenizer import TokenizerSettings
from raylm.errors import DataError
from raylm.prep.tokenizer.folder import (
    CONFIG,
    SAVED,
    TokenizerFiles,
    eos_in,
    no_end_of_text,
    parsed,
    read_configs,
    write_tokenizer,
)
from raylm.prep.tokenizer.from_sentencepiece import from_sentencepiece
from raylm.prep.tokenizer.from_tiktoken import from_tiktoken, is_ranks
from raylm.rows import opened
from raylm.storage import StoragePath

_COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def import_tokenizer(source: StoragePath, folder: StoragePath, settings: TokenizerSettings) -> None:
    """Bring what is at `source` into `folder`, as a fast tokenizer: a Hugging Face folder, or another library's file.

    Whatever is wrong with it is said before anything is written.
    """
    if source.is_file():
        _from_file(source, folder, settings)
        return
    files = {place.name: place for place in source.list() if place.is_file()}
    if not files:
        raise DataError(
            f"no tokenizer in {source.url}: the folder is missing or empty",
            hint="set prepare.tokenizer.path to a folder with tokenizer.json, a SentencePiece .model or tiktoken "
            "ranks, or remove it to train one; one of the Hugging Face hub has to be fetched first: `hf download`",
        )
    lone = [place for name, place in files.items() if name.endswith((".model", ".tiktoken"))]
    if SAVED in files:
        _copy(source, folder, settings, source.url)
    elif len(lone) == 1 and CONFIG not in files:
        _from_file(lone[0], folder, settings)
    else:
        _convert(source, files, folder, settings)


def _from_file(file: StoragePath, folder: StoragePath, settings: TokenizerSettings) -> None:
    with opened(file) as stream:  # unpacked, where its name says that it is compressed
        content = stream.read()
    if content.lstrip()[:1] == b"{":
        tokenizer = parsed(content, file.url)
        if settings.eos is None or tokenizer.token_to_id(settings.eos) is None:
            raise no_end_of_text(file.url, settings.eos, tokenizer)
        built = TokenizerFiles(content, settings.eos)
    elif is_ranks(content):
        built = from_tiktoken(content, file.url, settings.pattern, settings.eos)
    else:
        built = from_sentencepiece(content, file.url, settings.eos)
    write_tokenizer(
        folder, TokenizerFiles(**vars(built) | {"definition": _extended(built.definition, file.url, settings)})
    )


def _copy(source: StoragePath, folder: StoragePath, settings: TokenizerSettings, url: str) -> None:
    """Copy a Hugging Face folder; `url` is for the messages."""
    files = {place.name: place for place in source.list() if place.is_file()}
    definition = _extended(files[SAVED].read_bytes(), files[SAVED].url, settings)
    configs = read_configs(source)
    eos = settings.eos or eos_in(configs)
    tokenizer = parsed(definition, files[SAVED].url)
    if eos is None or tokenizer.token_to_id(eos) is None:
        raise no_end_of_text(url, eos, tokenizer)
    for name in sorted(name for name in files if name.startswith(_COPIED) and name not in (SAVED, CONFIG)):
        (folder / name).write_bytes(files[name].read_bytes())
    if settings.eos is not None or CONFIG not in files:
        config = configs[0] if CONFIG in files else {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / CONFIG).write_text(json.dumps(config | {"eos_token": eos}, indent=1, sort_keys=True))
    else:
        (folder / CONFIG).write_bytes(files[CONFIG].read_bytes())
    (folder / SAVED).write_bytes(definition)


def _extended(definition: bytes, url: str, settings: TokenizerSettings) -> bytes:
    """The definition with the special tokens that were asked for and that it lacks, after all others."""
    from tokenizers import AddedToken

    tokenizer = parsed(definition, url)
    lacking = [token for token in settings.special_tokens if tokenizer.token_to_id(token) is None]
    if not lacking:
        return definition
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in lacking])
    return bytes(tokenizer.to_str(pretty=False), "utf-8")


def _convert(
    source: StoragePath, files: dict[str, StoragePath], folder: StoragePath, settings: TokenizerSettings
) -> None:
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
        _copy(StoragePath(str(saved)), folder, settings, source.url)
