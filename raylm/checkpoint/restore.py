"""Loading: any set of 1-D destinations is filled from a committed checkpoint, whoever saved it.

Only the bytes that are needed
are read, neighbouring ones in one request, in threads; every block read is held against its checksum.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.manifest import (
    MANIFEST,
    STEP_FOLDER,
    Manifest,
    Part,
    checksum,
    damaged,
    element_bytes,
    fence_folder,
    parse_part,
    part_name,
    read_manifest,
)
from raylm.checkpoint.state import RunState
from raylm.errors import CheckpointError, StorageError
from raylm.storage import NotFound, StoragePath

if TYPE_CHECKING:
    import torch

REQUEST_BYTES = 16 << 20
# Reading over a gap this small costs less than another request over a network; a local disk needs no request.
GAP_BYTES = 2 << 20
THREADS = 8
READERS = "readers"


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed checkpoint: where it stands and what its manifest says."""

    step: int
    path: StoragePath
    manifest: Manifest

    @property
    def state(self) -> RunState:
        """What it says besides its tensors."""
        return self.manifest.state

    @property
    def scalars(self) -> dict[str, int | float]:
        """The optimizer's counters."""
        return self.manifest.scalars

    @property
    def world_size(self) -> int:
        """Workers that saved it."""
        return self.manifest.world_size

    @property
    def bytes(self) -> int:
        """Bytes of all its parts."""
        return self.manifest.total_bytes

    def part(self, rank: int, ending: str) -> StoragePath:
        """A file that one rank wrote."""
        folder = fence_folder(self.path, self.manifest.fence)
        return folder / f"{part_name(rank, self.world_size)}.{ending}"


@dataclass(frozen=True)
class Fragment:
    """Elements of one tensor in one part's file."""

    chunk: Chunk
    rank: int
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose indexes have been read: every fragment it holds, by tensor, in order."""

    info: CheckpointInfo
    parts: tuple[Part, ...]
    fragments: dict[tuple[str, str], tuple[Fragment, ...]]


def committed(folder: StoragePath) -> list[CheckpointInfo]:
    """Every committed checkpoint of a run, the oldest first."""
    paths = step_folders(folder)
    if not paths:
        return []
    with ThreadPoolExecutor(min(THREADS, len(paths))) as pool:
        found = list(pool.map(checkpoint_at, paths))
    return [one for one in found if one is not None]


def newest(folder: StoragePath) -> CheckpointInfo | None:
    """The committed checkpoint with the highest step, None when there is none."""
    return next((one for one in map(checkpoint_at, reversed(step_folders(folder))) if one is not None), None)


def open_checkpoint(path: StoragePath | CheckpointInfo) -> Checkpoint:
    """Read a checkpoint's indexes, given its folder or what `newest` found; CheckpointError when it is not whole."""
    found = path if isinstance(path, CheckpointInfo) else checkpoint_at(path)
    if found is None:
        raise CheckpointError(
            f"{path} holds no committed checkpoint: it has no {MANIFEST}",
            hint="name the folder of a checkpoint that was committed; `raylm report` lists them",
        )
    with ThreadPoolExecutor(min(THREADS, found.world_size)) as pool:
        parts = tuple(pool.map(lambda rank: _read_part(found, rank), range(found.world_size)))
    held: dict[tuple[str, str], list[Fragment]] = {}
    for part in parts:
        for stored in part.stored:
            held.setdefault(stored.chunk.tensor, []).append(Fragment(stored.chunk, part.rank, stored.offset))
    ordered = {tensor: tuple(sorted(some, key=lambda one: one.chunk.start)) for tensor, some in held.items()}
    return Checkpoint(found, parts, ordered)


