"""The order of the data is exact: wide grids of sizes, and random ones."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raylm.errors import ConfigError, DataError
from raylm.stream.lanes import DatasetRows, Geometry, Order
from raylm.stream.mixture import PERIOD, Mixture, quantised


def order(
    *shard_rows: tuple[int, ...],
    sequences: int = 8,
    micro_batch: int = 2,
    chunk: int = 4,
    window: int = 2,
    seed: int = 0,
) -> Order:
    datasets = [DatasetRows(rows, weight=number + 1.0) for number, rows in enumerate(shard_rows)]
    return Order(datasets, Geometry(sequences, micro_batch, chunk, window, seed))


def global_batch(plan: Order, step: int) -> list[tuple[int, int, int]]:
    """(dataset, id, epoch) of every position of a step, in order."""
    found = []
    for lane in range(plan.lanes):
        ids, epochs = plan.micro_batch(lane, step)
        found += list(zip(plan.datasets_of(lane, step).tolist(), ids.tolist(), epochs.tolist(), strict=True))
    return found


def check_exactly_once(plan: Order, steps: int) -> None:
    """Each dataset counts off its epochs in time: N positions of epoch 0, every row once; then epoch 1; and so on."""
    seen: dict[int, list[tuple[int, int]]] = {}
    for step in range(steps):
        for dataset, number, epoch in global_batch(plan, step):
            seen.setdefault(dataset, []).append((number, epoch))
    first = 0
    for dataset, described in enumerate(plan.datasets):
        rows = described.rows
        taken = seen.get(dataset, [])
        for epoch in range(-(-len(taken) // rows)):
            part = taken[epoch * rows : (epoch + 1) * rows]
            assert {number for _, number in part} == {epoch}
            ids = [number for number, _ in part]
            assert len(set(ids)) == len(ids)
            assert set(ids) <= set(range(first, first + rows))
        first += rows


@pytest.mark.parametrize("rows", [(1,), (3,), (5, 2), (64,), (7, 0, 9, 1), (100, 3), (40, 40, 41)])
@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (8, 2, 4, 2), (8, 8, 3, 1), (12, 1, 64, 8), (30, 5, 4, 3)])
def test_every_row_once_an_epoch_in_time_order(rows: tuple[int, ...], geometry: tuple[int, int, int, int]) -> None:
    sequences, micro_batch, chunk, window = geometry
    plan = order(rows, sequences=sequences, micro_batch=micro_batch, chunk=chunk, window=window)
    check_exactly_once(plan, steps=3 * sum(rows) // sequences + 3)


@pytest.mark.parametrize("seed", range(3))
def test_every_row_once_in_a_mixture(seed: int) -> None:
    plan = order((50, 13), (7,), (1,), (200,), sequences=12, micro_batch=3, seed=seed)
    check_exactly_once(plan, steps=120)


def test_every_row_once_while_weights_change() -> None:
    datasets = [
        DatasetRows((40, 9), weight=1, weight_schedule=((10, 0.0), (30, 2.0))),
        DatasetRows((33,), weight=1, weight_schedule=((20, 9.0), (50, 0.0))),
        DatasetRows((5,), weight=0.5, weight_schedule=()),
    ]
    plan = Order(datasets, Geometry(8, 2, 4, 2, 0))
    check_exactly_once(plan, steps=90)
    shares = [
        Counter(s for t in steps for s, _, _ in global_batch(plan, t)) for steps in (range(10, 20), range(50, 90))
    ]
    assert shares[0][0] == 0
    assert shares[0][1] > 0
    assert shares[1][1] == 0
    assert shares[1][0] > shares[1][2] > 0


@settings(max_examples=40, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=1, max_size=3),
    micro_batch=st.integers(1, 5),
    lanes=st.integers(1, 7),
    chunk=st.integers(1, 20),
    window=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    weight_schedule=st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 5)), max_size=2),
)
def test_every_row_once_for_random_sizes(
    shards: list[list[int]],
    micro_batch: int,
    lanes: int,
    chunk: int,
    window: int,
    seed: int,
    weight_schedule: list[tuple[int, float]],
) -> None:
    datasets = [
        DatasetRows((*rows, 1), weight=1.0 + number, weight_schedule=tuple(weight_schedule) if number == 0 else ())
        for number, rows in enumerate(shards)
    ]
    plan = Order(datasets, Geometry(micro_batch * lanes, micro_batch, chunk, window, seed))
    check_exactly_once(plan, steps=40)


@pytest.mark.parametrize("start", [0, 1, 7, 23])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_blocks_come_in_the_order_of_need_from_any_step(world_size: int, start: int) -> None:
    plan = order((50, 13), (7,), (100,), sequences=8, micro_batch=2)
    for rank in range(world_size):
        lanes = list(range(rank, plan.lanes, world_size))
        needs, held = plan.needs(lanes, start), {}
        for step in range(start, start + 30):
            for lane in lanes:
                ids, epochs = plan.micro_batch(lane, step)
                taken = Counter[int]()
                for place, dataset in enumerate(plan.datasets_of(lane, step).tolist()):
                    nth = plan.taken(dataset, lane, step) + taken[dataset]
                    taken[dataset] += 1
                    if (lane, dataset) not in held or held[lane, dataset].end <= nth:
                        block = next(needs)
                        assert (block.lane, block.dataset) == (lane, dataset)
                        held[lane, dataset] = block
                    block = held[lane, dataset]
                    assert block.first <= nth < block.end
                    assert plan.ids(dataset, block.rows)[nth - block.first] == ids[place]
                    assert block.epoch == epochs[place]


def test_the_seed_and_the_epoch_change_the_order() -> None:
    def ids(seed: int, steps: range) -> list[int]:
        plan = order((64,), seed=seed)
        return [number for step in steps for _, number, _ in global_batch(plan, step)]

    first, again, other, second = ids(0, range(8)), ids(0, range(8)), ids(1, range(8)), ids(0, range(8, 16))
    assert first == again
    assert len({tuple(first), tuple(other), tuple(second)}) == 3
    assert sorted(first) == sorted(other) == sorted(second) == list(range(64))


def test_the_order_is_pinned() -> None:
    # A run must resume in the same order after an upgrade: these numbers may never change.
    plan = order((50, 13), (7,), sequences=4, micro_batch=2)
    found = [number for step in (0, 5, 1000) for _, number, _ in global_batch(plan, step)]
    assert found == [55, 57, 29, 66, 12, 67, 28, 43, 40, 27, 59, 65]


def test_row_ranges_hold_the_rows_and_stay_inside_chunks() -> None:
    shard_rows = (50, 13, 1, 26)
    plan = order(shard_rows, chunk=8, window=3)
    firsts = np.concatenate([[0], np.cumsum(shard_rows)])
    for block in itertools.islice(plan.needs(range(plan.lanes), 0), 60):
        read = np.concatenate([firsts[p.shard] + np.arange(p.start, p.stop) for p in block.row_ranges])
        assert np.array_equal(read[block.order], block.rows)
        assert all(0 <= p.start < p.stop <= shard_rows[p.shard] for p in block.row_ranges)


def test_lanes_share_a_chunk_only_where_their_ranges_meet() -> None:
    rows, chunk = 4096, 16
    plan = order((rows,), sequences=32, micro_batch=4, chunk=chunk, window=4)
    readers: dict[int, set[int]] = {}
    reads = 0
    for block in plan.needs(range(plan.lanes), 0):
        if block.epoch:
            break
        for number in np.unique(block.rows // chunk):
            readers.setdefault(int(number), set()).add(block.lane)
            reads += 1
    assert len(readers) == rows // chunk
    assert reads <= rows // chunk + plan.lanes


def test_rows_are_shuffled_across_the_chunks_of_a_window() -> None:
    plan = order((4096,), sequences=4, micro_batch=4, chunk=16, window=8)
    block = plan.block(0, 0, 0)
    assert block is not None
    assert len(np.unique(block.rows[:32] // 16)) >= 6


@pytest.mark.parametrize("datasets", [1, 3])
def test_seeking_costs_the_same_anywhere(datasets: int) -> None:
    class Counting(Order):
        asked = 0

        def _count(self, dataset: int, position: int) -> int:
            self.asked += 1
            return super()._count(dataset, position)

    described = [DatasetRows((100_000,) * 20, weight=number + 1.0) for number in range(datasets)]
    asked = []
    for step in (0, 1_000, 1_000_000_000):
        plan = Counting(described, Geometry(256, 4, 64, 8, 0))
        plan.micro_batch(5, step)
        asked.append(plan.asked)
    assert max(asked) <= 4 * 64 * datasets


def test_mixtures_keep_their_weights_in_every_lane() -> None:
    mixture = Mixture([((0, 0.6),), ((0, 0.3),), ((0, 0.1),)], lanes=4, micro_batch=2, seed=3)
    for lane in range(4):
        drawn = Counter(s for step in range(PERIOD // 2) for s in mixture.datasets_of(lane, step).tolist())
        assert [drawn[dataset] for dataset in range(3)] == [600, 300, 100]


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ([1], [1000]),
        ([1, 1, 1], [334, 333, 333]),
        ([1e9, 1], [999, 1]),
        ([0, 2], [0, 1000]),
        ([0.5, 0.25, 0.25], [500, 250, 250]),
    ],
)
def test_weights_become_thousandths(weights: list[float], slots: list[int]) -> None:
    assert quantised(weights) == slots


@settings(max_examples=50, deadline=None)
@example([2.0, 5e-324])
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(lambda weights: sum(weights) > 0))
def test_thousandths_add_up(weights: list[float]) -> None:
    slots = quantised(weights)
    assert sum(slots) == PERIOD
    assert all((slot > 0) == (weight > 0) for slot, weight in zip(slots, weights, strict=True))


def test_counts_and_slots_are_inverse_through_weight_changes() -> None:
    mixture = Mixture([((0, 1.0), (7, 0.0), (400, 3.0)), ((0, 2.0), (90, 5.0))], lanes=3, micro_batch=3, seed=1)
    for lane in range(3):
        seen = Counter[int]()
        for step in range(900):
            for place, dataset in enumerate(mixture.datasets_of(lane, step).tolist()):
                slot = step * 3 + place
                assert mixture.before_slot(dataset, lane, slot) == seen[dataset]
                assert mixture.slot(dataset, lane, seen[dataset]) == slot
                seen[dataset] += 1


def test_a_dataset_that_ends_is_never_asked_again() -> None:
    datasets = [DatasetRows((30,)), DatasetRows((30,), weight_schedule=((5, 0.0),))]
    plan = Order(datasets, Geometry(8, 2, 4, 2, 0))
    blocks = list(itertools.islice(plan.needs(range(plan.lanes), 6), 50))
    assert {block.dataset for block in blocks} == {0}
    assert plan.block(1, 0, 1000) is None


def test_no_rows_and_no_weight_are_said_plainly() -> None:
    geometry = Geometry(8, 2, 4, 2, 0)
    with pytest.raises(DataError, match="dataset 1 has no rows to train on"):
        Order([DatasetRows((3,)), DatasetRows((0,))], geometry)
    with pytest.raises(ConfigError, match="weights of the datasets add up to 0"):
        Order(
            [DatasetRows((3,), weight_schedule=((5, 0.0),)), DatasetRows((3,), weight_schedule=((5, 0.0),))], geometry
        )


def test_lanes_load_without_torch_or_ray() -> None:
    code = "import sys, raylm.stream.lanes; print(sorted({'torch', 'ray', 'pyarrow', 'fsspec'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(20))
def test_every_row_once_on_a_wide_grid(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(20):
        micro_batch, lanes = int(random.integers(1, 9)), int(random.integers(1, 33))
        datasets = [
            DatasetRows(
                tuple(int(n) for n in random.integers(1, 300, random.integers(1, 6))),
                weight=float(random.random() + 0.01),
                weight_schedule=tuple((int(s), float(random.random())) for s in sorted(random.integers(1, 100, 2))),
            )
            for _ in range(int(random.integers(1, 5)))
        ]
        geometry = Geometry(
            micro_batch * lanes, micro_batch, int(random.integers(1, 100)), int(random.integers(1, 9)), seed
        )
        check_exactly_once(Order(datasets, geometry), steps=120)
