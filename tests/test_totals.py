"""Where a run's time went: parts that add up to the clock, whatever the log says; and the ledger of its starts."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, Writer

from raylm.report import read_history, render, totals
from raylm.report.ledger import MAX_STARTS, why
from raylm.run.history import History
from raylm.run.regroups import regroups
from raylm.run.totals import Totals, divided, step_times, stops

PHASES = {"gather": 1.0, "form": 0.5, "build": 2.0, "state": 0.25, "copy": 0.25}


def told(run: Writer) -> History:
    return read_history(run.write())


def started(run: Writer, kind: str = "resumed", phases: dict[str, Any] | None = None, **fields: Any) -> None:
    """A start whose phases pass on the clock, and then its line."""
    phases = PHASES if phases is None else phases
    run.wait(sum(phases.values()))
    run.event(kind, phases=phases, seconds=sum(phases.values()), **fields)


def faulty(folder: Path) -> Writer:
    """A loss within step 11, an evaluation and a save after step 20, a wait for capacity, and a join, without gaps."""
    run = Writer(folder)
    started(run, "started", {"gather": 3.0, "import": 4.0, "form": 1.0}, step=0, workers=2)
    run.steps(1, 10, seconds=1.25, copy_seconds=0.25, step_seconds=1.0)
    run.wait(0.5)
    run.event("worker_lost", step=10, workers=2, ranks=[1], nodes=["b"], message="lost: node gone", last_committed=0)
    started(run, step=10, workers=1, since_loss_seconds=4.0, steps_lost=0)
    run.steps(11, 20, workers=1)
    run.wait(3)
    run.event("evaluated", step=20, workers=1, held_out_loss=2.0, seconds=3.0)
    run.wait(0.75)
    run.steps(21, 22, workers=1)
    run.event("checkpoint_committed", step=20, workers=1, seconds=2.0, stall_seconds=0.75)
    run.event("worker_lost", step=22, workers=1, ranks=[0], nodes=["a"], message="error: boom", last_committed=20)
    run.wait(40)
    run.event("waiting", step=22, workers=0, fits=0, needs_workers=1)
    run.wait(19)
    run.event("resized", step=22, workers=3, workers_before=1)
    started(
        run,
        phases={"form": 0.5, "build": 2.0, "state": 6.0, "warp": 0.5},
        step=20,
        workers=3,
        since_loss_seconds=68.0,
        steps_lost=2,
    )
    run.events[-1]["phases"] = {"gather": 59.0, **run.events[-1]["phases"]}
    run.steps(21, 30, workers=3)
    return run


def parts(total: Totals) -> dict[str, float]:
    return {name: seconds for name, seconds in total.idle if seconds}


def assert_it_adds_up(history: History) -> Totals:
    """The parts are none below zero, and add up to the span to the microsecond."""
    total = totals(history)
    lines = [step.at for step in history.steps] + [event.at for event in history.events]
    firsts = [one.began for one in regroups(history)]
    firsts += [step.at - step.step_seconds - (step.copy_seconds or 0) for step in history.steps[:1]]
    span = max(lines) - min(lines + firsts)
    every = [total.useful_seconds, total.replayed_seconds, total.stopped_seconds, *(part for _, part in total.idle)]
    assert min(every) >= 0
    assert round(sum(every) * 1e6) == round(total.span_seconds * 1e6) == round(span * 1e6)
    return total


def test_idle_time_is_divided_by_what_it_went_to(tmp_path: Path) -> None:
    total = assert_it_adds_up(told(faulty(tmp_path)))
    assert total.useful_seconds == 10 + 10 + 10
    assert total.replayed_seconds == 2
    assert parts(total) == {
        "broken-off steps": 0.5,
        "waiting": 59,
        "gather": 3 + 1,
        "import": 4,
        "form": 1 + 0.5 + 0.5,
        "build": 2 + 2,
        "state": 0.25 + 6,
        "copy": 0.25,
        "warp": 0.5,
        "copies": 2.5,
        "evaluation": 3,
        "saves": 0.75,
    }
    assert list(total.starts) == ["waiting", "gather", "import", "form", "build", "state", "copy", "warp"]


def test_a_save_counts_behind_the_step_that_it_saves_though_it_is_told_later(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    run.steps(1, 4)
    run.wait(0.75)
    run.steps(5, 7)
    run.event("checkpoint_committed", step=4, workers=2, seconds=2.5, stall_seconds=0.75)
    total = assert_it_adds_up(told(run))
    assert (total.useful_seconds, total.saves_seconds, total.other_seconds) == (7, 0.75, 0)


def test_waiting_is_told_from_gathering_by_its_event_alone(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", {"gather": 30.0}, step=0, workers=2)
    run.steps(1, 3)
    run.event("waiting", step=3)  # of before the loss, as two clocks may say
    run.wait(1)
    started(run, step=3, workers=2, since_loss_seconds=4.0)
    total = assert_it_adds_up(told(run))
    assert "waiting" not in total.starts
    assert total.starts["gather"] == 31


def test_lines_that_come_late_count_in_full(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    run.event("started", step=0, workers=2, seconds=0.0)
    run.wait(3)
    for step in (1, 2, 3):  # of a second each, recorded at once
        late(run, step)
    total = assert_it_adds_up(told(run))
    assert (total.useful_seconds, total.other_seconds) == (3, 0)


def late(run: Writer, step: int) -> None:
    run.metrics[step] = {"step": step, "time": run.now.isoformat(), "step_seconds": 1.0, "workers": 2}


def test_a_step_that_survivors_tell_for_the_dead_ended_before_their_regroup(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", {"gather": 1.0}, step=0, workers=2)
    run.steps(1, 3)
    run.wait(1.5)
    run.event("worker_lost", step=3, workers=2, ranks=[0], message="lost: gone")
    run.wait(sum(PHASES.values()))
    late(run, 4)
    run.event("resumed", step=4, workers=1, phases=PHASES, seconds=4.0, since_loss_seconds=4.0, steps_lost=0)
    run.steps(5, 6, workers=1)
    total = assert_it_adds_up(told(run))
    assert total.useful_seconds == 6
    assert parts(total) == {"gather": 2, "form": 0.5, "build": 2, "state": 0.25, "copy": 0.25, "other": 0.5}


def test_a_start_that_was_broken_off_is_the_rest_of_the_next_one(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", {"gather": 1.0}, step=0, workers=3)
    run.steps(1, 2)
    run.event("worker_lost", step=2, workers=3, ranks=[2], nodes=["c"], message="lost: gone")
    run.wait(2)
    run.event("resized", step=2, workers=2, workers_before=3)
    run.wait(5)
    run.event("worker_lost", step=2, workers=2, ranks=[1], nodes=["b"], message="lost: gone too")
    run.event("resized", step=2, workers=1, workers_before=2)
    started(run, step=2, workers=1, since_loss_seconds=11.0, steps_lost=0)
    run.steps(3, 4, workers=1)
    history = told(run)
    total = assert_it_adds_up(history)
    assert total.unnamed_seconds == 7
    assert total.starts == {"gather": 2, "form": 0.5, "build": 2, "state": 0.25, "copy": 0.25}
    assert why(regroups(history)[-1]) == "lost: rank 2 on c, rank 1 on b"


def test_a_night_off_is_stopped_but_for_the_work_that_was_lost_before_it(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", {"gather": 1.0}, step=0, workers=2)
    run.steps(1, 10)
    run.wait(36_000)
    started(run, step=10, workers=2, steps_lost=3)
    run.steps(11, 14)
    history = told(run)
    total = assert_it_adds_up(history)
    assert (total.replayed_seconds, total.stopped_seconds) == (3, 36_000 - 3)
    assert [end - begin for begin, end in stops(history)] == [36_000]


@pytest.mark.parametrize(
    "phases", [None, {}, {"gather": "soon"}, {"gather": None, "form": -3.0}, ["gather"], {"form": float("inf")}]
)
def test_phases_that_say_nothing_leave_a_start_whole(tmp_path: Path, phases: object) -> None:
    run = Writer(tmp_path)
    run.event("started", step=0, workers=1, seconds=2.0, phases=phases)
    run.steps(1, 2, workers=1)
    history = told(run)
    total = assert_it_adds_up(history)
    assert (total.unnamed_seconds, sum(total.starts.values())) == (2, 0)
    assert Page(render(history)).open == []


@pytest.mark.parametrize("seed", range(40))
def test_any_log_adds_up(tmp_path: Path, seed: int) -> None:
    """Clocks set back, two drivers at once, overlapping spans, missing and absurd fields."""
    dice = random.Random(seed)
    run = Writer(tmp_path)
    step = 0
    for _ in range(60):
        run.wait(dice.choice([0.0, 0.001, 0.5, 3.0, 500.0, -2.0, -700.0]))
        kind = dice.choice(["steps", "steps", "started", "resumed", "worker_lost", "waiting", "evaluated", "save"])
        seconds = dice.choice([None, 0.0, 0.3, 7.0, 1e4])
        if kind == "steps":
            first = max(1, step - dice.choice([0, 0, 5]))
            step = first + dice.randrange(8)
            run.steps(first, step, seconds=dice.choice([0.01, 1.0]), copy_seconds=seconds)
        elif kind in ("started", "resumed"):
            names = dice.sample(["copy", "gather", "warp", "form", "other", "useful"], dice.randrange(5))
            phases = {name: dice.choice([0.0, 0.2, 30.0, "?"]) for name in names}
            since, lost = dice.choice([None, 0.0, 2.0, 1e5]), dice.choice([None, 0, 3, 50])
            fields = {"since_loss_seconds": since, "steps_lost": lost, "workers": dice.choice([None, 2])}
            run.event(kind, step=max(0, step - 2), phases=dice.choice([None, phases]), seconds=seconds, **fields)
        elif kind == "save":
            run.event("checkpoint_committed", step=step, seconds=seconds, stall_seconds=dice.choice([None, 0.1, 90.0]))
        else:
            run.event(kind, step=step, seconds=seconds)
    history = read_history(run.write())
    assert_it_adds_up(history)
    assert Page(render(history)).open == []


def test_where_layers_overlap_the_first_one_counts() -> None:
    assert divided([[(2, 4), (3, 5)], [(0, 3), (4.5, 9)]], 1, 8) == [3.0, 1.0 + 3.0, 0.0]
    assert divided([[(5, 1)], []], 0, 0.3) == [0.0, 0.0, 0.3]


def test_a_clock_that_is_set_back_moves_no_earlier_step(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    run.steps(1, 5)
    run.wait(-3600)
    run.steps(6, 10)
    times = step_times(told(run))
    assert all(round(time.end - time.begin, 3) == 1 for time in times)
    assert times[0].begin > times[9].begin


def test_the_ledger_says_why_each_generation_began(tmp_path: Path) -> None:
    run = faulty(tmp_path)
    run.event("preemption_notice", step=30, workers=3, ranks=[2], grace_seconds=30)
    started(run, step=30, workers=2, since_loss_seconds=4.0, steps_lost=0)
    run.event("shrink_requested", step=30, workers=2)
    started(run, step=30, workers=1, since_loss_seconds=4.0, steps_lost=0)
    started(run, step=30, workers=2, since_loss_seconds=4.0, steps_lost=0)
    started(run, step=30, workers=2, since_loss_seconds=4.0, steps_lost=0)
    history = told(run)
    assert [(one.workers_before, one.start.workers, why(one)) for one in regroups(history)] == [
        (None, 2, "driver start"),
        (2, 1, "lost: rank 1 on b"),
        (1, 3, "failed: rank 0 on a; join: 2 more"),
        (3, 2, "notice: rank 2"),
        (2, 1, "shrink: another run's share"),
        (1, 2, "join: 1 more"),
        (2, 2, "regroup at the same size"),
    ]
    rows = ledger_of(render(history))
    assert rows[0] == [
        *("time (UTC)", "step", "why", "workers"),
        *("waiting", "gather", "import", "form", "build", "state", "copy", "warp"),
        *("sum", "since loss", "steps lost"),
    ]
    assert rows[3][1:] == [
        *("20", "failed: rank 0 on a; join: 2 more", "1 → 3"),
        *("59.00", "", "", "0.50", "2.00", "6.00", "", "0.50", "68.00", "68.00", "2"),
    ]


def ledger_of(page: str) -> list[list[str]]:
    table = re.search(r'<table class="grid ledger">(.*?)</table>', page)
    assert table is not None
    rows = table[1].split("<tr>")[1:]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_what_a_start_says_cannot_become_markup(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", {"<img>": 1.0, '"><b': 2.0}, step=0, workers=1)
    run.event("worker_lost", step=0, ranks=[0], nodes=["<b>"], message='"><script>')
    started(run, step=0, workers=1, since_loss_seconds=1.0)
    page = Page(render(told(run)))
    assert page.open == []
    assert page.seen.count("script") == 2
    assert not {"img", "b"} & set(page.seen)


def test_a_run_of_very_many_regroups_stays_a_small_page(tmp_path: Path) -> None:
    run = Writer(tmp_path)
    started(run, "started", step=0, workers=4)
    for number in range(2000):
        run.steps(10 * number + 1, 10 * number + 10, workers=4 - number % 2)
        run.event("worker_lost", step=10 * number + 10, workers=4, ranks=[3], nodes=["node-d"], message="lost: gone")
        run.event("resized", step=10 * number + 10, workers=4 - number % 2, workers_before=3)
        started(run, step=10 * number + 8, workers=4 - number % 2, since_loss_seconds=4.0, steps_lost=2)
    history = told(run)
    assert_it_adds_up(history)
    page = render(history)
    assert len(ledger_of(page)) == MAX_STARTS + 1
    assert f"{2001 - MAX_STARTS:,} earlier starts are left out" in page
    assert len(page) < 3_000_000
