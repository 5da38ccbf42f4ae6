"""When to save and what to keep: arithmetic, no clock."""

from __future__ import annotations

from dataclasses import replace
from math import nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.checkpoint.save_schedule import Candidate, SaveSchedule, keep, mean_time_between_failures, young_daly


def lost_share(interval: float, cost: float, between: float) -> float:
    """Share of time lost with failures as a Poisson process (Daly's exact model, no restart cost), found by formula."""
    from math import expm1

    return between * expm1((interval + cost) / between) / interval


@pytest.mark.parametrize(("cost", "between"), [(0.1, 600.0), (1.0, 3600.0), (30.0, 3600.0), (120.0, 1800.0)])
def test_the_interval_is_within_a_thousandth_of_the_best(cost: float, between: float) -> None:
    chosen = young_daly(cost, between)
    best = min(lost_share(between * step / 20000, cost, between) for step in range(1, 40000))
    assert lost_share(chosen, cost, between) <= best * 1.001


def test_for_rare_failures_it_is_youngs_square_root() -> None:
    assert young_daly(1e-3, 1e6) == pytest.approx(sqrt(2 * 1e-3 * 1e6), rel=1e-3)


def test_a_save_dearer_than_two_failures_is_made_once_a_failure() -> None:
    assert young_daly(100.0, 50.0) == 50.0


@given(cost=st.floats(1e-3, 1e3), between=st.floats(1.0, 1e6))
def test_the_interval_is_positive_and_not_above_a_few_failures(cost: float, between: float) -> None:
    assert 0 < young_daly(cost, between) <= 3 * between


def test_failures_that_were_seen_outweigh_the_first_guess() -> None:
    assert mean_time_between_failures(first_guess_seconds=3600, elapsed_seconds=0, failures=0) == 3600
    seen = mean_time_between_failures(first_guess_seconds=3600, elapsed_seconds=100 * 60, failures=100)
    assert 60 <= seen <= 100


def test_saving_every_n_steps_is_due_at_multiples_only_and_once() -> None:
    save_schedule = SaveSchedule(started=0.0, every_steps=10)
    due = []
    for step in range(1, 31):
        if save_schedule.should_save(step, now=float(step)):
            due.append(step)
            save_schedule = save_schedule.saving(step, float(step))
            assert not save_schedule.should_save(step, float(step))
    assert due == [10, 20, 30]


def test_saving_every_n_seconds_counts_from_the_save_before() -> None:
    save_schedule = SaveSchedule(started=0.0, every_seconds=10.0)
    assert not save_schedule.should_save(3, 9.9)
    assert save_schedule.should_save(3, 10.0)
    save_schedule = save_schedule.saving(3, 12.0)
    assert not save_schedule.should_save(4, 21.9)
    assert save_schedule.should_save(4, 22.0)


def test_the_automatic_interval_follows_cost_and_failures() -> None:
    save_schedule = SaveSchedule(started=0.0).measured(2.0, 5.0)
    assert save_schedule.interval_seconds(0.0) == pytest.approx(young_daly(2.0, 3600.0))
    assert save_schedule.measured(0.02, 0.5).interval_seconds(0.0) < save_schedule.interval_seconds(0.0)
    assert replace(save_schedule, failures=2).interval_seconds(0.0) < save_schedule.interval_seconds(0.0)


def test_a_save_is_not_begun_before_the_upload_before_can_have_ended() -> None:
    assert SaveSchedule(started=0.0).measured(0.001, 300.0).interval_seconds(0.0) == 300.0


def test_a_resumed_run_does_not_save_what_it_resumed_from() -> None:
    save_schedule = SaveSchedule(started=0.0, every_steps=10).resumed(20, 100.0)
    assert not save_schedule.should_save(20, 100.0)
    assert save_schedule.should_save(30, 101.0)


def test_the_newest_and_the_best_are_kept() -> None:
    found = [Candidate(10, 3.0), Candidate(20, 1.0), Candidate(30, 2.0), Candidate(40), Candidate(50, 5.0)]
    assert keep(found, newest=1) == {50}
    assert keep(found, newest=2, best=1) == {50, 40, 20}
    assert keep(found, newest=1, best=2) == {50, 20, 30}


def test_a_metric_that_is_not_a_number_is_no_best_and_of_equal_ones_the_later_stays() -> None:
    assert keep([Candidate(1, nan), Candidate(2, 1.0), Candidate(3, 1.0), Candidate(4)], newest=1, best=1) == {3, 4}


@given(
    steps=st.lists(st.integers(0, 100), unique=True, min_size=1),
    newest=st.integers(-1, 5),
    best=st.integers(0, 5),
)
def test_the_newest_is_always_kept(steps: list[int], newest: int, best: int) -> None:
    kept = keep([Candidate(step, float(step % 7)) for step in steps], newest=newest, best=best)
    assert max(steps) in kept
    assert len(kept) <= max(newest, 1) + best
