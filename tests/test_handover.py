"""Each block comes once, in order, whoever reads it and whatever goes wrong: without Ray, by a clock set by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from raylm.errors import DataError
from raylm.shards import Rows
from raylm.stream.handover import Handover, Lent, Limits, Phase
from raylm.stream.lanes import Block

ROWS = 2


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def block(number: int) -> Block:
    rows = np.arange(ROWS) + ROWS * number
    return Block(lane=0, dataset=0, epoch=0, first=ROWS * number, rows=rows, order=rows, row_ranges=())


def rows_of(one: Block) -> Rows:
    return Rows(one.rows.reshape(ROWS, 1), (), np.ones(ROWS, np.int32))


def made(clock: Clock, *, ahead_rows: int = 8, most_rows: int = 16, lent: int = 2) -> Handover:
    plan = (block(number) for number in itertools.count())
    limits = Limits(
        ahead_rows,
        most_rows,
        late_seconds=0.0,
        silent_seconds=60.0,
        lent_blocks=lent,
        most_lent_blocks=5,
        margin_blocks=9,
    )
    return Handover(plan, limits, clock)


def number_of(one: Block) -> int:
    return one.first // ROWS


def begun(
    clock: Clock, served: int = 3, seconds: float = 1.5, **more: int
) -> tuple[Handover, Iterator[Block], list[int]]:
    """A handover that Ray Data has just taken over, the threads' blocks, and the numbers that they have read."""
    handover = made(clock, **more)
    threads = handover.for_threads()
    read = []
    for _ in range(3):
        read.append(number_of(next(threads)))
        handover.served()
    clock.now += 1.5
    handover.begin()
    return handover, threads, read


def test_threads_read_the_plan_until_ray_data_begins_and_then_a_margin() -> None:
    clock = Clock()
    handover, threads, read = begun(clock)
    assert read == [0, 1, 2]
    # Three blocks in 1.5 s: as many again, and one, are left to threads.
    assert [number_of(one) for one in threads] == [3, 4, 5, 6]
    assert handover.phase is Phase.DELIVERING
    asked = handover.ask()
    assert asked is not None
    assert [number_of(one) for one in asked] == [7, 8]  # half of what is kept ready


def test_what_ray_data_gives_comes_in_order_with_its_block() -> None:
    handover, threads, _ = begun(Clock())
    list(threads)
    for expected in range(7, 21):
        if expected in (7, 9, 13):  # two blocks, then four, then eight
            for one in handover.ask() or []:
                assert handover.put(rows_of(one))
        taken = handover.take()
        assert not isinstance(taken, Lent)
        assert number_of(taken[0]) == expected
        assert isinstance(taken[1], Rows)
        assert taken[1].tokens[0, 0] == ROWS * expected


def test_more_is_asked_for_while_the_consumer_is_faster() -> None:
    handover, threads, _ = begun(Clock())
    list(threads)
    sizes = []
    for _ in range(4):
        asked = handover.ask() or []
        sizes.append(len(asked))
        for one in asked:
            handover.put(rows_of(one))
        for _ in asked:
            handover.take()
    assert sizes == [2, 4, 8, 8]


def test_what_is_late_is_lent_to_threads_more_each_time_and_comes_once() -> None:
    handover, threads, read = begun(Clock(), ahead_rows=40, most_rows=400)
    read += [number_of(one) for one in threads]
    asked = handover.ask() or []
    lent = []
    for _ in range(3):
        taken = handover.take()
        assert isinstance(taken, Lent)
        assert taken.given_up is None
        lent.append([number_of(one) for one in taken.blocks])
    assert [len(one) for one in lent] == [2, 4, 4]
    read += itertools.chain.from_iterable(lent)
    for one in asked:  # what threads were faster with is passed over
        handover.put(rows_of(one))
    for one in handover.ask() or []:
        handover.put(rows_of(one))
    for _ in range(5):
        taken = handover.take()
        assert not isinstance(taken, Lent)
        read.append(number_of(taken[0]))
    assert read == list(range(len(read)))


@pytest.mark.parametrize("how", ["silence", "failure"])
def test_once_given_up_threads_read_what_is_owed_and_all_that_follows(how: str) -> None:
    clock = Clock()
    handover, threads, read = begun(clock, ahead_rows=40, most_rows=400)
    read += [number_of(one) for one in threads]
    asked = handover.ask() or []
    for one in asked[:3]:
        handover.put(rows_of(one))
    if how == "failure":
        assert handover.fail("the node went away") is Phase.DELIVERING
    clock.now += 61.0
    for _ in range(3):  # what has come is taken all the same
        taken = handover.take()
        assert not isinstance(taken, Lent)
        read.append(number_of(taken[0]))
    taken = handover.take()
    assert isinstance(taken, Lent)
    assert taken.given_up == ("the node went away" if how == "failure" else "it gave nothing for 60 s")
    assert handover.phase is Phase.GIVEN_UP
    read += [number_of(one) for one in itertools.islice(taken.blocks, 30)]
    assert read == list(range(len(read)))
    assert not handover.put(rows_of(asked[3]))
    assert handover.ask() is None


def test_what_never_began_leaves_the_plan_to_threads() -> None:
    handover = made(Clock())
    threads = handover.for_threads()
    read = [number_of(next(threads)) for _ in range(3)]
    assert handover.fail("no memory") is Phase.WARMING
    handover.begin()
    assert handover.phase is Phase.GIVEN_UP
    read += [number_of(one) for one in itertools.islice(threads, 20)]
    assert read == list(range(23))


def test_an_error_for_people_comes_in_its_blocks_place() -> None:
    handover, threads, _ = begun(Clock())
    list(threads)
    handover.ask()
    handover.put(DataError("shard x is missing"))
    taken = handover.take()
    assert not isinstance(taken, Lent)
    assert isinstance(taken[1], DataError)


def test_a_fault_of_this_program_reaches_the_consumer() -> None:
    handover, threads, _ = begun(Clock())
    list(threads)
    handover.ask()
    handover.crash(TypeError("unpacked badly"))
    with pytest.raises(TypeError, match="unpacked badly"):
        handover.take()


def test_closed_wants_nothing_more() -> None:
    handover, threads, _ = begun(Clock())
    list(threads)
    asked = handover.ask() or []
    handover.close()
    handover.close()
    assert handover.closed_within(5.0)
    assert not handover.put(rows_of(asked[0]))
    assert handover.ask() is None
    assert handover.fail("late") is Phase.CLOSED
