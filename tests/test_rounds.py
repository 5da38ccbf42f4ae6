"""Rounds: an example of each promise. test_round_schedules.py has what holds whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raylm.coordination.rounds import Held, Round, Rounds


def ring(closed: Round, body: int, step: int) -> list[Held]:
    """What a member holds after copying `step`: its own shard and its left neighbour's."""
    place = closed.places[body]
    return [Held(place.generation, step, place.size, frozenset({place.rank, (place.rank - 1) % place.size}))]


def ready(rounds: Rounds, body: int, node: str = "", held: Sequence[Held] = (), left: int = 0) -> bool:
    rounds.arrived(body, node or f"node-{body}")
    return rounds.enlist(body, f"host:{body}", held, left=left)


def begun(rounds: Rounds, *nodes: str) -> Round:
    """A generation of bodies 1, 2, …, each on its node."""
    for body, node in enumerate(nodes, start=1):
        assert ready(rounds, body, node)
    return closes(rounds)


def back(rounds: Rounds, closed: Round, *bodies: int, step: int = 5) -> None:
    for body in bodies:
        assert ready(rounds, body, held=ring(closed, body, step), left=closed.places[body].generation)


def closes(rounds: Rounds, committed: int = 0) -> Round:
    closed = rounds.close(committed)
    assert closed is not None
    return closed


def ranks(closed: Round) -> list[int]:
    return sorted(closed.places, key=lambda body: closed.places[body].rank)


def test_a_start_takes_all_that_came() -> None:
    rounds = Rounds(1, 4)
    rounds.arrived(1, "a")
    rounds.arrived(2, "b")
    assert rounds.close(0) is None
    assert rounds.enlist(2, "b:1", [], left=0)
    assert rounds.close(0) is None, "body 1 is still starting"
    assert rounds.enlist(1, "a:1", [], left=0)
    closed = closes(rounds)
    assert ranks(closed) == [1, 2]
    assert closed.places[2].address == "a:1"
    assert closed.places[2].nodes == ("a", "b")
    assert (closed.resume, closed.lost, closed.leave) == (None, (), ())


def test_a_body_that_starts_for_long_holds_one_start_only_until_given_up() -> None:
    rounds = Rounds(1, 4)
    rounds.arrived(1, "a")
    assert ready(rounds, 2)
    assert rounds.close(0) is None
    rounds.give_up_waiting()
    assert ranks(closes(rounds)) == [2]
    rounds.gone(2)
    assert ready(rounds, 3)
    assert rounds.close(0) is None, "the next start waits again"


def test_a_start_that_is_full_or_whose_last_body_is_to_leave_waits_for_nobody() -> None:
    changes: list[Callable[[Rounds], object]] = [
        lambda it: it.limit(1),
        lambda it: it.leaving([2]),
        lambda it: it.gone(2),
    ]
    for change in changes:
        rounds = Rounds(1, 4)
        assert ready(rounds, 1)
        rounds.arrived(2, "b")
        assert rounds.close(0) is None
        change(rounds)
        assert ranks(closes(rounds)) == [1]


def test_survivors_do_not_wait_for_bodies_that_start() -> None:
    rounds = Rounds(1, 4)
    first = begun(rounds, "a", "b")
    rounds.arrived(3, "c")
    rounds.gone(2)
    back(rounds, first, 1)
    assert ranks(closes(rounds)) == [1]


def test_a_round_closes_when_every_member_enlisted_or_is_gone() -> None:
    rounds = Rounds(1, 3, first_generation=7)
    first = begun(rounds, "a", "b", "c")
    assert first.places[1].generation == rounds.generation == 7
    assert rounds.unheard() == (), "nobody left yet"
    assert rounds.gone(2)
    assert rounds.unheard() == (1, 3)
    back(rounds, first, 1)
    assert (rounds.unheard(), rounds.close(0), rounds.lacking()) == ((3,), None, 0)
    back(rounds, first, 3)
    closed = closes(rounds)
    assert ranks(closed) == [1, 3]
    assert closed.lost == (2,)
    assert closed.places[1].generation == 8
    assert closed.resume == Held(7, 5, 3, frozenset({0, 1, 2}))
    rounds.gone(3)
    back(rounds, closed, 1)
    assert closes(rounds).lost == (3,), "2 was told once"


def test_too_few_wait_and_say_how_many_are_lacking() -> None:
    rounds = Rounds(3, 4)
    assert rounds.lacking() == 3
    assert ready(rounds, 1)
    assert (rounds.close(0), rounds.lacking()) == (None, 2)
    assert ready(rounds, 2)
    assert ready(rounds, 3)
    assert rounds.lacking() == 0
    assert len(closes(rounds).places) == 3


