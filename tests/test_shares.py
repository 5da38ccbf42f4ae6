"""Runs share a cluster's workers: the policy, what the arbiter counts, and when it asks a run to shrink."""

from __future__ import annotations

import pickle
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from raylm.runtime.shares import (
    EXPIRES_SECONDS,
    WAITING_SECONDS,
    Arbiter,
    Claim,
    ClusterShare,
    Resources,
    Share,
    fair_shares,
    usable,
)

SLOT = {"slot": 1.0}


def claim(run: str, *, since: float = 0.0, min: int = 1, max: int = 3, **more: object) -> Claim:
    made = Claim(run, since, min, max, SLOT)
    return replace(made, **more)  # type: ignore[arg-type]


def shares(slots: int, *claims: Claim) -> dict[str, int]:
    return fair_shares([SLOT] * slots, claims)


def test_the_fewest_of_every_run_come_first_and_the_rest_goes_to_who_has_least() -> None:
    assert shares(3, claim("a"), claim("b", since=1)) == {"a": 2, "b": 1}
    assert shares(8, claim("a", max=8), claim("b", min=3, max=8)) == {"a": 4, "b": 4}
    assert shares(9, claim("a", max=2), claim("b", max=8, since=1), claim("c", max=8, since=2)) == {
        "a": 2,
        "b": 4,
        "c": 3,
    }


def test_who_came_first_is_served_first_and_who_does_not_fit_waits_for_nobody() -> None:
    assert shares(2, claim("late", since=2), claim("early", since=1), claim("last", since=3)) == {
        "early": 1,
        "late": 1,
        "last": 0,
    }
    assert shares(2, claim("big", min=3, max=3), claim("small", since=1)) == {"big": 0, "small": 2}


def test_workers_of_other_needs_share_the_nodes_that_have_them() -> None:
    nodes: list[Resources] = [{"CPU": 8, "GPU": 2}, {"CPU": 8}]
    gpu, cpu = Claim("gpu", 0, 1, 4, {"CPU": 2, "GPU": 1}), Claim("cpu", 1, 1, 9, {"CPU": 2})
    assert fair_shares(nodes, [gpu, cpu]) == {"gpu": 2, "cpu": 6}


@given(
    st.lists(st.integers(0, 4), max_size=6),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=5),
)
def test_no_more_is_given_than_there_is_and_nothing_is_left_over(
    nodes: list[int], sizes: list[tuple[int, int]]
) -> None:
    claims = [claim(str(n), since=n, min=least, max=least + more) for n, (least, more) in enumerate(sizes)]
    found = fair_shares([{"slot": float(slots)} for slots in nodes], claims)
    assert sum(found.values()) <= sum(nodes)
    for one in claims:
        assert found[one.run] == 0 or one.min <= found[one.run] <= one.max
    left = sum(nodes) - sum(found.values())
    served = [one for one in claims if found[one.run]]
    assert not left or all(found[one.run] == one.max for one in served)
    # Nobody has two more than another who wants more and had the choice.
    for one in served:
        for other in served:
            if found[one.run] > max(one.min, found[other.run] + 1):
                assert found[other.run] == other.max


def test_what_runs_hold_counts_as_theirs_to_share_and_what_others_hold_does_not() -> None:
    total = {"a": {"slot": 2.0}, "b": {"slot": 2.0}}
    free = {"a": {"slot": 0.0}, "b": {"slot": 1.0}}
    held = claim("x", size=1, nodes=("a",), waiting=False)
    assert usable(total, free, [held]) == [{"slot": 1.0}, {"slot": 1.0}]
    twice = replace(held, size=3, nodes=("a", "a", "a"))  # its old group and its new one
    assert usable(total, free, [twice])[0] == {"slot": 2.0}


def test_workers_that_have_not_said_where_they_are_count_once() -> None:
    total = {"a": SLOT, "b": SLOT}
    starting = claim("x", size=2, waiting=False)
    placed = usable(total, {"a": {}, "b": {}}, [starting])
    assert fair_shares(placed, [starting]) == {"x": 2}
    not_yet = usable(total, {"a": SLOT, "b": SLOT}, [starting])
    assert sum(node.get("slot", 0) for node in not_yet) == 2


