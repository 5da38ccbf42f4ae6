"""State that moves between ZeRO stages and numbers of ranks inside living processes, and what must not pass."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engine import build, take, targets

from raylm.checkpoint.chunks import KINDS, Chunk
from raylm.checkpoint.memory import plan_moves
from raylm.errors import CheckpointError
from raylm.testing.ranks import RankFailed, Ranks, ranks
from raylm.train.group import Group

FRESH_SEED = 77  # of the models that state is moved into: nothing of theirs may survive
EVERYTHING = {"frozen": True, "config": {"tie_word_embeddings": True}}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with ranks(4) as processes:
        yield processes


@dataclass(frozen=True)
class Stay:
    """One stretch of a walk: so many ranks train at one ZeRO stage until `until` steps are done."""

    size: int
    stage: int
    until: int


# What a process holds between the groups it is in: pieces of state, and the optimizer's counter.
_held: list[tuple[Chunk, Any]] = []
_scalars: dict[str, int | float] = {}
_journeys = count(1)


def snapshot(pairs: Iterable[tuple[Chunk, Any]]) -> list[tuple[Chunk, Any]]:
    """What an engine owns, in memory that outlives it."""
    return [(chunk, tensor.detach().to("cpu", copy=True)) for chunk, tensor in pairs]


def copies(group: Group, held: Sequence[tuple[Chunk, Any]], of: Sequence[int]) -> list[tuple[Chunk, Any]]:
    """All that ranks `of` hold; every rank calls it, each with its own wish."""
    import torch

    from raylm.checkpoint import memory

    everyones = group.all_gather_objects([chunk for chunk, _ in held])
    chunks = {chunk for rank in of for chunk in everyones[rank]}
    wanted = [(chunk, torch.empty(chunk.length, dtype=getattr(torch, chunk.dtype))) for chunk in sorted(chunks)]
    memory.reshard(group, held, wanted)
    return wanted


def train(group: Group, journey: int, stay: Stay, since: int, options: dict[str, Any], leaving: int, lost: str) -> Any:
    """Take up the state from memory, train, and lay it down again; ranks >= `leaving` are about to go.

    With lost="neighbour" each rank keeps a copy of its neighbour's part, as against a kill; with "told" the leavers
    hand theirs over. Returns losses by step and checksums of what is not trained.
    """
    from raylm.checkpoint import memory, zero_state

    if _scalars.get("journey") != journey:  # processes live on from test to test
        _held.clear()
        _scalars.clear()
    engine = build(group, stage=stay.stage, **(options | ({"seed": FRESH_SEED} if since else {})))
    if since:
        memory.reshard(group, _held, zero_state.state_to_fill(engine.raw), step=since if _held else None)
        zero_state.after_fill(engine.raw, _agreed(group, _scalars))
    losses = {step: take(engine, step).loss_sum / targets(step) for step in range(since, stay.until)}
    untrained = [
        float(buffer.double().sum()) for name, buffer in engine.model.named_buffers() if "inv_freq" not in name
    ]
    _held[:] = snapshot(zero_state.state_to_save(engine.raw))
    _scalars.update(zero_state.scalars(engine.raw), journey=journey)
    engine.destroy()
    if lost == "neighbour":
        _held.extend(copies(group, _held, [(group.rank - 1) % group.size] if group.size > 1 else []))
    else:
        gone = range(leaving, group.size)
        _held.extend(copies(group, _held, [rank for rank in gone if rank % leaving == group.rank]))
    if group.rank >= leaving:
        _held.clear()
        _scalars.clear()
    return losses, untrained


def _agreed(group: Group, mine: dict[str, int | float]) -> dict[str, int | float]:
    """The scalars of whoever has any: a newcomer has none."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * group.size
    dist.all_gather_object(gathered, mine)
    return next(scalars for scalars in gathered if scalars)


