"""Saving: each rank's pieces go to storage as one safetensors file, and a manifest written last makes them count.

Comes in: the pieces this rank owns, as 1-D views of living tensors. Leaves: a part on storage and, from rank 0, the
manifest. Only the copy into a staging buffer holds training up. Ranks meet through storage alone: no collective runs
beside the training, and a peer that died only means that nothing is committed.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from raylm.checkpoint import manifest as layout
from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.manifest import BLOCK_BYTES, DTYPES, Manifest, Part, Stored, element_bytes
from raylm.checkpoint.staging import STAGING
from raylm.errors import CheckpointError, StorageError
from raylm.storage import NotFound, StoragePath, retried

if TYPE_CHECKING:
    import torch

Held = Sequence[tuple[Chunk, "torch.Tensor"]]

# One write to the stream; a multiple of it is what object stores take as a part.
WRITE_BYTES = 8 << 20
# A stream that broke is not resumed but written again, on top of what storage retries by itself.
WRITE_TRIALS = 3
FENCE_CHECK_SECONDS = 5.0
# What signed URLs of the large clouds carry.
SECRET_PARAMETERS = {"sig", "signature", "token", "x-amz-signature", "x-amz-security-token", "x-goog-signature"}


class StaleAttempt(CheckpointError):
    """A newer attempt of the run has begun: this one may not commit, and should stop."""


@dataclass(frozen=True)
class Saved:
    """What became of a save. bytes: this rank's part. committed and checkpoint_bytes are known to rank 0 only."""

    step: int
    bytes: int
    stall_seconds: float
    total_seconds: float
    committed: bool
    checkpoint_bytes: int = 0
    reason: str = ""


class PendingSave:
    """A save under way."""

    def __init__(self, future: Future[Saved], abandoned: threading.Event) -> None:
        self._future = future
        self._abandoned = abandoned

    def done(self) -> bool:
        """Has it ended, well or not?"""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> Saved:
        """What became of it; raises what went wrong, StaleAttempt included, and TimeoutError while it goes on."""
        return self._future.result(timeout)

    def abandon(self) -> None:
        """Wait for no peer any longer: a save that a rank could not finish must not be committed by a late one."""
        self._abandoned.set()


@dataclass(frozen=True)
class _Save:
    """One rank's save, after its tensors were copied."""

    folder: StoragePath
    step: int
    attempt: int
    rank: int
    world_size: int
    scalars: dict[str, int | float]
    meta: dict[str, Any]
    before_commit: Callable[[], None] | None
    commit_timeout_seconds: float
    abandoned: threading.Event

    @property
    def parts_folder(self) -> StoragePath:
        return layout.attempt_folder(layout.step_folder(self.folder, self.step), self.attempt)

    def part(self, rank: int, ending: str) -> StoragePath:
        return self.parts_folder / f"{layout.part_name(rank, self.world_size)}.{ending}"


def claim_attempt(folder: StoragePath) -> int:
    """A number that no other attempt of this run has; whoever holds an older one can no longer commit.

    One attempt is one generation of the worker group: rank 0 claims whenever a group is formed, and tells the others.
    """
    note = json.dumps({"claimed_at": _utc_now()}).encode()
    number = newest_attempt(folder) + 1
    while not (folder / layout.ATTEMPTS / f"{number:06d}").create_once(note):
        number += 1
    return number


def newest_attempt(folder: StoragePath) -> int:
    """The newest number claimed, 0 when there is none."""
    names = [place.name for place in (folder / layout.ATTEMPTS).list()]
    return max((int(name) for name in names if name.isdigit()), default=0)


def begin_save(
    folder: StoragePath,
    *,
    step: int,
    attempt: int,
    rank: int,
    world_size: int,
    held: Held,
    scalars: dict[str, int | float],
    meta: dict[str, Any],
    before_commit: Callable[[], None] | None = None,
    asynchronous: bool = True,
    commit_timeout_seconds: float = 600.0,
) -> PendingSave:
    """Copy what this rank holds and write it behind the training; with asynchronous=False, return when it has ended.

    before_commit runs on every rank before its part counts: what must be durable whenever the checkpoint is.
    Saving again waits until the staging buffer of the save before is written out. A save that failed may be begun
    again: a part that was written is not written twice.
    """
    _check_meta(meta)
    begun = time.perf_counter()
    abandoned = threading.Event()
    save = _Save(
        folder,
        step,
        attempt,
        rank,
        world_size,
        scalars=dict(scalars),
        meta=meta,
        before_commit=before_commit,
        commit_timeout_seconds=commit_timeout_seconds,
        abandoned=abandoned,
    )
    stored, header, file_bytes = _arrange([chunk for chunk, _ in held])
    tensors = dict(held)
    STAGING.fill([(one.offset - len(header), tensors[one.chunk]) for one in stored], file_bytes - len(header))
    stall = time.perf_counter() - begun

    future: Future[Saved] = Future()

    def work() -> None:
        try:
            part = _write_part(save, stored, header)
            committed, total_bytes, reason = _commit(save) if rank == 0 else (False, 0, "rank 0 commits")
            took = time.perf_counter() - begun
            held_up = stall if asynchronous else took
            future.set_result(Saved(step, part.file_bytes, held_up, took, committed, total_bytes, reason))
        except BaseException as error:  # carried to whoever waits
            future.set_exception(error)

    if asynchronous:
        # A daemon: a worker that must leave is not held back by an upload, and half of one never counts.
        threading.Thread(target=work, name=f"save-step-{step}", daemon=True).start()
    else:
        work()
    return PendingSave(future, abandoned)


