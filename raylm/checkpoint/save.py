"""Saving: each rank's chunks go to storage as one safetensors file, and a manifest written last makes them count.

Only the copy into a staging buffer holds training up. Ranks meet through storage alone: no collective runs
beside the training, and a peer that died only means that nothing is committed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raylm.checkpoint import parts
from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.manifest import (
    BLOCK_BYTES,
    FENCES,
    MANIFEST,
    Manifest,
    Part,
    StoredChunk,
    checksum,
    fence_folder,
    parse_part,
    part_name,
    read_manifest,
    step_folder,
)
from raylm.checkpoint.staging import STAGING
from raylm.checkpoint.state import RunState, check_state
from raylm.errors import CheckpointError, StorageError
from raylm.storage import NotFound, StoragePath, retried
from raylm.threads import settle

if TYPE_CHECKING:
    import torch

Held = Sequence[tuple[Chunk, "torch.Tensor"]]

# A stream that broke is not resumed but written again, on top of what storage retries by itself.
WRITE_TRIALS = 3
FENCE_CHECK_SECONDS = 5.0


class StaleFence(CheckpointError):
    """A newer fence of the run was claimed: the holder of this one may not commit, and should stop."""


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
        """What became of it; raises what went wrong, StaleFence included, and TimeoutError while it goes on."""
        return self._future.result(timeout)

    def abandon(self) -> None:
        """Wait for no peer any longer: a save that a rank could not finish must not be committed by a late one."""
        self._abandoned.set()


@dataclass(frozen=True)
class SaveRequest:
    """One rank's part in saving the state of one step.

    before_commit runs on every rank before its part counts: what must be durable whenever the checkpoint is.
    """

    folder: StoragePath
    state: RunState
    fence: int
    rank: int
    world_size: int
    scalars: dict[str, int | float] = field(default_factory=dict)
    before_commit: Callable[[], None] | None = None
    commit_timeout_seconds: float = 600.0

    @property
    def step(self) -> int:
        """The step that is saved."""
        return self.state.progress.step

    @property
    def parts_folder(self) -> StoragePath:
        """Where the ranks that hold this fence put their parts."""
        return fence_folder(step_folder(self.folder, self.step), self.fence)

    def part(self, rank: int, ending: str) -> StoragePath:
        """A file that one rank writes."""
        return self.parts_folder / f"{part_name(rank, self.world_size)}.{ending}"


@dataclass(frozen=True)
class _Save(SaveRequest):
    """A save under way, after its tensors were copied."""

    abandoned: threading.Event = field(default_factory=threading.Event)


def claim_fence(folder: StoragePath) -> int:
    """A number that nobody else has claimed for this run; whoever holds an older one can no longer commit.

    The hub claims one when it begins, and one for each later generation that saves.
    """
    note = json.dumps({"claimed_at": _utc_now()}).encode()
    number = newest_fence(folder) + 1
    while not (folder / FENCES / f"{number:06d}").create_once(note):
        number += 1
    return number


def newest_fence(folder: StoragePath) -> int:
    """The newest number claimed, 0 when there is none."""
    names = [path.name for path in (folder / FENCES).list()]
    return max((int(name) for name in names if name.isdigit()), default=0)


def begin_save(request: SaveRequest, held: Held, *, asynchronous: bool = True) -> PendingSave:
    """Copy what this rank holds and write it behind the training; with asynchronous=False, return when it has ended.

    Saving again waits until the staging buffer of the save before is written out. A save that failed may be begun
    again: a part that was written is not written twice.
    """
    check_state(request.state)
    begun = time.perf_counter()
    save = _Save(**{one.name: getattr(request, one.name) for one in fields(request)})
    stored, header, file_bytes = parts.arrange([chunk for chunk, _ in held])
    tensors = dict(held)
    STAGING.fill([(one.offset - len(header), tensors[one.chunk]) for one in stored], file_bytes - len(header))
    stall = time.perf_counter() - begun

    future: Future[Saved] = Future()

    def work() -> Saved:
        part = _write_part(save, stored, header)
        committed, total_bytes, reason = _commit(save) if save.rank == 0 else (False, 0, "rank 0 commits")
        took = time.perf_counter() - begun
        held_up = stall if asynchronous else took
        return Saved(save.step, part.file_bytes, held_up, took, committed, total_bytes, reason)

    if asynchronous:
        # A daemon: a worker that must leave is not held back by an upload, and half of one never counts.
        threading.Thread(target=settle, args=(future, work), name=f"save-step-{save.step}", daemon=True).start()
    else:
        settle(future, work)
    return PendingSave(future, save.abandoned)


def _write_part(save: _Save, stored: tuple[StoredChunk, ...], header: bytes) -> Part:
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
    part = Part(save.step, save.fence, save.rank, save.world_size, written, BLOCK_BYTES, sums, stored)
    _create(save.part(save.rank, "json"), part.to_json())
    return part


def _written_before(save: _Save, header: bytes) -> Part | None:
    """The part as an earlier try of this very save left it; parts are never overwritten, a commit may count on them."""
    path = save.part(save.rank, "json")
    try:
        data = path.read_bytes()
    except NotFound:
        return None
    part = parse_part(data, path, step=save.step, fence=save.fence, rank=save.rank, world_size=save.world_size)
    sums = parts.Checksums()
    for _ in parts.blocks_of(header, STAGING.bytes(), sums):
        pass
    if sums.close() != part.crc32:
        raise CheckpointError(
            f"fence {save.fence} saved another state of step {save.step} already: {path.url} exists",
            hint="claim a new fence whenever the worker group is formed anew",
        )
    return part


def _stream(save: _Save, header: bytes) -> tuple[int, tuple[int, ...]]:
    """Write header and staged bytes without joining them; their number and checksums."""

    def once() -> tuple[int, tuple[int, ...]]:
        sums = parts.Checksums()
        written = save.part(save.rank, "safetensors").write_parts(parts.blocks_of(header, STAGING.bytes(), sums))
        return written, sums.close()

    return retried(once, errors=StorageError, retries=WRITE_TRIALS - 1, first_seconds=0.5)


def _create(path: StoragePath, data: bytes) -> bool:
    """Write a file that must not be there yet; True too when a retried request had in fact succeeded before."""
    return path.create_once(data) or path.read_bytes() == data


def _commit(save: _Save) -> tuple[bool, int, str]:
    """Wait for every rank's part, check that together they are the whole state, and write the manifest."""
    missing = _wait_for_parts(save)
    if missing:
        return False, 0, f"no part came from rank {', '.join(map(str, missing))}"
    with ThreadPoolExecutor(min(16, save.world_size)) as pool:
        indexes = list(pool.map(lambda rank: save.part(rank, "json").read_bytes(), range(save.world_size)))
    indexed = [
        parse_part(
            data,
            save.part(rank, "json"),
            step=save.step,
            fence=save.fence,
            rank=rank,
            world_size=save.world_size,
        )
        for rank, data in enumerate(indexes)
    ]
    check_covering(indexed, where=save.parts_folder)
    total = sum(part.file_bytes for part in indexed)
    manifest = Manifest(
        step=save.step,
        fence=save.fence,
        world_size=save.world_size,
        total_bytes=total,
        index_crc32=tuple(checksum(data) for data in indexes),
        committed_at=_utc_now(),
        scalars=save.scalars,
        state=save.state,
    )
    # Between this look and the write a newer fence may still be claimed. That does no harm: the checkpoint is whole and
    # of this run, and clean-up touches no step above the newest committed one.
    check_fence(save.folder, save.fence)
    if save.abandoned.is_set():
        return False, 0, "it was given up"
    step_path = step_folder(save.folder, save.step)
    if _create(step_path / MANIFEST, manifest.to_json()):
        return True, total, ""
    # The holder of another fence committed this step: the same state, by promise, so it counts as well as this one.
    earlier = read_manifest(step_path)
    return earlier is not None, total, "the step was committed already"


