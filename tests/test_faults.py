"""Random faults, several in each run: nothing is lost or repeated, and the losses are those of one worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylm.run.folder import RunFolder
from raylm.storage import StoragePath
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Action, Outcome, run_alone, run_elastic

ROWS, STEPS, FAULTS, SEEDS = 480, 240, 10, 30
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}  # bf16's rounding differs with the number of workers: by 1.7e-3 in ten runs
JOB: dict[str, Any] = {"batch__sequences": 12, "evaluate__every_steps": 40, "checkpoint__every_steps": 10}
Reference = Callable[[str, int], Outcome]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("faults") / "data", rows=ROWS)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One worker, uninterrupted, by dtype and number of steps."""
    known: dict[tuple[str, int], Outcome] = {}

    def alone(dtype: str, steps: int) -> Outcome:
        if (dtype, steps) not in known:
            folder = tmp_path_factory.mktemp("reference")
            known[dtype, steps] = run_alone(write_job(folder, job(folder, data, dtype, steps, stage=1)))
        return known[dtype, steps]

    return alone


def job(folder: Path, data: Path, dtype: str, steps: int, stage: int) -> dict[str, Any]:
    return job_settings(folder / "runs", data, name="run", steps=steps, stage=stage, model__dtype=dtype, **JOB)


def faults(seed: int) -> list[Action]:
    """FAULTS faults at random steps; nodes that go are followed by nodes that come, so that the run goes on."""
    dice = random.Random(seed)
    nodes, found = 3, list[Action]()
    for step in sorted(dice.sample(range(4, STEPS - 30), FAULTS)):
        taking = ["kill", "freeze", "drain", "kill_two"] if nodes > 1 else []
        always = ["kill_worker", "kill_worker", "pause", "driver", "hub", "storage"]
        what = dice.choice([*always, *taking, *(["add"] * (3 - nodes))])
        nodes += {"kill": -1, "freeze": -1, "drain": -1, "add": 1}.get(what, 0)
        found.append(Action(step, what))
        if nodes == 1:
            found.append(Action(step, "add"))
            nodes += 1
    return found


def assert_unchanged(outcome: Outcome, reference: Outcome, run: Path, dtype: str) -> None:
    assert [line["step"] for line in outcome.metrics] == [line["step"] for line in reference.metrics], outcome.acts
    differences = [abs(ours - theirs) for ours, theirs in zip(outcome.losses, reference.losses, strict=True)]
    print(f"{dtype}: losses differ by at most {max(differences):.3g}, at first by {differences[0]:.3g}")
    assert max(differences) <= TOLERANCE[dtype], outcome.acts
    assert outcome.audit_table() == reference.audit_table(), outcome.acts
    if not any(act["what"] == "storage" for act in outcome.acts):
        assert not outcome.of("checkpoint_failed"), outcome.of("checkpoint_failed")
    assert_checkpoints_are_readable(run, outcome)


def assert_checkpoints_are_readable(run: Path, outcome: Outcome) -> None:
    """Every one that counts, with its checksums; the last one is that of the last step."""
    from raylm.checkpoint.restore import committed, open_checkpoint, weights

    found = committed(RunFolder(StoragePath(str(run))).checkpoints)
    assert found[-1].step == outcome.metrics[-1]["step"]
    for info in found:
        assert weights(open_checkpoint(info))


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_faults_change_nothing(data: Path, reference: Reference, tmp_path: Path, seed: int) -> None:
    dtype = "bf16" if seed % 8 >= 5 else "fp32"
    path = write_job(tmp_path, job(tmp_path, data, dtype, STEPS, stage=seed % 4))
    outcome = run_elastic(path, faults(seed), slots=3, drain_seconds=1 + seed * 7 % 30, timeout_seconds=560)
    assert_unchanged(outcome, reference(dtype, STEPS), tmp_path / "runs" / "run", dtype)


def test_ten_faults_of_every_kind_change_nothing(data: Path, reference: Reference, tmp_path: Path) -> None:
    kinds = ["kill_worker", "kill", "add", "pause", "drain", "add", "storage", "kill_two", "hub", "driver"]
    actions = [Action(6 + 10 * number, what) for number, what in enumerate(kinds)]
    steps = actions[-1].step + 20
    path = write_job(tmp_path, job(tmp_path, data, "fp32", steps, stage=2))
    outcome = run_elastic(path, actions, slots=3, drain_seconds=4)
    assert_unchanged(outcome, reference("fp32", steps), tmp_path / "runs" / "run", "fp32")
    assert outcome.of("checkpoint_failed"), "the outage of storage was met"


def test_the_random_faults_are_of_every_kind() -> None:
    kinds = {action.what for seed in range(SEEDS) for action in faults(seed)}
    assert kinds == {"kill", "kill_two", "freeze", "drain", "add", "kill_worker", "pause", "storage", "driver", "hub"}
    assert sum(len(faults(seed)) for seed in range(SEEDS)) >= 300
