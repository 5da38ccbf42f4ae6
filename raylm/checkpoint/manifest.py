"""The checkpoint format: names, the index beside each part, and the manifest whose presence is the commit.

    <checkpoints>/fences/000003                             who may commit: the newest number, claimed once
    <checkpoints>/step-000000040/fence-3/rank-00000-of-2.safetensors   one rank's chunks, all 1-D
    <checkpoints>/step-000000040/fence-3/rank-00000-of-2.json          which chunks, where, checksums
    <checkpoints>/step-000000040/manifest.json                    written last and once

No file name is ever read from storage: they follow from step, fence, rank and world size. Bytes that are read are
never trusted, nothing is pickled, and nothing here loads torch.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from raylm.checkpoint.chunks import Chunk, Kind
from raylm.checkpoint.state import RunState
from raylm.errors import CheckpointError
from raylm.storage import NotFound, StoragePath
from raylm.strict_json import parse_json

FORMAT = "raylm-checkpoint"
VERSION = 2
# Every block of a part has a checksum of its own, so that a reader of any slice can check all it read, at most two
# blocks more than it needed. It costs 44 bytes of index per MiB.
BLOCK_BYTES = 256 << 10
MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"  # of a checkpoint that was set aside
FENCES = "fences"
STEP_FOLDER = re.compile(r"step-(\d{9,})")
FENCE_FOLDER = re.compile(r"fence-(\d+)")

# torch's name of a dtype -> safetensors' name and the bytes of an element.
DTYPES: dict[str, tuple[str, int]] = {
    "complex64": ("C64", 8),
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "float32": ("F32", 4),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


def element_bytes(dtype: str) -> int:
    """Bytes per element of torch's `dtype`."""
    if dtype not in DTYPES:
        raise CheckpointError(
            f"a checkpoint cannot hold dtype {dtype!r}", hint=f"known are {', '.join(sorted(DTYPES))}"
        )
    return DTYPES[dtype][1]


def step_folder(folder: StoragePath, step: int) -> StoragePath:
    """Where the checkpoint of `step` stands."""
    return folder / f"step-{step:09d}"


def part_name(rank: int, world_size: int) -> str:
    """Name, without its ending, of what one rank wrote."""
    return f"rank-{rank:05d}-of-{world_size}"


def fence_folder(step_path: StoragePath, fence: int) -> StoragePath:
    """Where the ranks that hold a fence put their parts."""
    return step_path / f"fence-{fence}"


@dataclass(frozen=True)
class StoredChunk:
    """A chunk and the byte of its part's file at which it begins."""

    chunk: Chunk
    offset: int

    @property
    def stop(self) -> int:
        """One past its last byte in the file."""
        return self.offset + self.chunk.length * element_bytes(self.chunk.dtype)


@dataclass(frozen=True)
class Part:
    """The index of what one rank wrote; crc32 has one checksum for each block_bytes of the file, header included."""

    step: int
    fence: int
    rank: int
    world_size: int
    file_bytes: int
    block_bytes: int
    crc32: tuple[int, ...]
    stored: tuple[StoredChunk, ...]

    def to_json(self) -> bytes:
        """The index file."""
        rows = [
            [s.chunk.kind, s.chunk.name, s.chunk.dtype, s.chunk.shape, s.chunk.start, s.chunk.length, s.offset]
            for s in self.stored
        ]
        head = {
            "format": FORMAT,
            "version": VERSION,
            **{key: getattr(self, key) for key in _PART_NUMBERS},
            "columns": ["kind", "name", "dtype", "shape", "start", "length", "offset"],
        }
        return json.dumps({**head, "crc32": self.crc32, "chunks": rows}, separators=(",", ":")).encode()


_PART_NUMBERS = ("step", "fence", "rank", "world_size", "file_bytes", "block_bytes")


@dataclass(frozen=True)
class Manifest:
    """What makes a checkpoint count: whose parts belong to it, and the state of the run that is not a tensor."""

    step: int
    fence: int
    world_size: int
    total_bytes: int
    index_crc32: tuple[int, ...]
    committed_at: str
    scalars: dict[str, int | float]
    state: RunState

    def to_json(self) -> bytes:
        """The manifest file."""
        fields = {key: getattr(self, key) for key in _MANIFEST_FIELDS}
        body = {"format": FORMAT, "version": VERSION, **fields, "state": self.state.to_json()}
        return json.dumps(body, indent=1).encode()


_MANIFEST_FIELDS = ("step", "fence", "world_size", "total_bytes", "committed_at", "index_crc32", "scalars")


class DamagedCheckpoint(CheckpointError):
    """A file of a committed checkpoint is not what was written."""