def _arrange(chunks: Sequence[Chunk]) -> tuple[tuple[Stored, ...], bytes, int]:
    """Where each piece goes, the safetensors header, and the bytes of the file.

    Wide elements first, so that each is aligned; then by kind, so that weights alone are one contiguous read.
    """
    order = sorted(chunks, key=lambda one: (-element_bytes(one.dtype), one.kind, one.name, one.start))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "raylm": str(layout.VERSION)}}
    place = 0
    for chunk in order:
        stop = place + chunk.length * element_bytes(chunk.dtype)
        key = f"{chunk.kind}/{chunk.name}[{chunk.start}:{chunk.stop}]"
        if key in entries:
            raise AssertionError(f"{key} is held twice")
        entries[key] = {"dtype": DTYPES[chunk.dtype][0], "shape": [chunk.length], "data_offsets": [place, stop]}
        place = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    header = len(text).to_bytes(8, "little") + text
    begins = len(header)
    stored = []
    for chunk in order:
        stored.append(Stored(chunk, begins))
        begins = stored[-1].stop
    return tuple(stored), header, begins


class _Checksums:
    """CRC-32 of each block of a stream that passes in pieces of any size."""

    def __init__(self) -> None:
        self.finished: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, piece: memoryview) -> None:
        """The next bytes of the stream."""
        while piece.nbytes:
            taken = piece[: BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(taken, self._crc)
            self._filled += taken.nbytes
            piece = piece[taken.nbytes :]
            if self._filled == BLOCK_BYTES:
                self._end_block()

    def close(self) -> tuple[int, ...]:
        """All of them, the last of a shorter block."""
        if self._filled:
            self._end_block()
        return tuple(self.finished)

    def _end_block(self) -> None:
        self.finished.append(self._crc)
        self._crc, self._filled = 0, 0


def _write_part(save: _Save, stored: tuple[Stored, ...], header: bytes) -> Part:
    """Write the staged bytes and then their index; the staging buffer is free afterwards, come what may."""
    try:
        earlier = _written_before(save, header)
        if earlier is not None:
            return earlier
        written, sums = _stream(save, header)
    finally:
        STAGING.release()
    if save.before_commit is not None:
        save.before_commit()
    part = Part(save.step, save.attempt, save.rank, save.world_size, written, BLOCK_BYTES, sums, stored)
    _create(save.part(save.rank, "json"), part.to_json())
    return part


def _written_before(save: _Save, header: bytes) -> Part | None:
    """The part as an earlier try of this very save left it; parts are never overwritten, a commit may count on them."""
    place = save.part(save.rank, "json")
    try:
        data = place.read_bytes()
    except NotFound:
        return None
    part = layout.parse_part(
        data, place, step=save.step, attempt=save.attempt, rank=save.rank, world_size=save.world_size
    )
    sums = _Checksums()
    for _ in _pieces(header, STAGING.bytes(), sums):
        pass
    if sums.close() != part.crc32:
        raise CheckpointError(
            f"attempt {save.attempt} saved another state of step {save.step} already: {place.url} exists",
            hint="claim a new attempt whenever the worker group is formed anew",
        )
    return part


def _stream(save: _Save, header: bytes) -> tuple[int, tuple[int, ...]]:
    """Write header and staged bytes without joining them; their number and checksums."""

    def once() -> tuple[int, tuple[int, ...]]:
        sums = _Checksums()
        written = save.part(save.rank, "safetensors").write_parts(_pieces(header, STAGING.bytes(), sums))
        return written, sums.close()

    return retried(once, errors=StorageError, retries=WRITE_TRIALS - 1, first_seconds=0.5)


def _pieces(header: bytes, staged: memoryview, sums: _Checksums) -> Iterator[memoryview]:
    for whole in (memoryview(header), staged):
        for start in range(0, whole.nbytes, WRITE_BYTES):
            piece = whole[start : start + WRITE_BYTES]
            sums.add(piece)
            yield piece


def _create(place: StoragePath, data: bytes) -> bool:
    """Write a file that must not be there yet; True too when a retried request had in fact succeeded before."""
    return place.create_once(data) or place.read_bytes() == data


def _commit(save: _Save) -> tuple[bool, int, str]:
    """Wait for every rank's part, check that together they are the whole state, and write the manifest."""
    missing = _wait_for_parts(save)
    if missing:
        return False, 0, f"no part came from rank {', '.join(map(str, missing))}"
    with ThreadPoolExecutor(min(16, save.world_size)) as pool:
        indexes = list(pool.map(lambda rank: save.part(rank, "json").read_bytes(), range(save.world_size)))
    parts = [
        layout.parse_part(
            data,
            save.part(rank, "json"),
            step=save.step,
            attempt=save.attempt,
            rank=rank,
            world_size=save.world_size,
        )
        for rank, data in enumerate(indexes)
    ]
    check_covering(parts, where=save.parts_folder)
    total = sum(part.file_bytes for part in parts)
    manifest = Manifest(
        step=save.step,
        attempt=save.attempt,
        world_size=save.world_size,
        total_bytes=total,
        index_crc32=tuple(layout.checksum(data) for data in indexes),
        committed_at=_utc_now(),
        scalars=save.scalars,
        meta=save.meta,
    )
    # Between this look and the write a newer attempt may still begin. That does no harm: the checkpoint is whole and
    # of this run, and clean-up touches no step above the newest committed one.
    check_fence(save.folder, save.attempt)
    if save.abandoned.is_set():
        return False, 0, "it was given up"
    step_place = layout.step_folder(save.folder, save.step)
    if _create(step_place / layout.MANIFEST, manifest.to_json()):
        return True, total, ""
    # Another attempt committed this step: the same state, by promise, so it counts as well as this one.
    earlier = layout.read_manifest(step_place)
    return earlier is not None, total, "the step was committed already"


def _wait_for_parts(save: _Save) -> list[int]:
    """Ranks whose part did not come in time."""
    awaited = {f"{layout.part_name(rank, save.world_size)}.json": rank for rank in range(save.world_size)}
    deadline = time.monotonic() + save.commit_timeout_seconds
    looked_at_fence = time.monotonic()
    pause = 0.01
    while save.world_size > 1:
        present = {place.name for place in save.parts_folder.list()}
        missing = sorted(rank for name, rank in awaited.items() if name not in present)
        if not missing or time.monotonic() > deadline or save.abandoned.is_set():
            return missing
        if time.monotonic() - looked_at_fence > FENCE_CHECK_SECONDS:
            check_fence(save.folder, save.attempt)
            looked_at_fence = time.monotonic()
        save.abandoned.wait(pause)
        pause = min(pause * 1.5, 0.5)
    return []


def check_fence(folder: StoragePath, attempt: int) -> None:
    """Raise StaleAttempt when a newer attempt of this run has begun."""
    newest = newest_attempt(folder)
    if newest > attempt:
        raise StaleAttempt(
            f"attempt {attempt} may not commit to {folder.url}: attempt {newest} has begun",
            hint="another process trains this run; stop this one",
        )


def check_covering(parts: Sequence[Part], *, where: StoragePath) -> None:
    """Raise CheckpointError unless the parts hold every element of every tensor they name."""
    pieces: dict[tuple[str, str], list[Chunk]] = {}
    for part in parts:
        for stored in part.stored:
            pieces.setdefault(stored.chunk.tensor, []).append(stored.chunk)
    for (kind, name), chunks in pieces.items():
        reached = 0
        for chunk in sorted(chunks, key=lambda one: one.start):
            if chunk.start > reached:
                break
            reached = max(reached, chunk.stop)
        if reached != chunks[0].numel:
            raise CheckpointError(
                f"the parts under {where.url} lack elements of {kind} {name!r} from {reached} of {chunks[0].numel}",
                hint="nothing was committed; this is a fault of raylm, please report it",
            )


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Further name -> first name of each parameter that a module has under several; belongs into meta["tied"]."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            tied[name] = known
    return tied


def _check_meta(meta: dict[str, Any]) -> None:
    """Meta must be JSON, which is better known now than in a thread; and no URL in it may carry credentials."""
    json.dumps(meta)
    for path, text in _texts(meta, "meta"):
        url = urlsplit(text) if "://" in text else None
        if url is not None and ("@" in url.netloc or SECRET_PARAMETERS & parse_qs(url.query.lower()).keys()):
            raise CheckpointError(
                f"{path} would put credentials into a checkpoint's manifest, which is read by many",
                hint="put them in the environment or the provider's profile, not in a URL",
            )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in nested JSON, with where it stands."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{number}]")


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