def fill(checkpoint: Checkpoint, wanted: Sequence[tuple[Chunk, torch.Tensor]]) -> None:
    """Fill every destination; CheckpointError before anything is written when the checkpoint does not cover them."""
    gap = 0 if checkpoint.info.path.is_local else GAP_BYTES
    by_rank: list[list[_Copy]] = [[] for _ in checkpoint.parts]
    for chunk, tensor in wanted:
        for copy in _copies(checkpoint, chunk, tensor):
            by_rank[copy.rank].append(copy)
    requests = [request for part in checkpoint.parts for request in _requests(part, by_rank[part.rank], gap)]
    if not requests:
        return
    with ThreadPoolExecutor(min(THREADS, len(requests))) as pool:
        done = [pool.submit(_serve, checkpoint, request) for request in requests]
        try:
            for one in done:
                one.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def reading(found: CheckpointInfo, seconds: float = 7200.0) -> Iterator[None]:
    """Keep retention, wherever it runs, from removing this checkpoint; without effect where one may not write.

    The workers of a run need none: only the holder of the newest fence removes anything, and not before it has saved.
    """
    lease = _readers(found.path) / f"{found.step}-{uuid.uuid4().hex}"
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    leased = bool(STEP_FOLDER.fullmatch(found.path.name))
    try:
        if leased:
            lease.write_text(json.dumps({"until": until.isoformat()}))
    except StorageError:
        leased = False  # a reader's key often may not write
    try:
        if not (found.path / MANIFEST).exists():
            raise CheckpointError(
                f"{found.path.url} was removed by the run's retention", hint="read the newest checkpoint instead"
            )
        yield
    finally:
        if leased:
            with suppress(StorageError):
                lease.remove()


def steps_being_read(folder: StoragePath) -> set[int]:
    """The steps that `reading` protects now."""
    held = set()
    for path in (folder / READERS).list():
        step, _, token = path.name.partition("-")
        with suppress(NotFound, ValueError, KeyError, TypeError):
            until = datetime.fromisoformat(json.loads(path.read_bytes())["until"])
            if token and until > datetime.now(UTC):
                held.add(int(step))
    return held


def _readers(step_path: StoragePath) -> StoragePath:
    return StoragePath(step_path.url.rsplit("/", 1)[0], step_path.connection) / READERS


def weights(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The model's state dict on the CPU: masters and frozen weights, cast to dtype when given, and buffers as saved.

    A tied parameter stands under each of its names (`RunState.tied`) as one tensor.
    """
    import torch

    wanted, state = [], {}
    for (kind, name), held in checkpoint.fragments.items():
        if kind not in ("master", "frozen", "buffer"):
            continue
        first = held[0].chunk
        saved = getattr(torch, first.dtype)
        cast = dtype is not None and kind != "buffer" and saved.is_floating_point
        flat = torch.empty(first.numel, dtype=dtype if cast else saved)
        whole = Chunk(name, first.kind, 0, first.numel, first.dtype, first.numel, first.shape)
        if first.numel:
            wanted.append((whole, flat))
        state[name] = flat.view(first.shape)
    with reading(checkpoint.info):
        fill(checkpoint, wanted)
    for alias, name in checkpoint.info.state.tied.items():
        if name in state:
            state[alias] = state[name]
    return state


def step_folders(folder: StoragePath) -> list[StoragePath]:
    """The folders of all steps, committed or not, ascending."""
    found = [path for path in folder.list() if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def checkpoint_at(path: StoragePath) -> CheckpointInfo | None:
    """What is committed in a checkpoint's folder, if anything; CheckpointError when the manifest is damaged."""
    found = read_manifest(path)
    return None if found is None else CheckpointInfo(found.step, path, found)


def _read_part(info: CheckpointInfo, rank: int) -> Part:
    path = info.part(rank, "json")
    try:
        data = path.read_bytes()
    except NotFound as error:
        raise damaged(path, "is missing") from error
    if checksum(data) != info.manifest.index_crc32[rank]:
        raise damaged(path, "is damaged: its checksum differs from the manifest's")
    return parse_part(data, path, step=info.step, fence=info.manifest.fence, rank=rank, world_size=info.world_size)


@dataclass(frozen=True)
class _Copy:
    """Bytes [start, stop) of a part's file are `dtype` elements that belong at `at` in a destination."""

    rank: int
    start: int
    stop: int
    dtype: str
    destination: torch.Tensor
    at: int


@dataclass(frozen=True)
class _Request:
    """One read of whole blocks, and the copies that lie in it or reach into it."""

    part: Part
    start: int
    stop: int
    copies: tuple[_Copy, ...]


def _copies(checkpoint: Checkpoint, chunk: Chunk, destination: torch.Tensor) -> Iterator[_Copy]:
    """The stored bytes that together are one wanted fragment."""
    held = checkpoint.fragments.get(chunk.tensor, ())
    if not held:
        raise _not_held(checkpoint, chunk, "it is not in the checkpoint")
    if held[0].chunk.shape != chunk.shape:
        shapes = f"it was saved with shape {list(held[0].chunk.shape)} and is wanted with {list(chunk.shape)}"
        raise _not_held(checkpoint, chunk, shapes)
    if held[0].chunk.dtype != chunk.dtype and not _floats(held[0].chunk.dtype, chunk.dtype):
        raise _not_held(checkpoint, chunk, f"it was saved as {held[0].chunk.dtype} and is wanted as {chunk.dtype}")
    assert destination.numel() == chunk.length, f"{chunk} does not fit its destination"
    reached = chunk.start
    for fragment in held:
        stop = min(fragment.chunk.stop, chunk.stop)
        if fragment.chunk.start > reached or stop <= reached:
            continue
        size = element_bytes(fragment.chunk.dtype)
        begins = fragment.offset + (reached - fragment.chunk.start) * size
        ends = begins + (stop - reached) * size
        yield _Copy(fragment.rank, begins, ends, fragment.chunk.dtype, destination, reached - chunk.start)
        reached = stop
    if reached < chunk.stop:
        raise _not_held(checkpoint, chunk, f"elements {reached} to {chunk.stop} are not in the checkpoint")


def _floats(*dtypes: str) -> bool:
    return all(dtype.startswith(("float", "bfloat")) for dtype in dtypes)


def _not_held(checkpoint: Checkpoint, chunk: Chunk, why: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.info.path.url} cannot give {chunk.kind} {chunk.name!r}: {why}",
        hint="the checkpoint is of another model: use the model settings it was saved with, or another run folder",
    )


