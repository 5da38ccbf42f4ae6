"""Copies of the newest steps in host memory: every rank keeps its own shard and one neighbour's.

What an engine owns goes in after a step, and two slots take turns, so that one is whole at any moment. When any one
rank is lost, the others hold every element of the newest step, and `HeldByMembers` fills the next group's engines.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.copy_schedule import SLOTS
from raylm.checkpoint.memory import MESSAGE_BYTES, Members
from raylm.checkpoint.staging import host_buffer, to_host
from raylm.errors import CheckpointError

Pairs = Sequence[tuple[Chunk, Tensor]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The shards of `ranks` of one step of a generation of `size` ranks, as views into host memory.

    note: what the caller wants to know about the step, the same on every rank.
    """

    generation: int
    step: int
    size: int
    ranks: frozenset[int]
    pairs: Pairs
    note: Any


class Keeper:
    """This rank's copies in one generation; the same calls are made on every rank, in the same order.

    Between the end of one copy and the beginning of the next, the ranks have to pass a collective of the caller's:
    a copy overwrites the last but one, so that by then the last must be whole everywhere.

    A copy that is interrupted, or never ends, counts as nothing. It leaves the copy before it untouched, and the
    keeper takes no further one.
    """

    def __init__(self, ring: _Ring, generation: int, layouts: Sequence[_Layout], frozen: Sequence[_Shard]) -> None:
        self.generation = generation
        self.bytes = sum(shard.bytes.numel() for shard in frozen)  # of host memory, allocated so far
        self._ring = ring
        self._layouts = layouts
        self._frozen = [pair for shard in frozen for pair in shard.pairs]
        self._lock = threading.Lock()
        self._whole: list[tuple[Snapshot, list[_Shard]]] = []  # newest first
        self._begun: tuple[Snapshot, list[_Shard], Callable[[], None]] | None = None
        self._busy = False
        self._sealed = False

    @classmethod
    def build(cls, group: Members, generation: int, pairs: Pairs, shift: int) -> Self:
        """Tell the neighbours what will be copied, and copy what is frozen; collective.

        pairs: as every later copy gets them. Rank r's shard is kept by rank (r + shift) modulo the size; nobody else
        keeps it when that is r itself.
        """
        ring = _Ring(group, shift)
        chunks = ring.all_kept([chunk for chunk, _ in pairs])
        moving = [_Layout.of([chunk for chunk in one if chunk.kind != "frozen"]) for one in chunks]
        frozen = [_Shard(_Layout.of([chunk for chunk in one if chunk.kind == "frozen"])) for one in chunks]
        frozen[0].fill([tensor for chunk, tensor in pairs if chunk.kind == "frozen"])
        ring.begin(frozen)()
        return cls(ring, generation, moving, frozen)

    def copy(self, pairs: Pairs, step: int, note: Any) -> None:
        """Copy the state of `step`; when it returns, this rank's part is whole and the newest. Collective."""
        self.begin(pairs, step, note)
        self.finish()

    def begin(self, pairs: Pairs, step: int, note: Any) -> None:
        """Copy this rank's shard and start to exchange it: training may go on at once. Collective."""
        moving = [(chunk, tensor) for chunk, tensor in pairs if chunk.kind != "frozen"]
        assert tuple(chunk for chunk, _ in moving) == self._layouts[0].chunks, "what a rank owns stays within a group"
        slot = self._free_slot(pinned=any(tensor.is_cuda for _, tensor in moving))
        slot[0].fill([tensor for _, tensor in moving])
        snapshot = Snapshot(
            self.generation,
            step,
            self._ring.group.size,
            frozenset(self._ring.kept),
            [*self._frozen, *(pair for shard in slot for pair in shard.pairs)],
            note,
        )
        self._begun = snapshot, slot, self._ring.begin(slot)

    def finish(self) -> None:
        """Wait until what was begun is whole; then it is the newest. Collective."""
        assert self._begun is not None, "no copy was begun"
        snapshot, slot, wait = self._begun
        wait()
        with self._lock:
            self._refuse_if_sealed()
            self._whole.insert(0, (snapshot, slot))
            self._begun, self._busy = None, False

    @property
    def under_way(self) -> bool:
        """Whether a copy was begun that has not been finished."""
        return self._busy

    def snapshots(self) -> list[Snapshot]:
        """The whole ones, newest first, from any thread; the older is overwritten by the next copy."""
        with self._lock:
            return [snapshot for snapshot, _ in self._whole]

    def seal(self) -> list[Snapshot]:
        """The snapshots, newest first, which nothing changes from now on, from any thread.

        A copy under way in another thread is refused when it comes to its end, and so is every further one.
        """
        with self._lock:
            self._sealed = True
            return [snapshot for snapshot, _ in self._whole]

    def _free_slot(self, *, pinned: bool) -> list[_Shard]:
        """The memory of the older copy, which counts no longer, or new memory while there are fewer than two."""
        with self._lock:
            self._refuse_if_sealed()
            assert not self._busy, "the copy before was interrupted or has not been finished"
            self._busy = True
            if len(self._whole) == SLOTS:
                return self._whole.pop()[1]
        slot = [_Shard(layout, pinned=pinned) for layout in self._layouts]
        self.bytes += sum(shard.bytes.numel() for shard in slot)
        return slot

    def _refuse_if_sealed(self) -> None:
        if self._sealed:
            raise CheckpointError(f"generation {self.generation} is over: its copies take no further step")