def _wait_for_parts(save: _Save) -> list[int]:
    """Ranks whose part did not come in time."""
    awaited = {f"{part_name(rank, save.world_size)}.json": rank for rank in range(save.world_size)}
    deadline = time.monotonic() + save.commit_timeout_seconds
    looked_at_fence = time.monotonic()
    pause = 0.01
    while save.world_size > 1:
        present = {path.name for path in save.parts_folder.list()}
        missing = sorted(rank for name, rank in awaited.items() if name not in present)
        if not missing or time.monotonic() > deadline or save.abandoned.is_set():
            return missing
        if time.monotonic() - looked_at_fence > FENCE_CHECK_SECONDS:
            check_fence(save.folder, save.fence)
            looked_at_fence = time.monotonic()
        save.abandoned.wait(pause)
        pause = min(pause * 1.5, 0.5)
    return []


def check_fence(folder: StoragePath, fence: int) -> None:
    """Raise StaleFence when a newer fence of this run was claimed."""
    newest = newest_fence(folder)
    if newest > fence:
        raise StaleFence(
            f"fence {fence} may not commit to {folder.url}: fence {newest} was claimed since",
            hint="another process trains this run; stop this one",
        )


def check_covering(written: Sequence[Part], *, where: StoragePath) -> None:
    """Raise CheckpointError unless the parts hold every element of every tensor they name."""
    held: dict[tuple[str, str], list[Chunk]] = {}
    for part in written:
        for stored in part.stored:
            held.setdefault(stored.chunk.tensor, []).append(stored.chunk)
    for (kind, name), chunks in held.items():
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


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
