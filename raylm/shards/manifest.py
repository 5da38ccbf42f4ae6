"""The manifest that makes a folder of shards a dataset: what it holds, where it came from, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raylm.errors import DataError
from raylm.shards.columns import Column
from raylm.storage import NotFound, StoragePath

MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
GROUP_ROWS = 64
FORMAT = "raylm-shards"
VERSION = 2


@dataclass(frozen=True)
class Shard:
    """One file of rows; `path` is relative to the dataset's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class RowFormat:
    """What every row of a dataset looks like; `tokenizer` is its fingerprint."""

    sequence_length: int
    vocab_size: int
    tokenizer: str
    eos_id: int
    group_rows: int = GROUP_ROWS
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(names) != len(set(names)):
            raise ValueError(f"columns have the same name: {', '.join(names)}")

    @property
    def dtype(self) -> str:
        """The type of a stored token."""
        return token_dtype(self.vocab_size)

    def described(self) -> dict[str, Any]:
        """What a shard says of itself, as JSON gives it back."""
        values = {
            "sequence_length": self.sequence_length,
            "dtype": self.dtype,
            "group_rows": self.group_rows,
            "tokenizer": self.tokenizer,
            "columns": [{**asdict(column), "shape": list(column.shape)} for column in self.columns],
        }
        return {"format": FORMAT, "version": VERSION, **values}


@dataclass(frozen=True)
class Counts:
    """How much a dataset holds; `held_out_bytes`: UTF-8 bytes of the held-out text."""

    train_tokens: int = 0
    held_out_tokens: int = 0
    held_out_bytes: int = 0


@dataclass(frozen=True)
class Origin:
    """What a dataset was made from.

    sources: counts by source name. settings: what preparation was asked for. steps: what each step dropped and
    changed. fertility: counts of text and tokens by source and language.
    """

    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()
    fertility: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetManifest:
    """What a dataset is: its rows in order, their format, and what they were made from (see Counts and Origin).

    `fingerprint` covers everything that shapes the rows, and neither paths nor times.
    """

    fingerprint: str
    sequence_length: int
    vocab_size: int
    tokenizer: str
    eos_id: int
    group_rows: int
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    train_tokens: int
    held_out_tokens: int
    held_out_bytes: int
    columns: tuple[Column, ...] = ()
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()
    fertility: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: RowFormat,
        *,
        train: Iterable[Shard],
        held_out: Iterable[Shard],
        counts: Counts,
        origin: Origin = Origin(),
    ) -> DatasetManifest:
        """The manifest of these shards, with its fingerprint."""
        made = cls(
            fingerprint="",
            sequence_length=rows.sequence_length,
            vocab_size=rows.vocab_size,
            tokenizer=rows.tokenizer,
            eos_id=rows.eos_id,
            group_rows=rows.group_rows,
            train=tuple(train),
            held_out=tuple(held_out),
            **vars(counts),
            columns=rows.columns,
            **vars(origin),
        )
        return replace(made, fingerprint=fingerprint(made))

    @property
    def rows(self) -> RowFormat:
        """The format of the rows."""
        return RowFormat(
            self.sequence_length, self.vocab_size, self.tokenizer, self.eos_id, self.group_rows, self.columns
        )

    @property
    def dtype(self) -> str:
        """The type of a stored token."""
        return token_dtype(self.vocab_size)

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


def fingerprint(manifest: DatasetManifest) -> str:
    """A digest of everything that shapes the rows; equal inputs give equal fingerprints on any machine."""
    shaped = [manifest.rows.described(), manifest.vocab_size, manifest.eos_id]
    digests = [[[shard.rows, shard.sha256] for shard in shards] for shards in (manifest.train, manifest.held_out)]
    return hashlib.sha256(json.dumps([shaped, digests], sort_keys=True).encode()).hexdigest()[:32]


def write_manifest(folder: StoragePath, manifest: DatasetManifest) -> None:
    """Make the shards in this folder a dataset; call it last."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: StoragePath) -> DatasetManifest:
    """The manifest of the dataset in this folder; a DataError says what is wrong with it."""
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except NotFound as error:
        raise DataError(
            f"no prepared data in {folder.url}: there is no {MANIFEST_NAME}",
            hint="name a folder that `raylm prepare` has finished, or run it with the job that makes this one (it goes "
            "on where it stopped)",
        ) from error
    return parse_manifest(raw, path.url)


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
            hint="prepare the data again, into another folder (prepare.output) or after removing this one, or use the "
            "raylm that wrote it",
        )
    try:
        manifest = _ADAPTER.validate_json(raw)
    except ValueError as error:
        raise DataError(f"{url} lacks or misspells {_first_fault(error)}", hint=rewrite) from error
    expected = fingerprint(manifest)
    if expected != manifest.fingerprint:
        raise DataError(
            f"{url} was changed after it was written: fingerprint {manifest.fingerprint}, content {expected}",
            hint=rewrite,
        )
    return manifest


# Made with the module: it takes 3 ms, which would come before the first batch.
_ADAPTER = TypeAdapter(DatasetManifest)


def _first_fault(error: ValueError) -> str:
    """Where pydantic met the first fault, and what it was."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])!r}: {first['msg']}"