@dataclass(frozen=True)
class _Layout:
    """Where a rank's chunks begin in a flat buffer; chunks in the order in which its engine gives them."""

    chunks: tuple[Chunk, ...]
    begins: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        """One after another, wide elements first, so that each is aligned."""
        begins, at = [0] * len(chunks), 0
        for index in sorted(range(len(chunks)), key=lambda index: -_dtype(chunks[index]).itemsize):
            begins[index] = at
            at += chunks[index].length * _dtype(chunks[index]).itemsize
        return cls(tuple(chunks), tuple(begins), at)


class _Shard:
    """Host memory for one rank's chunks: flat bytes, and a view of each chunk."""

    def __init__(self, layout: _Layout, *, pinned: bool = False) -> None:
        self.bytes = host_buffer(layout.length, pinned=pinned)
        self.pairs: list[tuple[Chunk, Tensor]] = []
        for chunk, begin in zip(layout.chunks, layout.begins, strict=True):
            dtype = _dtype(chunk)
            view = self.bytes[begin : begin + chunk.length * dtype.itemsize].view(dtype)
            self.pairs.append((chunk, view))

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy each chunk's elements; returns when all have arrived."""
        to_host([(view, tensor) for (_, view), tensor in zip(self.pairs, tensors, strict=True)])


@dataclass(frozen=True)
class _Ring:
    """Every rank hands its shard to the rank `shift` further on."""

    group: Members
    shift: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Whose shards are kept here: this rank's, and its neighbour's unless that is itself."""
        rank, size = self.group.rank, self.group.size
        return tuple(dict.fromkeys((rank, (rank - self.shift) % size)))

    def begin(self, shards: Sequence[_Shard]) -> Callable[[], None]:
        """Start to send the first shard on and to receive the second; the function returned waits for both."""
        return self._begin(*(shard.bytes for shard in shards))

    def all_kept(self, mine: list[Chunk]) -> list[list[Chunk]]:
        """What the ranks that are kept here hold, this rank first."""
        if len(self.kept) == 1:
            return [mine]
        told = json.dumps([asdict(chunk) for chunk in mine]).encode()
        message = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        length, incoming = torch.tensor([message.numel()]), torch.zeros(1, dtype=torch.int64)
        self._begin(length.view(torch.uint8), incoming.view(torch.uint8))()
        received = torch.empty(int(incoming), dtype=torch.uint8)
        self._begin(message, received)()
        theirs: list[dict[str, Any]] = json.loads(received.numpy().tobytes())
        return [mine, [Chunk(**(chunk | {"shape": tuple(chunk["shape"])})).checked() for chunk in theirs]]

    def _begin(self, sending: Tensor, receiving: Tensor | None = None) -> Callable[[], None]:
        if receiving is None:
            return lambda: None
        rank, size = self.group.rank, self.group.size
        return self.group.begin_exchange(
            [((rank + self.shift) % size, message) for message in _messages(sending)],
            [((rank - self.shift) % size, message) for message in _messages(receiving)],
        )


def _messages(buffer: Tensor) -> list[Tensor]:
    """Views of bounded length, in order."""
    return [buffer[begin : begin + MESSAGE_BYTES] for begin in range(0, buffer.numel(), MESSAGE_BYTES)]


def _dtype(chunk: Chunk) -> torch.dtype:
    named: torch.dtype = getattr(torch, chunk.dtype)
    return named