class Cluster:
    """Three nodes of one slot, of which some are taken, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.taken: set[str] = set()

    def __call__(self) -> tuple[dict[str, Resources], dict[str, Resources]]:
        nodes = ("n1", "n2", "n3")
        return dict.fromkeys(nodes, SLOT), {name: {} if name in self.taken else SLOT for name in nodes}


def test_a_run_alone_is_not_held_back() -> None:
    arbiter = Arbiter(Cluster(), clock=lambda: 0.0)
    assert arbiter.renew(claim("a", max=9)) == Share(9)


def test_a_run_that_holds_all_is_asked_to_shrink_for_one_that_waits_and_grows_when_it_has_gone() -> None:
    cluster = Cluster()
    arbiter = Arbiter(cluster, clock=lambda: cluster.now)
    cluster.taken = {"n1", "n2", "n3"}
    everything = claim("a", size=3, nodes=("n1", "n2", "n3"), waiting=False)
    assert arbiter.renew(everything) == Share(3)
    waiting = claim("b", since=1.0)
    assert arbiter.renew(waiting) == Share(1)
    assert arbiter.renew(everything) == Share(2), "a restart waits for a moment, and nobody shrinks for that"
    cluster.now = WAITING_SECONDS
    arbiter.renew(waiting)
    assert arbiter.renew(everything) == Share(2, shrink=True)
    cluster.taken = {"n1", "n2"}
    smaller = replace(everything, size=2, nodes=("n1", "n2"))
    assert arbiter.renew(smaller) == Share(2)
    cluster.taken = {"n1", "n2", "n3"}
    assert arbiter.renew(replace(waiting, size=1, nodes=("n3",), waiting=False)) == Share(1)
    assert arbiter.renew(smaller) == Share(2)
    arbiter.release("b", 1.0)
    assert arbiter.renew(smaller) == Share(3)
    arbiter.renew(waiting)
    assert arbiter.renew(smaller) == Share(3), "what comes in the name of an ended run is not heard"


def test_nobody_shrinks_for_a_run_that_would_not_fit_even_then_or_below_its_own_fewest() -> None:
    cluster = Cluster()
    arbiter = Arbiter(cluster, clock=lambda: cluster.now)
    cluster.taken = {"n1", "n2", "n3"}
    holder = claim("a", min=2, size=3, nodes=("n1", "n2", "n3"), waiting=False)
    arbiter.renew(claim("b", since=1.0, min=2))
    cluster.now = 2 * WAITING_SECONDS
    arbiter.renew(claim("b", since=1.0, min=2))
    assert not arbiter.renew(holder).shrink


def test_a_run_that_starts_again_takes_the_place_of_its_older_claim() -> None:
    """Its driver was killed a moment ago: the new one need not wait until the old claim expires."""
    arbiter = Arbiter(Cluster(), clock=lambda: 0.0)
    old, new = claim("a", since=1.0, size=3, nodes=("n1", "n2", "n3"), waiting=False), claim("a", since=2.0)
    arbiter.renew(old)
    assert arbiter.renew(new) == Share(3)
    arbiter.renew(old)
    arbiter.release("a", 1.0)
    assert arbiter.renew(claim("b", since=3.0)) == Share(1), "the new claim stands"


def test_a_claim_that_is_not_renewed_is_dropped() -> None:
    cluster = Cluster()
    arbiter = Arbiter(cluster, clock=lambda: cluster.now)
    arbiter.renew(claim("dead"))
    assert arbiter.renew(claim("alive", since=1.0)) == Share(1)
    cluster.now = EXPIRES_SECONDS + 0.1
    assert arbiter.renew(claim("alive", since=1.0)) == Share(3)


def test_the_arbiter_is_idle_when_nobody_claims() -> None:
    cluster = Cluster()
    arbiter = Arbiter(cluster, clock=lambda: cluster.now)
    arbiter.renew(claim("a"))
    cluster.now = 7.0
    assert arbiter.idle_seconds() == 7.0


def test_a_share_travels_to_the_process_that_renews_it() -> None:
    share = pickle.loads(pickle.dumps(ClusterShare(claim("a"))))
    assert share.newest() is None
