"""The command line: what it prints, where errors go, and with which exit code."""

import io
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import eventful

from raylm.cli.common import command_line
from raylm.cli.main import COMMANDS, main, reason_for_people
from raylm.cli.prepare import progress_lines
from raylm.cli.progress import Pace, PlainLines, step_words
from raylm.config.job import Job
from raylm.errors import DataError, Interrupted, RaylmError, StorageError, TrainingError
from raylm.humanize import count, duration, size
from raylm.prep.prepare import PrepareProgress
from raylm.run.events import Resized, WorkerLost
from raylm.run.metrics import StepMetrics

JOBS = Path(__file__).parent.parent / "jobs"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def job_file(folder: Path, text: str = "") -> str:
    file = folder / "job.yaml"
    file.write_text(f"storage: {folder / 'runs'}\n{text}")
    return str(file)


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"{name:<10}  {line}" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert out.startswith("Usage: raylm " + name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x"], "No such command 'trian'"),
        (["train"], "Missing argument 'JOB'"),
        (["train", "x", "--sett", "a=b"], "No such option"),
    ],
)
def test_a_mistyped_command_exits_2(capsys: pytest.CaptureFixture[str], words: Sequence[str], said: str) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("command", ["prepare", "plan", "train"])
def test_a_bad_job_is_one_error_with_a_hint_and_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    code, out, err = run(capsys, command, job_file(tmp_path, "optm: {}\n"))
    assert code == 2
    assert out == ""
    assert err.splitlines() == [
        f"error: {tmp_path}/job.yaml:2: unknown key 'optm'",
        "hint:  did you mean 'optim'?",
    ]


def test_a_flag_reaches_the_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "train", job_file(tmp_path), "--set", "workers.max=99", "--dry-run")
    assert code == 2
    assert "--set workers.max=99: workers.max=99 exceeds the 8 lanes" in err


@pytest.mark.parametrize(
    "error", [DataError("bad", hint="good"), StorageError("bad", hint="good"), TrainingError("bad", hint="good")]
)
def test_each_error_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RaylmError
) -> None:
    monkeypatch.setattr("raylm.cli.common.read_job", raising(error))
    monkeypatch.setattr("raylm.cli.plan.read_job", raising(error))
    assert run(capsys, "plan", job_file(tmp_path)) == (error.exit_code, "", "error: bad\nhint:  good\n")


def raising(error: BaseException) -> Any:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_traceback_shows_where_an_error_arose(tmp_path: Path) -> None:
    with pytest.raises(RaylmError):
        main(["--traceback", "plan", job_file(tmp_path, "optm: {}\n")])


def test_our_own_mistakes_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.cli.plan.read_job", raising(AssertionError("ours")))
    with pytest.raises(AssertionError):
        main(["plan", job_file(tmp_path)])


def test_what_ray_wrapped_is_found_again() -> None:
    wrapped = RuntimeError("task failed")
    wrapped.cause = DataError("inside")  # type: ignore[attr-defined]
    outer = ValueError("outer")
    outer.__cause__ = wrapped
    found = reason_for_people(outer)
    assert isinstance(found, DataError)
    assert found.message == "inside"
    assert reason_for_people(ValueError("ours")) is None


def test_ctrl_c_exits_130_and_says_that_the_run_resumes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyboardInterrupt(), Interrupted("stopped", hint="the same command goes on from where it was")):
        monkeypatch.setattr("raylm.cli.plan.read_job", raising(error))
        code, _, err = run(capsys, "plan", job_file(tmp_path))
        assert code == 130
        assert err.strip() + "\n" == "stopped\nhint:  the same command goes on from where it was\n"


