"""What cannot work is said before anything is spent: by --dry-run, by `plan`, and at the start of a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylm.cli.main import main
from raylm.config.job import Job
from raylm.config.together import refuse_mismatched
from raylm.errors import ConfigError, DataError
from raylm.shards import RowFormat
from raylm.testing.datasets import SEQUENCE, VOCABULARY, job_settings, make_data, write_dataset, write_job
from raylm.train.launch.preflight import preflight


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def job_with(**sections: Any) -> Job:
    return Job.model_validate({"model": {"preset": "tiny"}, **sections})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optim": {"warmup_steps": 101}}, "optim.warmup_steps=101 is longer than the run of train.steps=100"),
        ({"optim": {"warmup_steps": 60, "schedule": "wsd", "decay_steps": 41}}, "are together longer than the run"),
        ({"evaluate": {"every_steps": 5}, "prepare": {"held_out": 0}}, "prepare.held_out=0 keeps nothing"),
        ({"checkpoint": {"keep_best": 2}}, "needs held-out losses"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_every_command(
    sections: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="=") as refused:
        refuse_mismatched(job_with(**sections))
    assert words in refused.value.message
    assert refused.value.hint
    file = str(write_job(tmp_path, {"name": "a", "storage": str(tmp_path), "model": {"preset": "tiny"}, **sections}))
    for command in (["plan", file], ["train", file, "--dry-run"], ["prepare", file, "--dry-run"]):
        code, out, err = said(capsys, *command)
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    "sections",
    [
        {"optim": {"warmup_steps": 100}},
        {"optim": {"warmup_steps": 60, "schedule": "wsd", "decay_steps": 40}},
        {"optim": {"warmup_steps": 95, "schedule": "wsd"}},
        {"evaluate": {"every_steps": 5}, "prepare": {"held_out": 0}, "data": {"path": "elsewhere"}},
        {"evaluate": {"every_steps": 5}, "checkpoint": {"keep_best": 2}},
    ],
)
def test_settings_that_just_fit_are_taken(sections: dict[str, Any]) -> None:
    refuse_mismatched(job_with(**sections))


def test_a_warm_up_too_long_is_refused_by_a_program_too(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=24)
    settings = job_settings(tmp_path / "runs", data, name="a", steps=5, optim__warmup_steps=6)
    job = Job.model_validate(settings)
    with pytest.raises(ConfigError, match=r"warmup_steps=6 is longer than the run of train\.steps=5"):
        preflight(job, tmp_path_of(job))


def tmp_path_of(job: Job) -> Any:
    from raylm.storage import StoragePath

    return StoragePath(job.run_url)


def test_evaluation_without_held_out_rows_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.ones((24, SEQUENCE), dtype=np.int64)
    write_dataset(tmp_path / "data", RowFormat(SEQUENCE, VOCABULARY, "none", eos_id=0, group_rows=8), rows, rows[:0])
    settings = job_settings(tmp_path / "runs", tmp_path / "data", name="a", steps=5)
    job = Job.model_validate(settings)
    with pytest.raises(DataError, match="no held-out sequences in"):
        preflight(job, tmp_path_of(job))
    code, _, err = said(capsys, "train", str(write_job(tmp_path, settings)), "--dry-run")
    assert code == 3
    assert "no held-out sequences in" in err
    assert "set evaluate.every_steps to null" in err
    file = str(write_job(tmp_path, settings | {"evaluate": {}}))
    assert said(capsys, "train", file, "--dry-run")[0] == 0


def test_a_mixture_whose_weights_end_at_nothing_is_refused_when_it_is_read() -> None:
    def mixture(*schedules: list[tuple[int, float]]) -> dict[str, Any]:
        return {
            "mixture": [
                {
                    "path": f"/{number}",
                    "weight_schedule": [{"step": step, "weight": weight} for step, weight in changes],
                }
                for number, changes in enumerate(schedules)
            ]
        }

    with pytest.raises(ValueError, match="at step 9 every weight of the mixture is 0"):
        job_with(data=mixture([(5, 0.0)], [(9, 0.0)]))
    with pytest.raises(ValueError, match="at step 5 every weight of the mixture is 0"):
        job_with(data=mixture([(5, 0.0)]))
    assert job_with(data=mixture([(5, 0.0), (9, 1.0)], [(9, 0.0)]))
