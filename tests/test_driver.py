"""`raylm train` as a user runs it: a local Ray, Ray Data delivering, Ctrl-C, and the same command again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import environment, read_outcome, run_alone


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Every driver of the test; none outlives it."""
    drivers: list[subprocess.Popen[str]] = []
    yield drivers
    for driver in drivers:
        driver.kill()
        driver.communicate()


def start(job: Path, drivers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    driver = subprocess.Popen(
        [sys.executable, "-m", "raylm.cli.main", "train", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "RAY_AUTH_MODE": "disabled"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's background ignores it
    )
    drivers.append(driver)
    return driver


def wait_for_step(run: Path, step: int, driver: subprocess.Popen[str], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and driver.poll() is None:
        file = run / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    driver.kill()
    pytest.fail(f"step {step} was not reached: {driver.communicate()[0][-3000:]}")


def test_ctrl_c_saves_and_the_same_command_goes_on_and_then_says_it_is_done(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    data = make_data(tmp_path / "data", rows=480)
    settings = job_settings(tmp_path / "runs", data, name="run", steps=24, workers__max=2, workers__resources={})
    settings["data"]["reader"] = "ray"
    job = write_job(tmp_path, settings)
    run = tmp_path / "runs" / "run"

    driver = start(job, started)
    wait_for_step(run, 7, driver)
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command resumes" in said
    stopped = len((run / "metrics.jsonl").read_text().splitlines())
    assert stopped < 24
    assert (run / "checkpoints" / f"step-{stopped:09d}" / "manifest.json").exists()

    driver = start(job, started)
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    outcome = read_outcome(run)
    assert [event["steps_lost"] for event in outcome.of("resumed")] == [0]
    assert outcome.of("resumed")[0]["step"] == stopped

    again = start(job, started)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "finished already" in said
    before = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert before["step"] == 24

    reference = run_alone(write_job(tmp_path, {**settings, "name": "reference"}))
    assert max(abs(a - b) for a, b in zip(outcome.losses, reference.losses, strict=True)) <= 1e-4
    assert outcome.audit_table() == reference.audit_table()
