"""Random faults, several in each run: nothing is lost or repeated, and the losses are those of one worker."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Action, Outcome, run_alone, run_elastic

ROWS, STEPS, FAULTS = 480, 150, 5
TOLERANCE = 1e-4
JOB: dict[str, Any] = {"steps": STEPS, "batch__sequences": 24, "evaluate__every_steps": 50}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("faults") / "data", rows=ROWS)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One worker, uninterrupted."""
    folder = tmp_path_factory.mktemp("reference")
    return run_alone(write_job(folder, job_settings(folder / "runs", data, name="run", **JOB)))


def faults(seed: int) -> list[Action]:
    """FAULTS faults at random steps; nodes that go are followed by nodes that come, so that the run goes on."""
    dice = random.Random(seed)
    nodes, found = 3, list[Action]()
    for step in sorted(dice.sample(range(4, STEPS - 30), FAULTS)):
        taking = ["kill", "freeze", "drain"] if nodes > 1 else []
        what = dice.choice(["kill_worker", "kill_worker", "pause", "driver", "hub", *taking, *(["add"] * (3 - nodes))])
        nodes += {"kill": -1, "freeze": -1, "drain": -1, "add": 1}.get(what, 0)
        found.append(Action(step, what))
        if nodes == 1:
            found.append(Action(step, "add"))
            nodes += 1
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(60))
def test_random_faults_change_nothing(data: Path, reference: Outcome, tmp_path: Path, seed: int) -> None:
    settings = job_settings(tmp_path / "runs", data, **{"name": "run", "stage": seed % 4, **JOB})
    outcome = run_elastic(write_job(tmp_path, settings), faults(seed), slots=3, drain_seconds=1 + seed * 7 % 30)
    assert [line["step"] for line in outcome.metrics] == [line["step"] for line in reference.metrics], outcome.acts
    differences = [abs(ours - theirs) for ours, theirs in zip(outcome.losses, reference.losses, strict=True)]
    assert max(differences) <= TOLERANCE, outcome.acts
    assert outcome.audit_table() == reference.audit_table(), outcome.acts
    assert not outcome.of("checkpoint_failed"), outcome.of("checkpoint_failed")


def test_the_faults_are_of_every_kind() -> None:
    kinds = {action.what for seed in range(60) for action in faults(seed)}
    assert kinds == {"kill", "freeze", "drain", "add", "kill_worker", "pause", "driver", "hub"}
    assert sum(len(faults(seed)) for seed in range(60)) >= 300
