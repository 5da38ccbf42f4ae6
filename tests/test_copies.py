"""Copies in the memory of neighbours: any one rank's loss is made good, and nothing half-copied ever counts."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine import build, take, targets
from torch import Tensor

from raylm.checkpoint import copies, staging
from raylm.checkpoint.chunks import Chunk, Kind
from raylm.checkpoint.copies import Keeper, Snapshot
from raylm.checkpoint.copy_schedule import CopySchedule, copy_bytes, neighbour_shift
from raylm.errors import CheckpointError
from raylm.testing.ranks import RankFailed, Ranks, ranks
from raylm.train.group import Group

FRESH_SEED = 77  # of the models that state is moved into: nothing of theirs may survive
EVERYTHING = {"frozen": True, "config": {"tie_word_embeddings": True}}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(4) as processes:
        yield processes


# -- who keeps whose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "shift"),
    [("a", 0), ("ab", 1), ("aa", 1), ("abc", 1), ("aabb", 2), ("aaab", 1), ("aabbcc", 2), ("aaabbc", 3), ("abab", 1)],
)
def test_the_keeper_of_a_shard_is_on_another_node(nodes: str, shift: int) -> None:
    assert neighbour_shift(list(nodes)) == shift


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=9))
def test_no_shift_keeps_more_shards_on_other_nodes(nodes: list[str]) -> None:
    size = len(nodes)
    apart = {d: sum(nodes[rank] != nodes[(rank + d) % size] for rank in range(size)) for d in range(1, size)}
    assert neighbour_shift(nodes) == max(apart, key=lambda shift: (apart[shift], -shift))


def test_a_thousand_ranks_are_paired_at_once() -> None:
    assert neighbour_shift([str(rank // 8) for rank in range(1024)]) == 8


# -- how often, and what it takes ----------------------------------------------------------------------------------


def test_cheap_copies_are_made_after_every_step_and_dear_ones_less_often() -> None:
    schedule = CopySchedule()
    assert schedule.interval == 1
    assert schedule.measured(0.02, 0.1).interval == 1, "below 25 ms any step may be copied"
    assert schedule.measured(0.02, 0.5).interval == 2, "of longer steps, 2 % at most"
    assert schedule.measured(0.2, 10.0).interval == 1, "2 % of a step"
    assert schedule.measured(0.2, 1.0).interval == 10
    assert schedule.measured(0.2, 3.0).interval == 4
    assert schedule.measured(0.2, 0.0).interval == 1


def test_a_setting_beats_the_cost() -> None:
    assert not any(CopySchedule(every_steps=0).measured(0.001, 1.0).due(step) for step in range(9))
    assert CopySchedule(every_steps=3).measured(9.0, 0.1).interval == 3


def test_copies_are_due_an_interval_after_the_last() -> None:
    schedule = CopySchedule(every_steps=4).copied(10)
    due = []
    for step in range(11, 24):
        if schedule.due(step):
            due.append(step)
            schedule = schedule.copied(step)
    assert due == [14, 18, 22]
    assert not CopySchedule().copied(5).due(5)


def test_one_slow_copy_does_not_set_the_pace() -> None:
    schedule = CopySchedule().measured(0.010, 0.4).measured(0.060, 0.4)
    assert schedule.interval == 1
    for _ in range(20):
        schedule = schedule.measured(0.060, 0.4)
    assert schedule.interval == 8


def test_memory_is_two_slots_of_two_shards() -> None:
    assert copy_bytes(8_000, 4) == 4 * 12 * 2_000
    assert copy_bytes(8_000, 1) == 2 * 12 * 8_000, "alone there is no neighbour"
    assert copy_bytes(8_000, 4, frozen_bytes=400) == 4 * 12 * 2_000 + 2 * 100


# -- one copy after another, on members in one process -------------------------------------------------------------


class Member:
    """A member of a group in one process, whose exchanges can be made to fail or to wait."""

    def __init__(self, rank: int, size: int, lines: dict[tuple[int, int], queue.Queue[Tensor]]) -> None:
        self.rank, self.size, self._lines = rank, size, lines
        self.refuse: Exception | None = None
        self.before_wait: Callable[[], None] = lambda: None
        self.sent: list[Tensor] = []

    def all_gather_objects(self, value: Any) -> list[Any]:
        raise AssertionError("copies talk to neighbours only")

    def exchange(self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]) -> None:
        self.begin_exchange(sending, receiving)()

    def begin_exchange(
        self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]
    ) -> Callable[[], None]:
        if self.refuse:
            raise self.refuse
        for target, tensor in sending:
            self.sent.append(tensor)
            self._lines[self.rank, target].put(tensor.clone())

        def wait() -> None:
            self.before_wait()
            for source, tensor in receiving:
                arrived = self._lines[source, self.rank].get(timeout=10)
                assert arrived.shape == tensor.shape
                tensor.copy_(arrived)

        return wait


def state(rank: int, step: int) -> list[tuple[Chunk, Tensor]]:
    """A rank's shard: narrow elements first and odd lengths, so that order and alignment matter; one part is frozen."""
    wide, kinds = 3 + rank, ("buffer", "frozen", "master", "exp_avg")
    pairs = []
    for number, (kind, dtype) in enumerate(zip(kinds, ("uint8", "bfloat16", "float32", "int64"), strict=True)):
        length = 5 + 2 * number + wide
        pairs.append(
            (chunk_of(f"t{number}", kind, rank, length, dtype), values(number, rank, step, kind, length, dtype))
        )
    return pairs


