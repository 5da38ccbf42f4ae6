"""benchmarks/goodput.py: the simulation does sums that can be done by hand, and keeps order between ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.goodput import EARLIER, EIGHT_SECONDS, EMPTY_RESTART, KILLED, LATE, NOTICED, RESTART, assumptions, run
from benchmarks.goodput_costs import Assumptions, Costs, Way, state_moved
from benchmarks.goodput_simulation import Copies, Outcome, simulate
from benchmarks.goodput_traces import Change, Trace, traces
from raylm.config.model import ModelSettings
from raylm.model.flops import flops_per_token, shape_of
from raylm.testing.external import external_data, needs_data

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "goodput.py"
NODES = tuple(f"node-{number}" for number in range(16))
WAYS = (RESTART, EMPTY_RESTART, EIGHT_SECONDS, KILLED, NOTICED, LATE)


def trace_of(*changes: Change, seconds: float = 3600.0) -> Trace:
    return Trace("made", "aws", seconds, (Change(0.0, added=NODES), *changes))


def outcome_of(trace: Trace, way: Way, gpus: int = 1, **changes: float) -> Outcome:
    return simulate(trace, Costs(assumptions(changes), way, gpus))


@st.composite
def any_trace(draw: st.DrawFn) -> Trace:
    """Up to a dozen changes of up to four nodes, none that contradicts another."""
    live, born, now = list(NODES[: draw(st.integers(2, 16))]), 0, 0.0
    changes = [Change(0.0, added=tuple(live))]
    for _ in range(draw(st.integers(0, 12))):
        now += draw(st.floats(1, 600))
        removed = tuple(draw(st.permutations(live))[: draw(st.integers(0, 4))])
        added = tuple(f"new-{born + number}" for number in range(draw(st.integers(0, 4))))
        born, live = born + len(added), [node for node in live if node not in removed] + list(added)
        changes.append(Change(now, added, removed))
    return Trace("drawn", draw(st.sampled_from(["aws", "gcp"])), now + 600, tuple(changes))


@settings(max_examples=60)
@given(any_trace(), st.sampled_from(WAYS), st.sampled_from([1, 8]))
def test_all_time_is_useful_or_went_to_something(trace: Trace, way: Way, gpus: int) -> None:
    outcome = outcome_of(trace, way, gpus)
    assert 0 <= outcome.goodput <= 1
    assert all(seconds >= -1e-6 for seconds in outcome.spent.values())
    assert outcome.useful + sum(outcome.spent.values()) == pytest.approx(outcome.available)


@settings(max_examples=40)
@given(any_trace(), st.floats(0, 30), st.sampled_from([KILLED, NOTICED, LATE]))
def test_a_longer_pause_gains_nothing_beyond_a_step_a_change(trace: Trace, longer: float, way: Way) -> None:
    short, long = (outcome_of(trace, way, 8, nccl_seconds=seconds) for seconds in (1.0, 1.0 + longer))
    step = Costs(Assumptions(), way, 8).batch_gpu_seconds
    # Another pause moves every later event to another part of a step: between copies that is up to `n` of them.
    assert long.useful <= short.useful + step * 4 * len(trace.changes)


def test_a_longer_pause_after_one_loss_costs_what_it_is_longer() -> None:
    trace = trace_of(Change(1000.0, removed=NODES[:1]))
    short, long = (outcome_of(trace, KILLED, detect_seconds=seconds) for seconds in (1.0, 11.0))
    assert long.spent["pauses"] - short.spent["pauses"] == pytest.approx(10 * 15)
    assert short.useful - long.useful == pytest.approx(10 * 15, rel=0.05)


@pytest.mark.parametrize("gpus", [1, 8])
def test_without_changes_only_copies_and_saves_cost(gpus: int) -> None:
    outcome = outcome_of(trace_of(), KILLED, gpus)
    assert outcome.goodput > 0.98
    assert outcome.spent["copies"] / outcome.available <= Assumptions().copy_share
    assert outcome.spent["done again"] == pytest.approx(0.0, abs=1e-3)
    assert outcome_of(trace_of(), EIGHT_SECONDS, gpus).goodput > 0.99


def test_a_lost_node_costs_the_pause_and_the_step_so_far_or_its_share_of_that() -> None:
    trace, costs = trace_of(Change(1000.0, removed=NODES[3:4])), Costs(Assumptions(), KILLED, 1)
    whole = outcome_of(trace, KILLED)
    part = outcome_of(trace, replace(KILLED, redo="micro_batches"))
    assert 0 < whole.spent["done again"] <= costs.batch_gpu_seconds
    assert part.spent["done again"] == pytest.approx(whole.spent["done again"] / 16, rel=1e-3)
    assert whole.counts == {"losses": 1, "pauses": 1}
    moved = state_moved(NODES, NODES[3:4], NODES[:3] + NODES[4:])
    pause = costs.regroup_seconds(15, lost=True, moved=moved)
    assert whole.spent["pauses"] == pytest.approx(15 * pause)


def test_a_notice_saves_the_step_and_a_late_leave_the_nodes_time() -> None:
    trace = trace_of(Change(1000.0, removed=NODES[3:4]))
    killed, noticed, late = (outcome_of(trace, way) for way in (KILLED, NOTICED, LATE))
    assert noticed.spent["done again"] + late.spent["done again"] == pytest.approx(0.0, abs=1e-3)
    assert late.spent["nodes outside"] < 60 < noticed.spent["nodes outside"]
    assert late.goodput > max(noticed.goodput, killed.goodput)


def test_a_notice_shorter_than_a_step_is_used_between_micro_batches() -> None:
    trace = replace(trace_of(Change(1060.0, removed=NODES[3:4])), cloud="gcp")
    outcome = outcome_of(trace, NOTICED, batch_tokens=1 << 24)
    assert outcome.counts["leaves"] == 1
    assert "losses" not in outcome.counts
    assert outcome.spent["done again"] > 0


def test_a_node_and_its_copy_that_die_together_cost_what_was_not_saved() -> None:
    near = outcome_of(trace_of(Change(1000.0, removed=NODES[3:5])), KILLED)
    far = outcome_of(trace_of(Change(1000.0, removed=NODES[3:6:2])), KILLED)
    assert near.counts["to storage"] == 1
    assert "to storage" not in far.counts
    assert near.spent["done again"] > far.spent["done again"]


def test_copies_are_whole_unless_neighbours_went() -> None:
    copies = Copies(("a", "b", "c", "d"), 7)
    assert copies.whole({"a", "c"})
    assert not copies.whole({"d", "a"})
    assert not Copies(("a",), 7).whole({"a"})


def test_newcomers_join_when_they_have_warmed_up_and_not_too_often() -> None:
    trace = trace_of(*(Change(600.0 + 60 * number, added=(f"new-{number}",)) for number in range(8)))
    at_once = outcome_of(trace, KILLED, regroup_costs=0)
    seldom = outcome_of(trace, KILLED, regroup_costs=30)
    assert at_once.counts["joins"] == 8 > seldom.counts["joins"]
    assert outcome_of(trace, KILLED, join_seconds=200).goodput < at_once.goodput


def test_too_few_nodes_wait_for_more() -> None:
    trace = trace_of(Change(600.0, removed=NODES), Change(1200.0, added=("late", "later")))
    for way in WAYS:
        outcome = outcome_of(trace, way)
        assert 0 < outcome.goodput < 1
        assert outcome.available == pytest.approx(16 * 600 + 2 * 2400)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("nodes", [2, 8, 16, 32])
def test_copies_are_as_frequent_as_their_cost_allows(nodes: int, gpus: int) -> None:
    costs = Costs(assumptions({"copy_drag": 1.0}), KILLED, gpus)
    every = costs.copy_every_steps(nodes)
    assert costs.step_with_copies_seconds(nodes) <= costs.step_seconds(nodes) * 1.0200001
    assert every == 1 or costs.copy_seconds(nodes) / (every - 1) > 0.02 * costs.step_seconds(nodes)


def test_only_what_a_member_lacks_moves() -> None:
    assert state_moved(NODES, (), NODES) == 0.0
    # Two of two hold each other's copies; one of two that is left has all.
    assert state_moved(("a", "b"), ("a",), ("b",)) == 0.0
    assert state_moved(("a", "b"), (), ("a", "b", "c")) == pytest.approx(1 / 3)
    assert state_moved(NODES, NODES[:1], NODES[1:]) == 0.0
    assert 0 < state_moved(NODES, NODES[-1:], NODES[:-1]) <= 1 / 15


def test_uneven_lanes_cost_what_idle_ranks_do() -> None:
    costs = Costs(assumptions({"lanes": 1024}), KILLED, 8)
    assert costs.step_seconds(32) == pytest.approx(Costs(Assumptions(), KILLED, 8).step_seconds(32))
    assert costs.step_seconds(31) == pytest.approx(costs.batch_gpu_seconds * 5 / 1024)


def test_restarts_take_what_their_phases_sum_to() -> None:
    for nodes, seconds in ((1, 224), (4, 163), (8, 154)):
        assert Costs(Assumptions(), RESTART, 8).restart_seconds(nodes, lost=True) == pytest.approx(seconds, abs=1)


def test_the_models_figures_are_raylms_own() -> None:
    shape = shape_of(ModelSettings(preset="llama-7b"), 32_000, 4096)
    assert Assumptions().parameters == shape.parameters
    assert Assumptions().flops_a_token == flops_per_token(shape, 4096)


def test_every_assumption_has_a_source_and_no_other_is_taken() -> None:
    assert all(source for _, source in Assumptions().sources().values())
    with pytest.raises(SystemExit, match="no such assumptions: ncll_seconds"):
        assumptions({"ncll_seconds": 1})


@needs_data("spot-traces")
def test_the_traces_are_read_whole() -> None:
    found = list(traces(external_data("spot-traces")))
    assert [one.removals for one in found] == [79, 36, 112, 9, 6, 8, 3]
    for trace in found:
        live = set[str]()
        for change in trace.changes:
            assert set(change.removed) <= live
            assert not live & set(change.added)
            live = live - set(change.removed) | set(change.added)


@needs_data("spot-traces")
@pytest.mark.parametrize("way", [RESTART, EMPTY_RESTART, EIGHT_SECONDS], ids=lambda way: way.name)
def test_it_agrees_with_the_earlier_calculation(way: Way) -> None:
    found = [one for one in traces(external_data("spot-traces")) if one.name.startswith("parcae")]
    for name, pair in run(found, way, Assumptions(), quick=True).items():
        for outcome, earlier in zip(pair.values(), EARLIER[way.name][name], strict=True):
            assert outcome.goodput == pytest.approx(earlier, abs=0.045)


def test_it_says_so_where_there_are_no_traces() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAYLM_TEST_DATA"}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == {"skipped": "spot-traces is not below RAYLM_TEST_DATA"}
