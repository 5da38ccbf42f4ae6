"""A damaged newest checkpoint ends no run: the one before it stands in, nothing is repeated, and it is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from raylm.checkpoint.fallback import newest_readable
from raylm.checkpoint.manifest import DAMAGED, MANIFEST, DamagedCheckpoint
from raylm.checkpoint.restore import newest
from raylm.storage import StoragePath
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Outcome, run_alone

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("damaged") / "data", rows=480)


def settings_of(folder: Path, data: Path, steps: int) -> dict[str, Any]:
    return job_settings(
        folder / "runs",
        data,
        name="run",
        steps=steps,
        optim={"lr": 1e-3, "warmup_steps": 2, "schedule": "constant"},
        checkpoint={"every_steps": 2, "keep": 4},
        evaluate={},
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder whose run ended after 6 steps, saved by two workers at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("stopped")
    run_alone(write_job(folder, settings_of(folder, data, 6)), workers=2)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_alone(write_job(folder, settings_of(folder, data, 8)))


def _flip(step: Path) -> None:
    (part,) = step.glob("fence-*/rank-00001-of-2.safetensors")
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(bytes(content))


def _cut(step: Path) -> None:
    (part,) = step.glob("fence-*/rank-00000-of-2.safetensors")
    part.write_bytes(part.read_bytes()[:-5000])


def _lose_index(step: Path) -> None:
    (index,) = step.glob("fence-*/rank-00001-of-2.json")
    index.unlink()


def _empty_manifest(step: Path) -> None:
    (step / MANIFEST).write_bytes(b"")


DAMAGE = {
    "a flipped bit": (_flip, "fail their checksum"),
    "a part cut short": (_cut, "is truncated"),
    "an index gone": (_lose_index, "is missing"),
    "an empty manifest": (_empty_manifest, "is not a checkpoint's manifest"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    kind: str, tmp_path: Path, data: Path, stopped: Path, uninterrupted: Outcome
) -> None:
    damage, words = DAMAGE[kind]
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    steps = tmp_path / "runs" / "run" / "checkpoints"
    damage(steps / "step-000000006")
    resumed = run_alone(write_job(tmp_path, settings_of(tmp_path, data, 8)), workers=1 if damage is _cut else 2)
    assert resumed.losses == pytest.approx(uninterrupted.losses, abs=TOLERANCE)
    assert resumed.audit_table() == uninterrupted.audit_table()
    assert [event["step"] for event in resumed.of("resumed")] == [4]
    (warned,) = resumed.of("warned")
    assert words in warned["message"]
    assert "step-000000006" in warned["message"]
    assert "set aside, and the run goes on from the checkpoint of step 4" in warned["message"]
    found = newest(StoragePath(str(steps)))
    assert found is not None
    assert found.step == 8
    assert (steps / "step-000000006" / DAMAGED).exists(), "left to a person"


def test_a_run_none_of_whose_checkpoints_is_whole_ends_with_all_of_them_as_they_were(
    tmp_path: Path, data: Path, stopped: Path
) -> None:
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    steps = tmp_path / "runs" / "run" / "checkpoints"
    for number in (2, 4, 6):
        _flip(steps / f"step-00000000{number}")
    before = {path: path.read_bytes() for path in steps.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match="no checkpoint before it is whole"):
        run_alone(write_job(tmp_path, settings_of(tmp_path, data, 8)), workers=2)
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_read_only_names_the_damage(tmp_path: Path, stopped: Path) -> None:
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    folder = StoragePath(str(tmp_path / "runs" / "run" / "checkpoints"))
    for number in (6, 4):
        _empty_manifest(tmp_path / "runs" / "run" / "checkpoints" / f"step-00000000{number}")
    found = newest_readable(folder)
    assert found.info is not None
    assert (found.info.step, len(found.damaged)) == (2, 2)
    assert newest_readable(folder, below=2).info is None
    with pytest.raises(DamagedCheckpoint, match="step-000000006"):
        newest(folder)
    _empty_manifest(tmp_path / "runs" / "run" / "checkpoints" / "step-000000002")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint before it is whole"):
        newest_readable(folder).or_raise()
