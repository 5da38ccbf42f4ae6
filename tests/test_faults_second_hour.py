"""What a second newcomer's hour found: a closed terminal, folders of the user's own, dry runs, programs' mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import raylm
from raylm.cli.main import main
from raylm.config.load import load_job
from raylm.errors import ConfigError, RaylmError, StorageError
from raylm.model.build import model_config
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import environment


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def in_terminal(command: list[str]) -> tuple[int, int]:
    """Start a command in a terminal of its own; its process, and what holds the terminal open."""
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execvpe(command[0], command, {**environment(), "RAY_AUTH_MODE": "disabled"})
    return pid, terminal


def read_until(terminal: int, done: Path, steps: int, seconds: float = 240) -> None:
    """Read what is shown until the run's record has so many steps."""
    os.set_blocking(terminal, False)
    until = time.monotonic() + seconds
    while not (done.exists() and len(done.read_text().splitlines()) >= steps):
        assert time.monotonic() < until, "the steps were not reached"
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        time.sleep(0.02)


def test_a_closed_terminal_saves_and_ends_the_run_in_order(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=480)
    settings = job_settings(tmp_path / "runs", data, name="run", steps=3000, workers__max=1, workers__resources={})
    settings["checkpoint"]["every_steps"] = 1000
    folder = tmp_path / "runs" / "run"
    command = [sys.executable, "-m", "raylm", "train", str(write_job(tmp_path, settings))]
    pid, terminal = in_terminal(command)
    try:
        read_until(terminal, folder / "metrics.jsonl", 20)
        os.close(terminal)
        until = time.monotonic() + 120
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            assert time.monotonic() < until, "the command did not end"
            time.sleep(0.1)
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 130
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert steps < 3000
    assert (folder / "checkpoints" / f"step-{steps:09d}" / "manifest.json").exists(), "the last step was saved"
    assert not (folder / "driver.json").exists(), "the run is given back"


