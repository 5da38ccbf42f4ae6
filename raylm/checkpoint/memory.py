"""Resharding without storage: chunks that living ranks hold fill what each rank wants.

Every rank learns what all ranks hold and want, works out the same moves, and sends exactly the elements needed.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from raylm.checkpoint.chunks import Chunk
from raylm.errors import CheckpointError

# Bytes sent from one rank to another at once: chunks are small and many, and joined copies of all would double memory.
MESSAGE_BYTES = 64 << 20


class Members(Protocol):
    """What resharding needs of a group."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on all of them."""

    def exchange(self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]) -> None:
        """Send tensors to ranks and fill others from ranks, all at once; returns when all have arrived."""

    def begin_exchange(
        self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]
    ) -> Callable[[], None]:
        """As exchange, but at once: the function returned waits, and until then the tensors are not to be touched."""


@dataclass(frozen=True)
class Move:
    """`length` elements from rank `source`'s held chunk `held` at `held_at` to rank `target`'s wanted chunk."""

    source: int
    held: int
    held_at: int
    target: int
    wanted: int
    wanted_at: int
    length: int


def reshard(
    group: Members,
    held: Sequence[tuple[Chunk, Tensor]],
    wanted: Sequence[tuple[Chunk, Tensor]],
    *,
    step: int | None = None,
) -> int:
    """Fill every rank's wanted tensors from what the ranks hold; returns the bytes this rank received.

    Chunks may overlap (copies kept for a neighbour); any of them serves. `step` is the one that held chunks are of.
    When some element is held by no rank, or ranks hold different steps, every rank raises CheckpointError and nothing
    is written.
    """
    _one_step(group, step if held else None)
    index = _everyones(group, [chunk for chunk, _ in held], [chunk for chunk, _ in wanted])
    moves = plan_moves([chunks for chunks, _ in index], [chunks for _, chunks in index])
    for move in moves:
        if move.source == move.target == group.rank:
            _part(wanted[move.wanted][1], move.wanted_at, move.length).copy_(
                _part(held[move.held][1], move.held_at, move.length)
            )
    return _exchange(group, moves, held, wanted, [chunks for chunks, _ in index])


