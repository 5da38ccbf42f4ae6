"""What a run goes on with other settings is told, recorded, and shown on its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.report import read_history, render
from raylm.run.folder import RunFolder
from raylm.run.settings import flat, not_default
from raylm.storage import StoragePath
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import run_alone
from raylm.train.changes import changes_since


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a run of 100 steps, of which its settings and a line of metrics stand."""
    from raylm.config.load import resolved_yaml

    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(resolved_yaml(job_of(tmp_path)))
    (folder / "metrics.jsonl").write_text('{"step": 100}\n')
    return folder


def job_of(tmp_path: Path, **changes: Any) -> Job:
    settings: dict[str, Any] = {"storage": str(tmp_path / "runs"), "train": {"steps": 100}}
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        settings.setdefault(section, {})[leaf] = value
    return Job.model_validate(settings)


def told(folder: Path, job: Job, step: int) -> str:
    found = changes_since(RunFolder(StoragePath(str(folder))), job, step)
    return "" if found is None else found.describe()


def test_the_same_settings_are_no_change(trained: Path, tmp_path: Path) -> None:
    assert told(trained, job_of(tmp_path), 100) == ""
    assert told(trained, job_of(tmp_path, prepare__held_out=0.5), 100) == "", "what data holds is compared by itself"
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    trained.rename(moved)
    assert told(moved, job_of(tmp_path / "elsewhere"), 100) == "", "a moved run is the same"


def test_more_steps_that_raise_the_learning_rate_are_told_with_both_rates(trained: Path, tmp_path: Path) -> None:
    words = told(trained, job_of(tmp_path, train__steps=200), 100)
    assert "train.steps: 100 -> 200" in words
    assert "the learning rate goes from 3e-05 to 0.00" in words
    assert "its schedule is for 200 steps now" in words


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_rate_that_goes_on_is_not_said_to_jump(schedule: str, tmp_path: Path) -> None:
    from raylm.config.load import resolved_yaml

    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(resolved_yaml(job_of(tmp_path, optim__schedule=schedule)))
    (folder / "metrics.jsonl").write_text('{"step": 10}\n')
    words = told(folder, job_of(tmp_path, train__steps=110, optim__schedule=schedule), 10)
    assert "train.steps: 100 -> 110" in words
    assert "learning rate" not in words


def test_changed_lists_and_switches_are_named_as_set_takes_them(trained: Path, tmp_path: Path) -> None:
    words = told(trained, job_of(tmp_path, train__audit=True, zero__stage=2, workers__max=5), 40)
    assert words.startswith("settings changed at step ")
    for change in ("train.audit: false -> true", "zero.stage: 1 -> 2", "workers.max: 1 -> 5"):
        assert change in words
    assert flat({"a": [{"b": 1}, {"b": 2}], "c": [1, 2]}) == {"a.0.b": 1, "a.1.b": 2, "c": [1, 2]}


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "\x00"])
def test_settings_that_cannot_be_read_are_compared_with_nothing(text: str, trained: Path, tmp_path: Path) -> None:
    (trained / "run.yaml").write_text(text)
    assert told(trained, job_of(tmp_path, train__steps=200), 100) == ""


def test_a_run_that_goes_on_records_what_changed_and_its_page_shows_the_settings(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=240)
    settings = job_settings(tmp_path / "runs", data, name="run", steps=2, evaluate={})
    first = run_alone(write_job(tmp_path, settings))
    assert first.of("settings_changed") == []
    settings["train"]["steps"] = 3
    settings["zero"]["stage"] = 2
    again = run_alone(write_job(tmp_path, settings))
    (changed,) = again.of("settings_changed")
    assert changed["step"] == 2
    assert changed["changes"] == ["zero.stage: 1 -> 2", "train.steps: 2 -> 3"]
    history = read_history(RunFolder(StoragePath(str(tmp_path / "runs" / "run"))))
    assert history.job is not None
    assert "zero.stage" in not_default(history.job)
    page = render(history)
    chosen, _, rest = page.partition("<h2>Settings</h2>")[2].partition("<details>")
    assert "<td>zero.stage</td><td>2</td>" in chosen
    assert "<td>optim.weight_decay</td>" not in chosen
    assert "<td>optim.weight_decay</td>" in rest
    assert "settings changed at step 2: zero.stage: 1 -&gt; 2; train.steps: 2 -&gt; 3" in page
    assert 'data-chart="gradient norm"' in page