def chunk_of(name: str, kind: Any, rank: int, length: int, dtype: str) -> Chunk:
    named: Kind = kind
    return Chunk(name, named, 100 * rank, length, dtype, 1000, (1000,))


def values(number: int, rank: int, step: int, kind: str, length: int, dtype: str) -> Tensor:
    first = 7 * number + 50 * rank + (0 if kind == "frozen" else step)
    return torch.arange(first, first + length).to(getattr(torch, dtype))


def same(pairs: Sequence[tuple[Chunk, Tensor]], expected: Sequence[tuple[Chunk, Tensor]]) -> bool:
    left, right = dict(pairs), dict(expected)
    return left.keys() == right.keys() and all(bool((left[chunk] == right[chunk]).all()) for chunk in left)


def of_step(snapshot: Snapshot, step: int) -> bool:
    """Whether a snapshot is of this step, of its own ranks, in every element."""
    return snapshot.step == step and same(snapshot.pairs, [pair for r in snapshot.ranks for pair in state(r, step)])


def keepers(size: int, shift: int = 1) -> tuple[list[Member], list[Keeper]]:
    """As many members, and the keeper of each."""
    lines: dict[tuple[int, int], queue.Queue[Tensor]] = {
        (source, target): queue.Queue() for source in range(size) for target in range(size)
    }
    members = [Member(rank, size, lines) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        built = list(threads.map(lambda one: Keeper.build(one, 7, state(one.rank, 0), shift), members))
    return members, built


def copy_all(held: Sequence[Keeper], step: int) -> None:
    for rank, keeper in enumerate(held):
        keeper.begin(state(rank, step), step, {"at": step})
    for keeper in held:
        keeper.finish()


@pytest.mark.parametrize(("size", "shift"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3)])
def test_each_rank_keeps_its_own_and_one_neighbours_shard_of_the_last_two_steps(size: int, shift: int) -> None:
    _, held = keepers(size, shift)
    assert [keeper.snapshots() for keeper in held] == [[]] * size
    for step in range(1, 5):
        copy_all(held, step)
        for rank, keeper in enumerate(held):
            found = keeper.snapshots()
            assert [one.step for one in found] == list(range(step, max(0, step - 2), -1))
            assert all(of_step(one, one.step) for one in found)
            assert found[0].ranks == {rank, (rank - shift) % size}
            assert (found[0].generation, found[0].size, found[0].note) == (7, size, {"at": step})