def prepare_job(folder: Path, **prepare: Any) -> Path:
    texts = folder / "texts"
    (texts / "a").mkdir(parents=True)
    (texts / "a" / "0.jsonl").write_text("".join(json.dumps({"text": f"Some words, {n}."}) + "\n" for n in range(50)))
    file = folder / "job.yaml"
    settings = {"sources": [{"glob": f"{texts}/a/*.jsonl"}], "tokenizer": {"vocab_size": 300}, **prepare}
    file.write_text(json.dumps({"name": "x", "storage": str(folder / "runs"), "prepare": settings}))
    return file


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("output", ["texts", "texts/a"])
def test_prepared_data_does_not_go_among_the_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: tuple[str, ...], output: str
) -> None:
    file = prepare_job(tmp_path, output=str(tmp_path / output))
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(capsys, "prepare", str(file), *dry)
    assert code == 2
    assert f"lies in {tmp_path / output}, where prepared data would go" in err
    assert "choose another prepare.output" in err
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("name=afile", 4, "afile is a file, where a folder is wanted"),
        ("storage=job.yaml", 4, "job.yaml is a file, where a folder is wanted"),
        ("storage=s4://bucket", 4, "unknown kind of storage s4://"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_dry_run_ends_as_the_command_where_no_folder_can_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    code: int,
    words: str,
    dry: tuple[str, ...],
) -> None:
    data = make_data(tmp_path / "data", rows=64)
    file = write_job(tmp_path, job_settings(tmp_path / "runs", data, name="run", steps=2)).rename(tmp_path / "job.yaml")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "afile").write_text("mine")
    monkeypatch.chdir(tmp_path)
    ended, out, err = run(capsys, "train", str(file), "--set", change, *dry)
    assert (ended, words in err) == (code, True), err
    assert "next:" not in out
    assert (tmp_path / "runs" / "afile").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["batch.micro_batch=3"],
            "--set batch.micro_batch=3: batch: micro_batch=3 does not divide sequences=8: ",
        ),
        (["workers.min=9"], "--set workers.min=9: workers: min=9 is more than max=1: raise max, or lower min"),
        (["model.path=x"], "--set model.path=x: model: give one of preset, config, path; got preset, path: set the"),
    ],
)
def test_what_a_flag_breaks_is_put_down_to_the_flag(tmp_path: Path, changes: list[str], words: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model: {preset: tiny}\nbatch: {sequences: 8, micro_batch: 2}\nworkers: {max: 1}\n")
    with pytest.raises(ConfigError) as found:
        load_job(str(file), changes)
    assert found.value.message.startswith(words)
    file.write_text("batch: {sequences: 8, micro_batch: 3}\n")
    with pytest.raises(ConfigError, match=r"job\.yaml:1: batch: micro_batch=3"):
        load_job(str(file))


@pytest.mark.parametrize("word", ["no", "off", "yes", '"true"', "1", "0.0"])
def test_a_switch_is_true_or_false(tmp_path: Path, word: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"train:\n  audit: {word}\n")
    with pytest.raises(ConfigError, match=r"job\.yaml:2: train\.audit: expected true or false, got "):
        load_job(str(file))


def test_mistakes_of_programs_are_errors_for_people(tmp_path: Path) -> None:
    job = raylm.job_from({"name": "none", "storage": str(tmp_path)})
    mistakes: list[tuple[Any, str]] = [
        (lambda: raylm.load_job(3), "a job file's path is needed, not 3"),  # type: ignore[arg-type]
        (lambda: raylm.job_from("base.yaml"), "a mapping of settings is needed"),  # type: ignore[arg-type]
        (lambda: raylm.with_overrides("base.yaml", {"optim.lr": 1}), "a Job is needed"),  # type: ignore[arg-type]
        (lambda: list(raylm.generate("x", "a", {"temperature": 0})), "settings are a Sampling"),  # type: ignore[arg-type]
        (lambda: list(raylm.generate("x", ["a"])), "a prompt is a text"),  # type: ignore[arg-type]
        (lambda: raylm.evaluate(3), "the path of a run folder, a checkpoint or an export is needed"),  # type: ignore[arg-type]
        (lambda: raylm.evaluate(job), f"{tmp_path}/none"),
        (lambda: raylm.evaluate(tmp_path / "none"), f"{tmp_path}/none"),
    ]
    for mistake, words in mistakes:
        with pytest.raises(RaylmError) as found:
            mistake()
        assert words in found.value.message
        assert found.value.hint


def test_a_family_without_a_limit_of_length_is_no_traceback() -> None:
    job = raylm.job_from({"model": {"config": {"model_type": "xlnet"}}})
    assert model_config(job.model, 512, 64, eos_id=0).model_type == "xlnet"


def test_a_place_that_can_hold_no_folder_is_told_without_writing(tmp_path: Path) -> None:
    from raylm.storage import StoragePath

    (tmp_path / "file").write_text("")
    for url in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(StorageError, match="file is a file, where a folder is wanted"):
            StoragePath(str(url)).check_place()
    StoragePath(str(tmp_path / "new" / "folder")).check_place()
    assert not (tmp_path / "new").exists()


def test_a_vocabulary_that_stays_small_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = prepare_job(tmp_path, tokenizer={"vocab_size": 5000}, sequence_length=16)
    code, out, err = run(capsys, "prepare", str(file))
    assert code == 0, err
    assert re.search(r"^vocabulary +\d+; the text has no more to make 5,000 of$", out, re.M)


def test_a_file_that_is_given_another_kind_asks_for_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts" / "a"
    file = prepare_job(tmp_path, sources=[{"kind": "parquet", "glob": f"{texts}/*.jsonl", "name": "a"}])
    code, _, err = run(capsys, "prepare", str(file))
    assert code == 3
    assert "give the kind of file that it is" in err or "or give its kind" in err
    assert "hint:  fetch it again\n" not in err