def test_who_is_gone_is_not_heard_again() -> None:
    rounds = Rounds(1, 3)
    first = begun(rounds, "a", "b")
    assert rounds.gone(2)
    assert not rounds.gone(2), "twice"
    assert not rounds.arrived(2, "b")
    assert not rounds.enlist(2, "b:1", ring(first, 2, 5), left=1), "it thawed"
    assert not rounds.gone(9), "never heard of"
    assert not rounds.arrived(9, "late")
    assert not rounds.enlist(8, "host:8", [], left=0), "did not arrive"
    back(rounds, first, 1)
    assert ranks(closes(rounds)) == [1]


def test_an_enlistment_from_before_its_placing_does_not_make_a_member_leave() -> None:
    rounds = Rounds(1, 2)
    begun(rounds, "a")
    assert rounds.enlist(1, "old", [], left=0), "it is a member: nothing to tell it"
    assert rounds.close(0) is None


def test_an_enlistment_that_comes_twice_counts_once_and_the_last_word_stands() -> None:
    rounds = Rounds(1, 2)
    assert ready(rounds, 1)
    assert rounds.enlist(1, "new:1", [], left=0)
    assert closes(rounds).places[1].address == "new:1"


def test_the_newest_state_held_whole_is_resumed_whichever_generation_made_it() -> None:
    def resumed(committed: int, *held: Held) -> tuple[int, int] | None:
        rounds = Rounds(2, 2)
        begun(rounds, "a", "b")
        ready(rounds, 1, held=held[0::2], left=1)
        ready(rounds, 2, held=held[1::2], left=1)
        resume = closes(rounds, committed).resume
        return None if resume is None else (resume.generation, resume.step)

    def half(generation: int, step: int, rank: int) -> Held:
        return Held(generation, step, 2, frozenset({rank}))

    whole = [half(3, 6, 0), half(3, 6, 1)]
    assert resumed(0) is None
    assert resumed(0, *whole) == resumed(6, *whole) == (3, 6)
    assert resumed(7, *whole) is None, "storage is newer"
    assert resumed(0, *whole, half(3, 7, 0)) == (3, 6), "half of 7 is lost"
    assert resumed(0, *whole, half(4, 6, 1), half(4, 6, 0)) == (4, 6)
    assert resumed(0, *whole, half(4, 6, 1)) == (3, 6), "the new generation had not copied all"
    assert resumed(0, *whole, half(4, 5, 0), half(4, 5, 1)) == (3, 6)
    assert resumed(0, half(3, 6, 0), half(4, 6, 1)) is None, "halves of two groupings make no whole"


def test_a_leaver_is_left_out_where_the_others_hold_everything() -> None:
    rounds = Rounds(1, 3)
    first = begun(rounds, "a", "b", "c")
    assert not rounds.regroup_wanted()
    rounds.leaving([2])
    assert rounds.regroup_wanted()
    back(rounds, first, 1, 2, 3)
    closed = closes(rounds)
    assert ranks(closed) == [1, 3]
    assert (closed.leave, closed.lost) == ((2,), ())
    assert not rounds.enlist(2, "b:1", [], left=1)
    assert not rounds.gone(2), "it was not counted on"
    assert not rounds.regroup_wanted()


def test_a_leaver_whose_shard_nobody_else_holds_stays_one_round_more() -> None:
    rounds = Rounds(1, 3)
    first = begun(rounds, "a", "b", "c")
    rounds.leaving([2, 3])
    back(rounds, first, 1, 2, 3)
    second = closes(rounds)
    assert (ranks(second), second.leave) == ([1, 2], (3,))
    assert rounds.regroup_wanted()
    back(rounds, second, 1, 2, step=6)
    third = closes(rounds)
    assert (ranks(third), third.leave) == ([1], (2,))
    assert third.resume == Held(2, 6, 2, frozenset({0, 1}))


def test_leavers_go_even_where_too_few_stay_and_the_rest_keep_what_they_hold() -> None:
    rounds = Rounds(2, 3)
    first = begun(rounds, "a", "b")
    rounds.leaving([2])
    assert rounds.dismiss() == (), "it trains"
    back(rounds, first, 1)
    assert rounds.dismiss() == (), "it is not heard"
    back(rounds, first, 2)
    assert (rounds.close(0), rounds.lacking()) == (None, 1)
    assert rounds.dismiss() == (2,)
    assert rounds.dismiss() == ()
    assert ready(rounds, 3)
    closed = closes(rounds)
    assert (ranks(closed), closed.leave, closed.lost) == ([1, 3], (), ())
    assert closed.resume == Held(1, 5, 2, frozenset({0, 1}))


def test_where_all_leave_they_train_on_until_a_newcomer_takes_over() -> None:
    rounds = Rounds(1, 3)
    first = begun(rounds, "a", "b")
    rounds.leaving([1, 2])
    assert not rounds.regroup_wanted()
    back(rounds, first, 1, 2)
    assert rounds.dismiss() == ()
    second = closes(rounds)
    assert ranks(second) == [1, 2]
    assert ready(rounds, 3)
    assert rounds.regroup_wanted()
    back(rounds, second, 1, 2)
    third = closes(rounds)
    assert (ranks(third), third.leave) == ([1, 3], (2,))
    back(rounds, third, 1, 3, step=6)
    fourth = closes(rounds)
    assert (ranks(fourth), fourth.leave) == ([3], (1,))