def test_what_is_frozen_is_sent_once() -> None:
    members, held = keepers(2)
    members[0].sent.clear()
    copy_all(held, 1)
    moving = sum(chunk.length * tensor.element_size() for chunk, tensor in state(0, 1) if chunk.kind != "frozen")
    assert [message.numel() for message in members[0].sent] == [moving]


def test_shards_travel_in_bounded_pieces_of_the_copy_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MESSAGE_BYTES", 64)
    members, held = keepers(3)
    members[1].sent.clear()
    copy_all(held, 1)
    sizes = [message.numel() for message in members[1].sent]
    assert sizes[:-1] == [64] * (len(sizes) - 1)
    assert len(sizes) > 2
    places = {tensor.untyped_storage().data_ptr() for _, tensor in held[1].snapshots()[0].pairs}
    assert {message.untyped_storage().data_ptr() for message in members[1].sent} <= places
    assert all(of_step(keeper.snapshots()[0], 1) for keeper in held)


def test_host_memory_is_counted_as_it_is_taken() -> None:
    _, held = keepers(2)
    moving, frozen = (
        sum(
            tensor.numel() * tensor.element_size()
            for rank in (0, 1)
            for chunk, tensor in state(rank, 0)
            if (chunk.kind == "frozen") == wanted
        )
        for wanted in (False, True)
    )
    taken = []
    for step in range(4):
        taken.append(held[0].bytes)
        copy_all(held, step)
    assert taken == [frozen, frozen + moving, frozen + 2 * moving, frozen + 2 * moving]


def test_pinned_memory_is_given_back_with_its_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    monkeypatch.setattr(staging, "_register", lambda buffer: True)
    monkeypatch.setattr(staging, "_unregister", returned.append)
    buffer = staging.host_buffer(64, pinned=True)
    address, view = buffer.data_ptr(), buffer[8:16].view(torch.float32)
    del buffer
    assert view.numel() == 2
    assert returned == []
    del view
    assert returned == [address]


# -- copies that do not come to their end ---------------------------------------------------------------------------


def fails_to_copy(member: Member, keeper: Keeper) -> None:
    pairs = state(member.rank, 3)
    chunk, _ = pairs[-1]
    keeper.begin([*pairs[:-1], (chunk, torch.zeros(chunk.length + 1, dtype=torch.int64))], 3, None)


def fails_to_send(member: Member, keeper: Keeper) -> None:
    member.refuse = RuntimeError("no peer")
    keeper.begin(state(member.rank, 3), 3, None)


def fails_to_receive(member: Member, keeper: Keeper) -> None:
    def fail() -> None:
        raise RuntimeError("no peer")

    member.before_wait = fail
    keeper.copy(state(member.rank, 3), 3, None)


@pytest.mark.parametrize("fault", [fails_to_copy, fails_to_send, fails_to_receive])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_interrupted_copy_counts_as_nothing_and_harms_none(
    fault: Callable[[Member, Keeper], None], before: int
) -> None:
    """With two slots filled the older one is lost to it, with fewer nothing is."""
    members, held = keepers(2)
    for step in range(1, before + 1):
        copy_all(held, step)
    with pytest.raises(RuntimeError):
        fault(members[0], held[0])
    found = held[0].snapshots()
    assert [one.step for one in found] == [before][:before]
    assert all(of_step(one, one.step) for one in found)
    with pytest.raises(AssertionError, match="was interrupted"):
        held[0].begin(state(0, 4), 4, None)
    assert [one.step for one in held[0].snapshots()] == [before][:before]


def test_a_copy_that_hangs_in_a_thread_left_behind_is_read_around_and_refused_when_it_wakes() -> None:
    members, held = keepers(2)
    copy_all(held, 1)
    copy_all(held, 2)
    waiting, woken = threading.Event(), threading.Event()
    refusals: list[CheckpointError] = []

    def hang() -> None:
        waiting.set()
        woken.wait(30)

    def copy() -> None:
        try:
            held[0].copy(state(0, 3), 3, None)
        except CheckpointError as error:
            refusals.append(error)

    members[0].before_wait = hang
    thread = threading.Thread(target=copy)
    thread.start()
    assert waiting.wait(30)
    assert held[0].under_way
    assert [one.step for one in held[0].snapshots()] == [2]
    sealed = held[0].seal()
    held[1].begin(state(1, 3), 3, None)  # its shard arrives after all
    woken.set()
    thread.join(30)
    assert ["generation 7 is over" in str(error) for error in refusals] == [True]
    assert [one.step for one in sealed] == [one.step for one in held[0].snapshots()] == [2]
    assert of_step(sealed[0], 2)