def hears_ctrl_c() -> None:
    """For what a test starts: in the background of a script the signal is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_in_order(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import time, raylm.cli.plan as plan\n"
        "from raylm.cli.main import main\n"
        "def wait(*_): print('here', flush=True); time.sleep(60)\n"
        f"plan.read_job = wait\nmain(['plan', {job_file(tmp_path)!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip().startswith("stopped\n")


@pytest.mark.parametrize(("ignored", "ends"), [(signal.SIGHUP, signal.SIGTERM), (signal.SIGINT, signal.SIGHUP)])
def test_what_a_shell_ignores_is_ignored_and_the_others_are_heard(
    tmp_path: Path, ignored: signal.Signals, ends: signal.Signals
) -> None:
    code = (
        "import time, raylm.cli.plan as plan\n"
        "from raylm.cli.common import say_how_to_stop\n"
        "from raylm.cli.main import main\n"
        "def wait(*_): say_how_to_stop(); print('here', flush=True); time.sleep(60)\n"
        f"plan.read_job = wait\nmain(['plan', {job_file(tmp_path)!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: (hears_ctrl_c(), signal.signal(ignored, signal.SIG_IGN)),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(ignored)
    process.send_signal(ends)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (f"`kill {process.pid}` saves and stops" in err) == (ignored is signal.SIGINT)


def test_train_dry_run_shows_workers_tokens_and_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = "name: a\nworkers: {max: 4}\nbatch: {sequences: 64}\ntrain: {steps: 1000}\nprepare: {sources: [{glob: a}]}\n"
    code, out, _ = run(capsys, "train", job_file(tmp_path, text), "--set", "model.preset=tiny", "--dry-run")
    rows = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    rows = {name: value.strip() for name, value in rows.items()}
    assert code == 3, "there is no data yet"
    assert rows["workers"] == "1 to 4, 1 CPUs each, ZeRO stage 1"
    assert rows["batch"] == "64 sequences, 32.8k tokens, 16 lanes"
    assert rows["tokens"] == "32.8M in 1,000 steps"
    assert rows["output"] == f"{tmp_path}/runs/a"
    assert out.endswith(f"next: raylm prepare {tmp_path}/job.yaml --set model.preset=tiny\n")
    assert not (tmp_path / "runs").exists()


def test_prepare_dry_run_shows_sources_and_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 4000)
    text = f"name: a\nprepare: {{sources: [{{glob: '{tmp_path}/*.txt'}}], workers: 3}}\n"
    code, out, _ = run(capsys, "prepare", job_file(tmp_path, text), "--dry-run")
    assert code == 0
    assert "units      1, of 1 files with 3.9 KiB" in out
    assert "tokens     about 1.00k, at 4 bytes per token" in out
    assert "workers    3 at once" in out
    assert f"output     {tmp_path}/runs/a/data" in out
    assert not (tmp_path / "runs").exists()


def test_an_error_found_after_the_job_was_read_names_its_file_and_the_flags_it_is_about(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = job_file(tmp_path, "name: a\n")
    for words in (["plan", file], ["train", file, "--dry-run"]):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert err.startswith(
            f"error: {file}: the job says no model: model.preset, model.config and model.path are not"
        )
    flags = ["--set", "train.steps=5", "--set", "model.path=nowhere"]
    _, _, err = run(capsys, "plan", file, *flags)
    assert err.startswith(
        f"error: {file} with --set model.path=nowhere: model.path='{Path('nowhere').absolute()}': there"
    )


def test_an_error_that_names_its_place_is_left_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = job_file(tmp_path, "name: a\n")
    for words, message in [
        (["plan", file, "--set", "optim.lr"], "--set optim.lr: not of the form key=value"),
        (["plan", f"{file}x"], f"no job file {file}x"),
        (["plan", str(tmp_path)], f"{tmp_path} is a folder, not a job file"),
        (["explain", "--job", f"{file}x"], f"no job file {file}x"),
    ]:
        code, _, err = run(capsys, *words)
        assert (code, err.splitlines()[0]) == (2, f"error: {message}")


def test_a_plugin_that_explain_cannot_read_is_said_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = job_file(tmp_path, "plugins: [none.py]\n")
    code, _, err = run(capsys, "explain", "--job", file)
    assert (code, err.splitlines()[0]) == (
        2,
        f"error: {file}:2: plugin {tmp_path}/none.py cannot be read: No such file or directory",
    )


@pytest.mark.parametrize("prepared", [False, True])
def test_train_dry_run_says_what_could_not_be_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prepared: bool
) -> None:
    from raylm.testing.datasets import make_data

    if prepared:
        make_data(tmp_path / "data", rows=8, held_out=2)
    silent = (
        "object_store: {endpoint: 'http://127.0.0.1:9', retries: 0, timeout_seconds: 2}\nstorage: s3://bucket/runs\n"
    )
    file = tmp_path / "job.yaml"
    file.write_text(f"{silent}model: {{preset: tiny}}\ndata: {{path: data}}\n")
    code, out, _ = run(capsys, "train", str(file), "--set", "init_from.path=parent", "--dry-run")
    assert code == (0 if prepared else 3)
    [said] = [line for line in out.splitlines() if line.startswith("not checked")]
    settings = "" if prepared else "whether the settings fit the data; "
    assert said.startswith(
        f"not checked  {settings}whether this job may train in the output folder and from init_from.path: cannot "
    )
    assert "s3://bucket/runs/run/" in said
    _, out, _ = run(capsys, "train", str(file), "--set", f"storage={tmp_path}/runs", "--dry-run")
    assert ("not checked" in out) == (not prepared)


def test_preparation_tells_its_pace_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 10.0, 20.0])
    tell = progress_lines(clock=lambda: next(times))
    for done, tokens in [(5, 1000), (6, 1200), (10, 3000), (25, 9000)]:
        tell(PrepareProgress("tokenizing", done, 25, done * 10, tokens))
    assert capsys.readouterr().out.splitlines() == [
        "tokenizing: 5 of 25, 50 documents, 1.00k tokens",
        "tokenizing: 10 of 25, 100 documents, 3.00k tokens, 200 tokens/s, 30s left",
        "tokenizing: 25 of 25, 250 documents, 9.00k tokens, 400 tokens/s",
    ]


def test_inspect_shows_what_a_data_set_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from raylm.config.load import load_job
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    (tmp_path / "a.txt").write_text("".join(f"line {number} of the story\n" for number in range(500)) + "\n\n")
    source = f"{{name: story, document: line, glob: '{tmp_path}/a.txt'}}"
    text = f"name: a\nprepare: {{sources: [{source}], sequence_length: 32, tokenizer: {{vocab_size: 300}}}}\n"
    prepare(load_job(job_file(tmp_path, text)), session=here)
    code, out, _ = run(capsys, "inspect", f"{tmp_path}/runs/a/data", "--samples", "1")
    assert code == 0
    assert re.search(r"^source +story: 500 documents, [\d.]+k tokens; skipped: 2 empty$", out, re.M)
    assert re.search(r"^lengths +shortest \d+, median \d+, 90 % \d+, longest \d+ tokens, of \d+ doc", out, re.M)
    assert re.search(r"^sample 1:\n  line \d+ of the story$", out, re.M)
    code, _, err = run(capsys, "inspect", str(tmp_path))
    assert code == 3
    assert err.startswith("error: ")
    assert "hint:  " in err


def test_plan_answers_for_seven_billion_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", str(JOBS / "pretrain-7b-spot.yaml"), "--workers", "1", "--workers", "64")
    assert code == 0
    assert "6,738,415,616" in out
    assert "GB per worker, 64 workers" in out


def test_report_says_what_it_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    eventful(tmp_path).write()
    code, out, _ = run(capsys, "report", str(tmp_path))
    assert code == 0
    assert "30, 4 of them trained again after a loss" in out
    assert "44s useful, 4.0s replayed, 20s idle, 9h 59m stopped" in out
    assert "idle   20s rest of starts" in out
    assert (tmp_path / "report.html").exists()


def test_report_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "report", str(tmp_path))
    assert code == DataError.exit_code
    assert err.startswith(f"error: nothing to report: {tmp_path}")


@pytest.mark.parametrize("command", [["evaluate"], ["generate"], ["export", "dest"]])
def test_a_missing_run_is_one_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]) -> None:
    name, *rest = command
    code, _, err = run(capsys, name, str(tmp_path / "none"), *rest)
    assert code == 5
    assert err.startswith("error: there is nothing at")


LINE = StepMetrics(
    step=5, loss=2.5, lr=1e-3, grad_norm=1.0, tokens=10, tokens_per_second=12_345, step_seconds=2.0, workers=2
)


def test_a_step_in_words_tells_loss_speed_workers_and_time_left() -> None:
    pace = Pace(total_steps=35)
    pace.take(LINE)
    assert step_words(LINE, pace) == "step 5/35  lr 1.00e-03  loss 2.5000  12.3k tokens/s  2 workers  1m 00s left"


def test_the_time_left_forgets_a_slow_first_step_and_follows_a_resize() -> None:
    pace = Pace(total_steps=1000)
    for seconds in (30.0, 1.0, 1.0):
        pace.take(replace(LINE, step_seconds=seconds))
    assert pace.left_seconds(0) == 1000
    for _ in range(100):
        pace.take(replace(LINE, step_seconds=2.0))
    assert pace.left_seconds(0) == pytest.approx(2000, rel=0.01)


def test_plain_lines_are_few_but_hold_the_ends_and_every_event() -> None:
    out, now = io.StringIO(), [0.0]
    lines = PlainLines(100, out=out, every_seconds=5, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.5
        lines.show(replace(LINE, step=step))
        if step == 50:
            lines.show(Resized(time="2026-03-01T10:20:30.000Z", step=50, workers=1))
    said = out.getvalue().splitlines()
    assert said[0].startswith("step 1/100")
    assert said[-1].startswith("step 100/100")
    assert 10 <= len(said) <= 13
    assert "10:20:30  resized from ? to 1 worker at step 50" in said


def test_a_pipe_gets_plain_lines_and_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from raylm.cli import progress

    with progress.watching(10) as display:
        assert isinstance(display, PlainLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.watching(10) as display:
        assert isinstance(display, progress.Bar)
        display.show(LINE)
        display.show(WorkerLost(time="2026-03-01T10:20:30Z", step=5))


def test_the_next_command_can_be_typed_as_it_stands() -> None:
    assert (
        command_line("train", "my job.yaml", ["model.config={a: 1}"])
        == "raylm train 'my job.yaml' --set 'model.config={a: 1}'"
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (1.24e6, "1.24M"), (999_900, "1.00M"), (6.7e9, "6.70B")],
)
def test_counts(number: float, words: str) -> None:
    assert count(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8s"), (42, "42s"), (59.7, "1m 00s"), (200, "3m 20s"), (18_120, "5h 02m"), (187_200, "2d 04h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes() -> None:
    assert [size(n) for n in (812, 1536, 14_000_000_000)] == ["812 B", "1.5 KiB", "13.0 GiB"]


def test_the_quickstart_job_is_the_one_in_jobs_with_a_worker_to_a_node() -> None:
    from raylm.cli.quickstart import quickstart_job
    from raylm.config.load import load_job

    job = quickstart_job("runs", 50)
    written = load_job(
        JOBS / "quickstart.yaml", ["train.steps=50", "workers.resources={worker_slot: 1}", "workers.gpu=false"]
    )
    assert job == written
    assert isinstance(job, Job)