def test_a_limit_of_one_is_passed_for_the_round_in_which_a_state_is_handed_over() -> None:
    rounds = Rounds(1, 3)
    rounds.limit(1)
    first = begun(rounds, "a", "b", "c")
    rounds.leaving([1])
    back(rounds, first, 1)
    second = closes(rounds)
    assert (ranks(second), second.leave) == ([1, 2], ())
    back(rounds, second, 1, 2, step=6)
    third = closes(rounds)
    assert (ranks(third), third.leave) == ([2], (1,))


def test_a_run_of_one_cannot_hand_over_and_trains_on() -> None:
    rounds = Rounds(1, 1)
    first = begun(rounds, "a", "b")
    rounds.leaving([1])
    assert not rounds.regroup_wanted()
    back(rounds, first, 1)
    assert ranks(closes(rounds)) == [1]
    rounds.gone(1)
    closed = closes(rounds)
    assert (ranks(closed), closed.resume) == ([2], None)


def test_a_leaver_that_is_no_member_just_leaves() -> None:
    rounds = Rounds(1, 2)
    begun(rounds, "a")
    rounds.arrived(2, "b")
    assert ready(rounds, 3)
    rounds.leaving([2, 3])
    assert not rounds.regroup_wanted()
    assert rounds.dismiss() == (2, 3)


def test_newcomers_above_the_limit_wait_and_join_when_it_rises() -> None:
    rounds = Rounds(1, 3)
    rounds.limit(2)
    first = begun(rounds, "a", "b", "c")
    assert (ranks(first), first.leave) == ([1, 2], ())
    assert not rounds.regroup_wanted()
    rounds.limit(5)
    assert rounds.regroup_wanted()
    assert ready(rounds, 4)
    back(rounds, first, 1, 2)
    second = closes(rounds)
    assert (ranks(second), second.leave) == ([1, 2, 3], ()), "4 is above max_size"
    assert not rounds.regroup_wanted()
    rounds.gone(1)
    back(rounds, second, 2, 3)
    assert ranks(closes(rounds)) == [2, 3, 4]


def test_when_the_limit_falls_the_highest_ranks_leave_that_can_be_spared() -> None:
    for limit, stay in ((4, [1, 2, 3, 4]), (3, [1, 2, 4]), (2, [1, 2, 4])):
        rounds = Rounds(1, 5)
        first = begun(rounds, "a", "b", "c", "d", "e")
        rounds.limit(limit)
        assert rounds.regroup_wanted()
        back(rounds, first, 1, 2, 3, 4, 5)
        second = closes(rounds)
        assert ranks(second) == stay, limit
        assert second.leave == tuple(sorted({1, 2, 3, 4, 5} - set(stay)))
        assert rounds.regroup_wanted() == (limit < len(stay))


def test_below_min_size_no_limit_lets_a_round_close() -> None:
    rounds = Rounds(2, 3)
    first = begun(rounds, "a", "b")
    rounds.limit(1)
    back(rounds, first, 1, 2)
    assert (rounds.close(0), rounds.lacking()) == (None, 1)
    rounds.limit(2)
    assert ranks(closes(rounds)) == [1, 2]


def test_ranks_go_node_by_node_survivors_first() -> None:
    rounds = Rounds(1, 9)
    first = begun(rounds, "a", "b", "a", "b")
    assert ranks(first) == [1, 3, 2, 4]
    assert [first.places[body].local_rank for body in (1, 3, 2, 4)] == [0, 1, 0, 1]
    assert first.places[1].nodes == ("a", "a", "b", "b")
    for body, node in ((5, "c"), (6, "a"), (7, "b")):
        assert ready(rounds, body, node)
    rounds.gone(1)
    rounds.gone(3)
    back(rounds, first, 2, 4)
    assert ranks(closes(rounds)) == [2, 4, 7, 5, 6], "node b holds the survivors"


def test_rank_0_holds_a_part_of_the_state_that_is_resumed() -> None:
    rounds = Rounds(1, 3)
    first = begun(rounds, "a", "b")
    assert ready(rounds, 3, "a")
    back(rounds, first, 1, 2)
    second = closes(rounds)
    assert ranks(second) == [1, 3, 2]
    rounds.gone(1)
    assert ready(rounds, 3, left=2)
    assert ready(rounds, 2, held=ring(first, 2, 5), left=2)
    third = closes(rounds)
    assert third.resume == Held(1, 5, 2, frozenset({0, 1}))
    assert ranks(third) == [2, 3], "3 was the lower rank and had not copied yet"