def test_a_sealed_keeper_takes_no_further_copy() -> None:
    _, held = keepers(2)
    copy_all(held, 1)
    copy_all(held, 2)
    sealed = held[0].seal()
    with pytest.raises(CheckpointError, match="its copies take no further step"):
        held[0].begin(state(0, 3), 3, None)
    assert [one.step for one in sealed] == [2, 1]
    assert all(of_step(one, one.step) for one in sealed)


def test_a_copy_begun_is_not_the_newest_before_it_is_finished() -> None:
    _, held = keepers(2)
    copy_all(held, 1)
    for rank, keeper in enumerate(held):
        keeper.begin(state(rank, 2), 2, None)
    assert [one.step for one in held[0].snapshots()] == [1]
    for keeper in held:
        keeper.finish()
    assert [one.step for one in held[0].snapshots()] == [2, 1]


# -- real engines: any one rank is lost -----------------------------------------------------------------------------

# What a process of the pool holds from one group to the next.
_snapshots: list[Snapshot] = []


def learn(group: Group, stage: int, steps: int, options: dict[str, Any], overlapped: bool = False) -> Any:
    """Train and copy every step; returns the state as it stands at the end, and the bytes of the copies."""
    from raylm.checkpoint import zero_state

    engine = build(group, stage=stage, **options)
    shift = neighbour_shift([str(rank) for rank in range(group.size)])
    keeper = Keeper.build(group, group.generation, zero_state.state_to_save(engine.raw), shift)
    take(engine, 0)
    for step in range(1, steps + 1):
        keeper.begin(zero_state.state_to_save(engine.raw), step, zero_state.scalars(engine.raw))
        result = raw_state(engine)
        if overlapped or step < steps:
            take(engine, step)
        keeper.finish()
        group.barrier()
    _snapshots[:] = keeper.seal()
    elements = sum(p.numel() if stage < 3 else p.ds_numel for p in engine.model.parameters() if p.requires_grad)
    engine.destroy()
    return result, keeper.bytes, elements


def go_on(group: Group, lost: Sequence[int], stage: int, since: int, options: dict[str, Any]) -> Any:
    """Ranks `lost` have nothing, nor have those that were in no group yet; returns the state filled, and losses."""
    from raylm.checkpoint.sources import HeldByMembers
    from raylm.train.branching import fill_engine

    newest = _snapshots[:1] if group.rank not in lost else []
    held = [pair for snapshot in newest for pair in snapshot.pairs]
    notes = group.all_gather_objects([(snapshot.step, snapshot.note) for snapshot in newest])
    step, scalars = next(note for some in notes for note in some)
    engine = build(group, stage=stage, **(options | {"seed": FRESH_SEED}))
    try:
        fill_engine(engine, HeldByMembers(group, held, newest[0].step if newest else step, scalars))
        filled = raw_state(engine)
        losses = [take(engine, step).loss_sum / targets(step) for step in range(since, since + 3)]
    finally:
        engine.destroy()
    return filled, losses


def forget(group: Group) -> None:
    _snapshots.clear()


def raw_state(engine: Any) -> list[tuple[Chunk, bytes]]:
    from raylm.checkpoint import zero_state

    return [
        (chunk, t.contiguous().view(torch.uint8).numpy().tobytes()) for chunk, t in zero_state.state_to_save(engine.raw)
    ]