def plan_moves(held: Sequence[Sequence[Chunk]], wanted: Sequence[Sequence[Chunk]]) -> list[Move]:
    """Which rank sends what to whom, given what each holds and wants; the same list wherever it is worked out."""
    holders: dict[tuple[str, str], list[tuple[int, int, int, int]]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for rank, chunks in enumerate(held):
        for number, chunk in enumerate(chunks):
            holders[chunk.tensor].append((chunk.start, chunk.stop, rank, number))
            sizes[chunk.tensor] = chunk.numel
    for spans in holders.values():
        spans.sort()
    sent = [0] * len(held)
    moves: list[Move] = []
    for target, chunks in enumerate(wanted):
        for number, chunk in enumerate(chunks):
            if sizes.get(chunk.tensor, chunk.numel) != chunk.numel:
                raise CheckpointError(
                    f"{chunk.kind} {chunk.name!r} has {chunk.numel} elements here and {sizes[chunk.tensor]} there",
                    hint="the ranks hold the state of another model: resume from a checkpoint of this one",
                )
            for move in _fill(chunk, target, number, holders.get(chunk.tensor, []), sent):
                sent[move.source] += move.length if move.source != target else 0
                moves.append(move)
    return moves


def _fill(
    chunk: Chunk, target: int, number: int, spans: list[tuple[int, int, int, int]], sent: Sequence[int]
) -> Iterator[Move]:
    """Moves that cover one wanted chunk: from the rank itself where it can, else from whoever sends least so far."""
    own = [span for span in spans if span[2] == target]
    at = chunk.start
    while at < chunk.stop:
        begun = spans[: bisect.bisect_right(spans, at, key=lambda span: span[0])]
        able = [span for span in begun if span[1] > at]
        if not able:
            raise CheckpointError(
                f"no rank holds element {at} of {chunk.kind} {chunk.name!r}",
                hint="too many workers were lost at once: resume from the newest checkpoint",
            )
        start, stop, source, number_held = min(able, key=lambda span: (span[2] != target, sent[span[2]], span[2]))
        stop = min(stop, chunk.stop)
        if source != target:  # not beyond where the rank's own copy begins
            stop = min([stop, *(span[0] for span in own if span[0] > at)])
        yield Move(source, number_held, at - start, target, number, at - chunk.start, stop - at)
        at = stop


def _one_step(group: Members, step: int | None) -> None:
    """Chunks of two steps cover the state as well as those of one, and would be mixed without a sound."""
    steps: list[int | None] = group.all_gather_objects(step)
    if len(different := {number for number in steps if number is not None}) > 1:
        raise CheckpointError(
            f"ranks hold the state of different steps: {sorted(different)}",
            hint="only those that were in the last group may offer state: resume from the newest checkpoint",
        )


def _everyones(group: Members, held: list[Chunk], wanted: list[Chunk]) -> list[tuple[list[Chunk], list[Chunk]]]:
    return group.all_gather_objects((held, wanted))


def _exchange(
    group: Members,
    moves: Sequence[Move],
    held: Sequence[tuple[Chunk, Tensor]],
    wanted: Sequence[tuple[Chunk, Tensor]],
    index: Sequence[Sequence[Chunk]],
) -> int:
    """Send and receive what crosses ranks, a bounded number of bytes from rank to rank at a time."""
    between: dict[tuple[int, int], list[Move]] = defaultdict(list)
    for move in moves:
        if move.source != move.target and group.rank in (move.source, move.target):
            between[move.source, move.target].append(move)
    queues = {
        pair: list(_messages(batch, [_itemsize(index[pair[0]][move.held].dtype) for move in batch]))
        for pair, batch in sorted(between.items())
    }
    received = 0
    for turn in range(max((len(queue) for queue in queues.values()), default=0)):
        arriving: list[tuple[int, list[Move], Tensor]] = []
        sending: list[tuple[int, Tensor]] = []
        for (source, target), queue in queues.items():
            if turn >= len(queue):
                continue
            batch = queue[turn]
            if source == group.rank:
                message = torch.cat([_bytes(_part(held[m.held][1], m.held_at, m.length)) for m in batch])
                sending.append((target, message))
            else:
                total = sum(m.length * _itemsize(index[source][m.held].dtype) for m in batch)
                buffer = torch.empty(total, dtype=torch.uint8)
                arriving.append((source, batch, buffer))
        group.exchange(sending, [(source, buffer) for source, _, buffer in arriving])
        for source, batch, buffer in arriving:
            _unpack(buffer, batch, index[source], wanted)
            received += buffer.numel()
    return received


def _unpack(
    buffer: Tensor, batch: Sequence[Move], held: Sequence[Chunk], wanted: Sequence[tuple[Chunk, Tensor]]
) -> None:
    at = 0
    for move in batch:
        dtype: torch.dtype = getattr(torch, held[move.held].dtype)
        stop = at + move.length * dtype.itemsize
        # A copy, because a view as a wider type must begin at a multiple of its size.
        values = buffer[at:stop].clone().view(dtype)
        _part(wanted[move.wanted][1], move.wanted_at, move.length).copy_(values)
        at = stop


def _messages(moves: Sequence[Move], sizes: Sequence[int]) -> Iterator[list[Move]]:
    """The moves in order, cut into messages of about MESSAGE_BYTES; long moves are cut too."""
    batch: list[Move] = []
    left = MESSAGE_BYTES
    for move, size in zip(moves, sizes, strict=True):
        done = 0
        while done < move.length:
            if left < size:
                yield batch
                batch, left = [], MESSAGE_BYTES
            length = min(move.length - done, left // size)
            batch.append(
                Move(
                    move.source,
                    move.held,
                    move.held_at + done,
                    move.target,
                    move.wanted,
                    move.wanted_at + done,
                    length,
                )
            )
            done += length
            left -= length * size
    if batch:
        yield batch


def _part(tensor: Tensor, start: int, length: int) -> Tensor:
    return tensor.detach().view(-1).narrow(0, start, length)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.to("cpu").contiguous().view(torch.uint8)


def _itemsize(dtype: str) -> int:
    named: torch.dtype = getattr(torch, dtype)
    return named.itemsize