def _requests(part: Part, copies: list[_Copy], gap: int) -> Iterator[_Request]:
    """Cut what is needed of one file into reads of whole blocks, joining neighbours and splitting what is long."""
    block = part.block_bytes
    longest = max(block, REQUEST_BYTES // block * block)
    pending: list[_Copy] = []
    start = stop = 0
    for copy in sorted(copies, key=lambda one: one.start):
        begins = copy.start // block * block
        ends = min(-(-copy.stop // block) * block, part.file_bytes)
        if pending and begins > stop + gap:
            yield from _split(part, start, stop, longest, pending)
            pending = []
        start = start if pending else begins
        stop = max(stop, ends) if pending else ends
        pending.append(copy)
    if pending:
        yield from _split(part, start, stop, longest, pending)


def _split(part: Part, start: int, stop: int, longest: int, copies: list[_Copy]) -> Iterator[_Request]:
    first = 0
    for begins in range(start, stop, longest):
        ends = min(begins + longest, stop)
        while copies[first].stop <= begins:
            first += 1
        inside = []
        for copy in copies[first:]:
            if copy.start >= ends:
                break
            if copy.stop > begins:
                inside.append(copy)
        yield _Request(part, begins, ends, tuple(inside))


def _serve(checkpoint: Checkpoint, request: _Request) -> None:
    """Read, check and hand out one request's bytes."""
    path = checkpoint.info.part(request.part.rank, "safetensors")
    data = _read(path, request)
    block = request.part.block_bytes
    view = memoryview(data)
    for number, begins in enumerate(range(request.start, request.stop, block), request.start // block):
        inside = view[begins - request.start : begins - request.start + block]
        if zlib.crc32(inside) != request.part.crc32[number]:
            raise damaged(path, f"is damaged: bytes {begins} to {begins + inside.nbytes} fail their checksum")
    for copy in request.copies:
        _hand_out(copy, view, request)


def _read(path: StoragePath, request: _Request) -> bytes:
    try:
        return path.read_range(request.start, request.stop - request.start)
    except NotFound as error:
        raise damaged(path, "is missing") from error
    except StorageError:
        size = path.size()
        if size >= request.stop:
            raise
        raise damaged(path, f"is truncated: {size} of {request.part.file_bytes} bytes are there") from None


def _hand_out(copy: _Copy, view: memoryview, request: _Request) -> None:
    import numpy as np
    import torch

    size = element_bytes(copy.dtype)
    begins, ends = max(copy.start, request.start), min(copy.stop, request.stop)
    source = np.frombuffer(view[begins - request.start : ends - request.start], dtype=np.uint8)
    at = copy.at + (begins - copy.start) // size
    target = copy.destination.detach()[at : at + (ends - begins) // size]
    dtype = getattr(torch, copy.dtype)
    if target.dtype == dtype and target.device.type == "cpu":
        np.copyto(target.view(torch.uint8).numpy(), source)  # lets other threads run meanwhile
    else:
        target.copy_(torch.from_numpy(source.copy()).view(dtype))