def damaged(path: StoragePath, what: str) -> DamagedCheckpoint:
    """The one error for a file of a committed checkpoint that is not what was written."""
    return DamagedCheckpoint(
        f"{path.url} {what}",
        hint="put the file back from a copy, or remove this checkpoint's folder to resume from the one before it",
    )


def read_manifest(step_path: StoragePath) -> Manifest | None:
    """The manifest of a checkpoint's folder, None when nothing was committed there."""
    path = step_path / MANIFEST
    try:
        data = path.read_bytes()
    except NotFound:
        return None
    try:
        body = _json_object(data)
        _check_version(body, path)
        manifest = Manifest(
            step=_number(body, "step"),
            fence=_number(body, "fence"),
            world_size=_number(body, "world_size", least=1),
            total_bytes=_number(body, "total_bytes"),
            index_crc32=tuple(_numbers(body["index_crc32"])),
            committed_at=str(body["committed_at"]),
            scalars=_scalars(body["scalars"]),
            state=_state(body["state"]),
        )
        if len(manifest.index_crc32) != manifest.world_size:
            raise ValueError(f"{len(manifest.index_crc32)} parts for {manifest.world_size} workers")
        if STEP_FOLDER.fullmatch(step_path.name) and step_path.name != f"step-{manifest.step:09d}":
            raise ValueError(f"it is the manifest of step {manifest.step}")
        if manifest.state.progress.step != manifest.step:
            raise ValueError(f"its state is of step {manifest.state.progress.step}")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"is not a checkpoint's manifest: {_plain(error)}") from error
    return manifest


def parse_part(data: bytes, path: StoragePath, *, step: int, fence: int, rank: int, world_size: int) -> Part:
    """The index in `data`, which was read from `path`, checked against who must have written it."""
    try:
        body = _json_object(data)
        if body.get("version") != VERSION:
            raise ValueError(f"version is {body.get('version')!r}; this raylm reads {VERSION}")
        seen = [_number(body, key) for key in ("step", "fence", "rank", "world_size")]
        if seen != [step, fence, rank, world_size]:
            raise ValueError(f"it is of (step, fence, rank, workers) {seen}")
        part = Part(
            step,
            fence,
            rank,
            world_size,
            file_bytes=_number(body, "file_bytes"),
            block_bytes=_number(body, "block_bytes", least=1),
            crc32=tuple(_numbers(body["crc32"])),
            stored=tuple(_stored(body["chunks"])),
        )
        if len(part.crc32) != -(-part.file_bytes // part.block_bytes):
            raise ValueError(f"{len(part.crc32)} checksums for {part.file_bytes} bytes")
        for stored in part.stored:
            if stored.offset < 0 or stored.stop > part.file_bytes or stored.offset % element_bytes(stored.chunk.dtype):
                raise ValueError(f"{stored.chunk.kind} {stored.chunk.name!r} lies outside the file")
    except (ValueError, KeyError, TypeError, CheckpointError) as error:
        raise damaged(path, f"is not the index of a checkpoint's part: {_plain(error)}") from error
    return part


def checksum(data: bytes) -> int:
    """The CRC-32 of a small file."""
    return zlib.crc32(data)


def _stored(rows: Any) -> Iterator[StoredChunk]:
    for kind, name, dtype, shape, start, length, offset in rows:
        numbers = list(_numbers([*shape, start, length, offset]))
        chunk = Chunk(
            name=str(name),
            kind=cast(Kind, kind),
            start=numbers[-3],
            length=numbers[-2],
            dtype=str(dtype),
            numel=prod(numbers[:-3]),
            shape=tuple(numbers[:-3]),
        )
        yield StoredChunk(chunk.checked(), numbers[-1])


def _json_object(data: bytes) -> dict[str, Any]:
    body = _mapping(json.loads(data))
    if body.get("format") != FORMAT:
        raise ValueError(f"format is {body.get('format')!r}, not {FORMAT!r}")
    return body


def _check_version(body: dict[str, Any], path: StoragePath) -> None:
    if body.get("version") != VERSION:
        raise CheckpointError(
            f"{path.url} has version {body.get('version')!r}; this raylm reads version {VERSION}",
            hint="use the raylm that wrote it; to train on, start under another name",
        )


def _state(value: Any) -> RunState:
    try:
        return parse_json(RunState, json.dumps(_mapping(value)))
    except ValueError as error:
        raise ValueError(f"state: {error}") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object was expected")
    return value


def _number(body: dict[str, Any], key: str, *, least: int = 0) -> int:
    value = body[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key} is {value!r}")
    return value


def _numbers(values: Any) -> Iterator[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{value!r} where a count was expected")
        yield value


def _scalars(value: Any) -> dict[str, int | float]:
    for key, number in _mapping(value).items():
        if not isinstance(number, int | float):
            raise ValueError(f"scalar {key} is {number!r}")
    return cast("dict[str, int | float]", value)


def _plain(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