def walk(pool: Ranks, stays: list[Stay], lost: str = "told", **options: Any) -> list[float]:
    """Losses by step over the stays, in the same processes throughout."""
    losses: dict[int, float] = {}
    since, journey = 0, next(_journeys)
    for stay, following in zip(stays, [*stays[1:], stays[-1]], strict=True):
        results = pool.run(train, stay.size, journey, stay, since, options, min(stay.size, following.size), lost)
        assert all(result == results[0] for result in results)
        if options.get("frozen"):
            assert results[0][1] == [21.0, 1.0], "buffers are the first model's"
        losses |= results[0][0]
        since = stay.until
    return [losses[step] for step in sorted(losses)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_ranks_two_then_three_again_in_living_processes(pool: Ranks, stage: int) -> None:
    """The third is lost without a word: what it held is with its neighbour."""
    expected = walk(pool, [Stay(1, stage, 9)])
    measured = walk(pool, [Stay(3, stage, 3), Stay(2, stage, 6), Stay(3, stage, 9)], lost="neighbour")
    assert expected[-1] < expected[0] - 0.5
    np.testing.assert_allclose(measured, expected, rtol=0, atol=2e-6)


# A peer is lost at the latest after this long without an answer from it.
NOTICE_SECONDS = 30.0


def survive(rank: int, size: int, address: str, stage: int) -> Any:
    """Train on three ranks, of which the last kills itself in the midst of step 4; the others go on without it."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.sources import HeldByMembers
    from raylm.train.group import GroupBroken, Rendezvous, form_group, leave_group
    from raylm.train.saving import fill_engine

    losses: dict[int, float] = {}
    group = form_group(Rendezvous(address, rank, size, generation=0, timeout_seconds=NOTICE_SECONDS))
    engine = build(group, stage=stage)
    for step in range(4):
        losses[step] = take(engine, step).loss_sum / targets(step)
    held, scalars = snapshot(zero_state.state_to_save(engine.raw)), zero_state.scalars(engine.raw)
    held += copies(group, held, [(rank - 1) % size])
    if rank == 2:
        engine.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    began = time.monotonic()
    with pytest.raises(GroupBroken):
        take(engine, 4)
    engine.destroy()
    leave_group(group)
    seconds = time.monotonic() - began
    group = form_group(Rendezvous(address, rank, size - 1, generation=1, timeout_seconds=60))
    engine = build(group, stage=stage, seed=FRESH_SEED)
    fill_engine(engine, HeldByMembers(group, held, step=4, scalars=scalars))
    for step in range(4, 8):
        losses[step] = take(engine, step).loss_sum / targets(step)
    engine.destroy()
    leave_group(group)
    return [losses[step] for step in sorted(losses)], seconds


@pytest.mark.parametrize("stage", [1, 3])
def test_survivors_of_a_kill_go_on_in_their_processes_without_losing_a_step(pool: Ranks, stage: int) -> None:
    expected = walk(pool, [Stay(1, stage, 8)])
    first, second, third = pool.run_bare(survive, 3, stage, dying=[2])
    assert third is None
    assert first[0] == second[0]
    np.testing.assert_allclose(first[0], expected, rtol=0, atol=2e-6)
    # Mostly at once, from the dead one's closed sockets; now and then a survivor waits for the other (docs/facts.md).
    assert max(first[1], second[1]) < 2 * NOTICE_SECONDS


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_four_ranks_one_and_any_number_after(pool: Ranks, stage: int, dtype: str) -> None:
    options = EVERYTHING | {"dtype": dtype}
    sizes = [4, 1, 2, 4, 3, 1, 4, 2, 3, 4]
    expected = walk(pool, [Stay(1, stage, 20)], **options)
    measured = walk(pool, [Stay(size, stage, 2 * number + 2) for number, size in enumerate(sizes)], **options)
    noise = 5e-6
    if dtype == "bf16":
        control = walk(pool, [Stay(4, stage, 20)], **options)
        noise = 2 * float(np.abs(np.array(control) - np.array(expected)).max())
    np.testing.assert_allclose(measured, expected, rtol=0, atol=noise)


# Every ordered pair of stages, one after another: 0-1, 1-0, 0-2, 2-0, 0-3, 3-1, ...
TOUR = [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0]
SIZES = [2, 1, 3, 2, 3, 1, 2, 3, 1, 2, 1, 3, 2]


def tour(sizes: list[int]) -> list[Stay]:
    return [Stay(size, stage, step + 1) for step, (size, stage) in enumerate(zip(sizes, TOUR, strict=True))]


def test_any_stage_to_any_stage_with_frozen_tied_and_buffers(pool: Ranks) -> None:
    expected = walk(pool, [Stay(1, 1, len(TOUR))], **EVERYTHING)
    measured = walk(pool, tour(SIZES), **EVERYTHING)
    np.testing.assert_allclose(measured, expected, rtol=0, atol=5e-6)


def test_any_stage_to_any_stage_in_bf16(pool: Ranks) -> None:
    """Within twice what another number of ranks or another stage does by itself, measured beside it."""
    options = EVERYTHING | {"dtype": "bf16"}
    expected = np.array(walk(pool, [Stay(1, 1, len(TOUR))], **options))
    controls = [walk(pool, [Stay(size, stage, len(TOUR))], **options) for size, stage in ((2, 0), (3, 1), (3, 3))]
    noise = max(float(np.abs(np.array(control) - expected).max()) for control in controls)
    assert noise < 0.05
    assert float(np.abs(np.array(walk(pool, tour(SIZES), **options)) - expected).max()) <= 2 * noise


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_same_size_and_stage_goes_on_bit_for_bit(pool: Ranks, dtype: str) -> None:
    for stage in (0, 1, 2, 3):
        options = EVERYTHING | {"dtype": dtype}
        straight = walk(pool, [Stay(2, stage, 4)], **options)
        assert walk(pool, [Stay(2, stage, 2), Stay(2, stage, 4)], **options) == straight


def test_offload_moves_like_the_rest(pool: Ranks) -> None:
    expected = walk(pool, [Stay(1, 2, 6)])
    measured = walk(pool, [Stay(2, 1, 2), Stay(3, 3, 4), Stay(2, 2, 6)], offload=True)
    np.testing.assert_allclose(measured, expected, rtol=0, atol=2e-6)


def corrupt(group: Group, stage: int, without: str) -> list[float]:
    """A round trip in memory that forgets something."""
    from raylm.checkpoint import memory, zero_state

    options = {"seed": FRESH_SEED}
    engine = build(group, stage=stage)
    for step in range(4):
        take(engine, step)
    held, scalars = snapshot(zero_state.state_to_save(engine.raw)), zero_state.scalars(engine.raw)
    engine.destroy()
    engine = build(group, stage=stage, **options)
    wanted = [(chunk, tensor) for chunk, tensor in zero_state.state_to_fill(engine.raw) if chunk.kind != without]
    memory.reshard(group, held, wanted)
    if without == "weights":
        zero_state.after_fill(build_nothing(engine), scalars)
    else:
        zero_state.after_fill(engine.raw, {name: 0 if without == name else value for name, value in scalars.items()})
    losses = [take(engine, step).loss_sum / targets(step) for step in range(4, 8)]
    engine.destroy()
    return losses


def build_nothing(engine: Any) -> Any:
    """The engine's optimizer without the refresh of weights from masters."""
    engine.raw.optimizer.update_lp_params = lambda: None
    return engine.raw


def test_a_round_trip_that_forgets_something_is_seen(pool: Ranks) -> None:
    """Negative controls: each would pass unnoticed if the tests above compared too loosely."""
    fine = np.array(pool.run(corrupt, 2, 1, "nothing")[0])
    np.testing.assert_allclose(fine, walk(pool, [Stay(1, 1, 8)])[4:], rtol=0, atol=2e-6)
    for forgotten in ("master", "exp_avg", "exp_avg_sq", "optimizer_step", "weights"):
        harmed = np.array(pool.run(corrupt, 2, 1, forgotten)[0])
        assert float(np.abs(harmed - fine).max()) > 1e-3, forgotten


def pieces(group: Group, stage: int, dtype: str, offload: bool) -> list[tuple[Chunk, int]]:
    """What this rank owns after a step, with where in memory it stands."""
    from raylm.checkpoint import zero_state

    engine = build(group, stage=stage, dtype=dtype, offload=offload, **EVERYTHING)
    take(engine, 0)
    result = [(chunk.checked(), tensor.numel()) for chunk, tensor in zero_state.state_to_save(engine.raw)]
    for chunk, tensor in zero_state.state_to_fill(engine.raw):
        assert tensor.dim() == 1
        assert str(tensor.dtype) == f"torch.{chunk.dtype}"
        assert tensor.numel() == chunk.length
    engine.destroy()
    return result


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_element_is_owned_exactly_once(pool: Ranks, stage: int) -> None:
    for dtype, offload in (("fp32", False), ("bf16", False), *([("bf16", True)] if stage else [])):
        spans: dict[tuple[str, str], list[Chunk]] = {}
        for chunk, numel in (pair for rank in pool.run(pieces, 3, stage, dtype, offload) for pair in rank):
            assert chunk.length == numel
            spans.setdefault(chunk.tensor, []).append(chunk)
        for chunks in spans.values():
            ends = [0] + [chunk.stop for chunk in sorted(chunks, key=lambda chunk: chunk.start)]
            assert [chunk.start for chunk in sorted(chunks, key=lambda chunk: chunk.start)] == ends[:-1]
            assert ends[-1] == chunks[0].numel
        kinds = {kind: {name for of, name in spans if of == kind} for kind in KINDS}
        assert kinds["master"] == kinds["exp_avg"] == kinds["exp_avg_sq"]
        assert len(kinds["frozen"]) == 4
        assert kinds["buffer"] == {"table", "model.count"}
        assert "lm_head.weight" not in kinds["master"], "tied to the embedding"
        assert {chunks[0].dtype for tensor, chunks in spans.items() if tensor[0] == "master"} == {"float32"}


def uncovered(group: Group) -> str:
    """What a rank is told when state was lost with others; nothing may be written then."""
    from raylm.checkpoint import memory, zero_state

    engine = build(group, stage=1)
    before = [tensor.clone() for _, tensor in zero_state.state_to_fill(engine.raw)]
    held = snapshot(zero_state.state_to_save(engine.raw))
    for _, tensor in held:
        tensor.zero_()
    try:
        memory.reshard(group, held if group.rank else held[:-1], zero_state.state_to_fill(engine.raw))
    except CheckpointError as error:
        after = [tensor for _, tensor in zero_state.state_to_fill(engine.raw)]
        assert all(bool((old == new).all()) for old, new in zip(before, after, strict=True))
        return f"{error} / {error.hint}"
    finally:
        engine.destroy()
    return "passed"


def test_lost_state_is_an_error_on_every_rank_and_changes_nothing(pool: Ranks) -> None:
    told = pool.run(uncovered, 2)
    assert told[0] == told[1]
    assert told[0].startswith("no rank holds element ")
    assert "exp_avg_sq" in told[0]
    assert told[0].endswith("resume from the newest checkpoint")


def of_two_steps(group: Group) -> None:
    from raylm.checkpoint import memory

    memory.reshard(group, [(chunk(0, 4, 4), None)], [], step=5 + group.rank)


def test_pieces_of_different_steps_are_not_mixed(pool: Ranks) -> None:
    with pytest.raises(RankFailed, match=r"ranks hold the state of different steps: \[5, 6\]"):
        pool.run(of_two_steps, 2)


def without_counter(group: Group) -> None:
    from raylm.checkpoint import zero_state

    engine = build(group, stage=1)
    try:
        zero_state.after_fill(engine.raw, {"other": 3})
    finally:
        engine.destroy()


def test_state_without_a_step_counter_is_refused(pool: Ranks) -> None:
    with pytest.raises(RankFailed, match=r"the state lacks 'optimizer_step' \(it has: other\)"):
        pool.run(without_counter, 1)


# -- the plan, which is pure ---------------------------------------------------------------------------------------


def chunk(start: int, stop: int, numel: int = 100, name: str = "w") -> Chunk:
    return Chunk(name, "master", start, stop - start, "float32", numel, (numel,))


def cuts(draw: st.DrawFn, numel: int) -> list[int]:
    return [0, *sorted(draw(st.sets(st.integers(1, numel - 1), max_size=5))), numel]


@st.composite
def holdings(draw: st.DrawFn) -> tuple[list[list[Chunk]], list[list[Chunk]]]:
    """Pieces that cover a tensor, dealt to ranks with some copies, and others that ranks want."""
    numel, size = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    held: list[list[Chunk]] = [[] for _ in range(size)]
    ends = cuts(draw, numel)
    for start, stop in pairwise(ends):
        for rank in draw(st.sets(st.integers(0, size - 1), min_size=1)):
            held[rank].append(chunk(start, stop, numel))
    wanted = [
        [chunk(a, b, numel)]
        for a, b in (sorted(draw(st.sets(st.integers(0, numel), min_size=2, max_size=2))) for _ in range(size))
    ]
    return held, wanted


@given(holdings())
def test_moves_bring_every_wanted_element_once_and_from_a_holder(state: tuple[list[list[Chunk]], Any]) -> None:
    held, wanted = state
    filled = [[np.zeros(piece.length, int) for piece in pieces] for pieces in wanted]
    for move in plan_moves(held, wanted):
        source, target = held[move.source][move.held], wanted[move.target][move.wanted]
        assert source.start + move.held_at == target.start + move.wanted_at
        assert 0 <= move.held_at <= move.held_at + move.length <= source.length
        filled[move.target][move.wanted][move.wanted_at : move.wanted_at + move.length] += 1
    assert all((piece == 1).all() for pieces in filled for piece in pieces)


@given(holdings())
def test_nothing_that_a_rank_holds_itself_is_sent_to_it(state: tuple[list[list[Chunk]], Any]) -> None:
    held, wanted = state
    for move in plan_moves(held, wanted):
        if move.source != move.target:
            target = wanted[move.target][move.wanted]
            first = target.start + move.wanted_at
            assert not any(piece.start < first + move.length and first < piece.stop for piece in held[move.target])


def test_copies_share_the_sending() -> None:
    everything = [chunk(0, 100)]
    moves = plan_moves([everything, everything, [], []], [[], [], [chunk(0, 50)], [chunk(50, 100)]])
    assert sorted(move.source for move in moves) == [0, 1]


def test_another_models_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has 50 elements here and 100 there") as caught:
        plan_moves([[chunk(0, 100)]], [[chunk(0, 50, numel=50)]])
    assert "another model" in str(caught.value.hint)


def test_a_damaged_chunk_is_refused() -> None:
    for damaged in (
        replace(chunk(0, 10), start=95),
        replace(chunk(0, 10), length=-1),
        replace(chunk(0, 10), shape=(7,)),
    ):
        with pytest.raises(CheckpointError, match="does not fit a tensor of shape"):
            damaged.checked()
    assert chunk(0, 10).checked() == chunk(0, 10)
