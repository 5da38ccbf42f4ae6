"""The manifest that makes a folder of shards a data set: what it holds, where it came from, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from raylm.errors import DataError
from raylm.storage import NotFound, StoragePath

MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
GROUP_ROWS = 64
FORMAT = "raylm-shards"
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One file of rows; `path` is relative to the data set's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetManifest:
    """What a data set is: its rows in order, their shape, and what they were made from.

    held_out_bytes: UTF-8 bytes of the held-out text. sources: counts by source name. settings: what preparation was
    asked for. steps: what each step dropped and changed. fertility: counts of text and tokens by source and language.
    `fingerprint` covers everything that shapes the rows, and neither paths nor times.
    """

    fingerprint: str
    sequence_length: int
    vocab_size: int
    dtype: str
    tokenizer: str
    eos_id: int
    group_rows: int
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    train_tokens: int
    held_out_tokens: int
    held_out_bytes: int
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()
    fertility: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    @property
    def train_rows(self) -> int:
        """Sequences of one epoch."""
        return sum(shard.rows for shard in self.train)

    @property
    def held_out_rows(self) -> int:
        """Sequences for held-out loss."""
        return sum(shard.rows for shard in self.held_out)


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every token id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def fingerprint(
    *,
    sequence_length: int,
    vocab_size: int,
    dtype: str,
    tokenizer: str,
    eos_id: int,
    group_rows: int,
    train: Sequence[Shard],
    held_out: Sequence[Shard],
) -> str:
    """A digest of everything that shapes the rows; equal inputs give equal fingerprints on any machine."""
    shaped = [VERSION, sequence_length, vocab_size, dtype, tokenizer, eos_id, group_rows]
    digests = [[[shard.rows, shard.sha256] for shard in shards] for shards in (train, held_out)]
    return hashlib.sha256(json.dumps([shaped, digests]).encode()).hexdigest()[:32]


def write_manifest(folder: StoragePath, manifest: DatasetManifest) -> None:
    """Make the shards in this folder a data set; call it last."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: StoragePath) -> DatasetManifest:
    """The manifest of the data set in this folder; a DataError says what is wrong with it."""
    place = folder / MANIFEST_NAME
    try:
        raw = place.read_bytes()
    except NotFound as error:
        raise DataError(
            f"no prepared data in {folder.url}: there is no {MANIFEST_NAME}",
            hint="run `raylm prepare` with this job (it goes on where it stopped), or correct data.path",
        ) from error
    return parse_manifest(raw, place.url)


def parse_manifest(raw: bytes, url: str) -> DatasetManifest:
    """The manifest in these bytes; `url` is for the messages."""
    rewrite = "prepare into another folder, or restore the file"
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{url} is not JSON ({len(raw)} bytes; truncated?)", hint=rewrite) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{url} is not a manifest of raylm shards", hint="point data.path at a prepared folder")
    if content.get("version") != VERSION:
        raise DataError(
            f"{url} has version {content.get('version')!r}; this raylm reads version {VERSION}",
            hint="prepare the data again, or use the raylm that wrote it",
        )
    try:
        content = {"steps": (), "fertility": {}, **content}  # younger than the format
        values = {item.name: content[item.name] for item in fields(DatasetManifest)}
        values["steps"] = tuple(values["steps"])
        for side in ("train", "held_out"):
            values[side] = tuple(Shard(**shard) for shard in values[side])
        manifest = DatasetManifest(**values)
        expected = _fingerprint_of(manifest)
    except (KeyError, TypeError) as error:
        raise DataError(f"{url} lacks or misspells {error}", hint=rewrite) from error
    if expected != manifest.fingerprint:
        raise DataError(
            f"{url} was changed after it was written: fingerprint {manifest.fingerprint}, content {expected}",
            hint=rewrite,
        )
    return manifest


def _fingerprint_of(manifest: DatasetManifest) -> str:
    return fingerprint(
        sequence_length=manifest.sequence_length,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype,
        tokenizer=manifest.tokenizer,
        eos_id=manifest.eos_id,
        group_rows=manifest.group_rows,
        train=manifest.train,
        held_out=manifest.held_out,
    )


def make_manifest(
    *,
    sequence_length: int,
    vocab_size: int,
    tokenizer: str,
    eos_id: int,
    train: Iterable[Shard],
    held_out: Iterable[Shard],
    train_tokens: int,
    held_out_tokens: int,
    held_out_bytes: int,
    group_rows: int = GROUP_ROWS,
    sources: dict[str, dict[str, int]] | None = None,
    settings: dict[str, Any] | None = None,
    steps: Iterable[dict[str, Any]] = (),
    fertility: dict[str, dict[str, dict[str, int]]] | None = None,
) -> DatasetManifest:
    """A manifest with its fingerprint and dtype filled in."""
    manifest = DatasetManifest(
        fingerprint="",
        sequence_length=sequence_length,
        vocab_size=vocab_size,
        dtype=token_dtype(vocab_size),
        tokenizer=tokenizer,
        eos_id=eos_id,
        group_rows=group_rows,
        train=tuple(train),
        held_out=tuple(held_out),
        train_tokens=train_tokens,
        held_out_tokens=held_out_tokens,
        held_out_bytes=held_out_bytes,
        sources=sources or {},
        settings=settings or {},
        steps=tuple(steps),
        fertility=fertility or {},
    )
    return DatasetManifest(**{**manifest.__dict__, "fingerprint": _fingerprint_of(manifest)})