def whole(parts: Sequence[Sequence[tuple[Chunk, bytes]]]) -> dict[tuple[str, str], bytes]:
    """Every tensor's bytes from what all ranks own, in whatever pieces."""
    pieces: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for chunk, raw in (pair for rank in parts for pair in rank):
        pieces.setdefault(chunk.tensor, []).append((chunk.start, raw))
    return {tensor: b"".join(raw for _, raw in sorted(some)) for tensor, some in pieces.items()}


def straight(group: Group, stage: int, options: dict[str, Any], steps: int) -> list[float]:
    """Losses of a run that nothing interrupts."""
    engine = build(group, stage=stage, **options)
    losses = [take(engine, step).loss_sum / targets(step) for step in range(steps)]
    engine.destroy()
    return losses


STEPS = 4
# From how many ranks which one is lost, and at how many the others go on.
LOSSES = [(3, 2, 2), (3, 1, 4), (2, 0, 3), (4, 3, 3), (2, 1, 1), (4, 2, 4)]


def check_a_loss(pool: Ranks, stage: int, dtype: str, loss: tuple[int, int, int]) -> None:
    before, lost, after = loss
    options = EVERYTHING | {"dtype": dtype}
    pool.run(forget, 4)
    parts = [part for part, _, _ in pool.run(learn, before, stage, STEPS, options)]
    results = pool.run(go_on, after, [lost], stage, STEPS, options)
    assert whole([filled for filled, _ in results]) == whole(parts), "bit for bit"
    assert all(losses == results[0][1] for _, losses in results)
    if dtype == "fp32":
        expected = pool.run(straight, 1, stage, options, STEPS + 3)[0][STEPS:]
        np.testing.assert_allclose(results[0][1], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_any_one_rank_is_lost_and_the_others_go_on_at_another_size(pool: Ranks, stage: int, dtype: str) -> None:
    check_a_loss(pool, stage, dtype, LOSSES[(stage + 2 * (dtype == "bf16")) % len(LOSSES)])


@pytest.mark.sweep
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_loss_at_every_stage(pool: Ranks, stage: int, dtype: str, loss: tuple[int, int, int]) -> None:
    check_a_loss(pool, stage, dtype, loss)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_copy_may_travel_while_the_next_step_trains(pool: Ranks, stage: int) -> None:
    """The state moves on during the exchange; the copy is of the step that it was begun after."""
    pool.run(forget, 4)
    plain = [part for part, _, _ in pool.run(learn, 3, stage, STEPS, EVERYTHING)]
    parts = [part for part, _, _ in pool.run(learn, 3, stage, STEPS, EVERYTHING, True)]
    results = pool.run(go_on, 3, [0], stage, STEPS, EVERYTHING)
    assert whole([filled for filled, _ in results]) == whole(parts) == whole(plain)


def test_two_neighbours_lost_are_too_many(pool: Ranks) -> None:
    pool.run(forget, 4)
    pool.run(learn, 4, 1, 2, EVERYTHING)
    pool.run(go_on, 4, [0, 2], 1, 2, EVERYTHING)  # no neighbours
    with pytest.raises(RankFailed, match="no rank holds element"):
        pool.run(go_on, 4, [1, 2], 1, 2, EVERYTHING)


def go_on_with_a_stale_rank(group: Group) -> None:
    """Rank 1 offers its older snapshot: together the ranks hold every element, of two steps."""
    if group.rank == 1:
        _snapshots.pop(0)
    go_on(group, [], 1, 2, EVERYTHING)


def test_a_stale_copy_is_not_mixed_in(pool: Ranks) -> None:
    pool.run(forget, 4)
    pool.run(learn, 3, 1, 3, EVERYTHING)
    with pytest.raises(RankFailed, match=r"ranks hold the state of different steps: \[2, 3\]"):
        pool.run(go_on_with_a_stale_rank, 3)


def outlive(group: Group, stage: int, dtype: str) -> None:
    """A snapshot is what it was when it was made, whatever is trained and copied after it."""
    from raylm.checkpoint import zero_state

    engine = build(group, stage=stage, dtype=dtype, **EVERYTHING)
    take(engine, 0)
    keeper = Keeper.build(group, 1, zero_state.state_to_save(engine.raw), 1)
    keeper.copy(zero_state.state_to_save(engine.raw), 1, None)
    before = raw_state(engine)
    snapshot = keeper.snapshots()[0]
    clones = [tensor.clone() for _, tensor in snapshot.pairs]
    for step in range(1, 3):
        take(engine, step)
    keeper.copy(zero_state.state_to_save(engine.raw), 3, None)  # into the other slot
    held = {chunk: tensor.view(torch.uint8).numpy().tobytes() for chunk, tensor in snapshot.pairs}
    assert all(held[chunk] == raw for chunk, raw in before)
    assert all(torch.equal(clone, tensor) for clone, (_, tensor) in zip(clones, snapshot.pairs, strict=True))
    assert dict(raw_state(engine)) != dict(before)
    engine.destroy()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_on_changes_no_snapshot(pool: Ranks, dtype: str) -> None:
    for stage in (0, 1, 2, 3):
        pool.run(outlive, 2, stage, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_host_memory_is_as_predicted(pool: Ranks, stage: int, dtype: str) -> None:
    for size in (1, 3):
        for _, taken, elements in pool.run(learn, size, stage, 2, {"dtype": dtype}):
            assert taken == pytest.approx(copy_bytes(elements, size), rel=0.1)


NOTICE_SECONDS = 30.0


def survive(rank: int, size: int, address: str, stage: int, overlapped: bool) -> Any:
    """Rank 2 dies instead of copying the state of step 4, or in the step behind which the copy of step 3 travels."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.sources import HeldByMembers
    from raylm.train.branching import fill_engine
    from raylm.train.group import GroupBroken, Rendezvous, form_group, leave_group

    group = form_group(Rendezvous(address, rank, size, generation=0, timeout_seconds=NOTICE_SECONDS))
    engine = build(group, stage=stage)
    keeper = Keeper.build(group, 0, zero_state.state_to_save(engine.raw), 1)
    try:
        for step in range(6):
            die_if(rank == 2 and step == 3 and overlapped)
            take(engine, step)
            die_if(rank == 2 and step == 3)
            if keeper.under_way:
                keeper.finish()
            keeper.begin(zero_state.state_to_save(engine.raw), step + 1, zero_state.scalars(engine.raw))
            if not overlapped:
                keeper.finish()
    except GroupBroken:
        if overlapped:
            keeper.finish()
    held = keeper.seal()
    engine.destroy()
    leave_group(group)
    group = form_group(Rendezvous(address, rank, size - 1, generation=1, timeout_seconds=60))
    offers = group.all_gather_objects([(one.step, one.ranks) for one in held])
    counts = Counter((step, owner) for some in offers for step, owners in some for owner in owners)
    chosen = max(step for step, _ in counts if all(counts[step, owner] for owner in range(size)))
    snapshot = next(one for one in held if one.step == chosen)
    engine = build(group, stage=stage, seed=FRESH_SEED)
    fill_engine(engine, HeldByMembers(group, snapshot.pairs, snapshot.step, snapshot.note))
    losses = [take(engine, step).loss_sum / targets(step) for step in range(chosen, 6)]
    engine.destroy()
    leave_group(group)
    return [one.step for one in held], chosen, losses


def die_if(now: bool) -> None:
    if now:
        time.sleep(0.5)  # for what was begun to arrive
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("stage", [1, 3])
def test_survivors_of_a_kill_go_on_from_the_newest_copy_that_is_whole(
    pool: Ranks, stage: int, overlapped: bool
) -> None:
    """In the midst of a copy it is the one before; a copy that has arrived is finished although its sender is dead."""
    expected = pool.run(straight, 1, stage, {}, 6)[0]
    first, second, third = pool.run_bare(survive, 3, stage, overlapped, dying=[2])
    assert third is None
    assert first[0] == ([3, 2] if overlapped else [3]), "rank 0 keeps the shard of the dead one"
    assert first[1:] == second[1:]
    assert first[1] == 3
    np.testing.assert_allclose(first[2], expected[3:], rtol=0, atol=1e-6)
