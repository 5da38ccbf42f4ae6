"""What README and the job files say is so: commands parse, files exist, jobs load and show their plan."""

import re
import shlex
import subprocess
from pathlib import Path
from unittest.mock import MagicMock

import click
import pytest

from raylm.cli.main import COMMANDS, cli, main
from raylm.config.load import load_job
from raylm.model import budget

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def blocks() -> list[str]:
    """The fenced blocks of README."""
    return re.findall(r"^```\w*\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands(*first: str) -> list[list[str]]:
    """Every command line in README that begins with these words."""
    starts = " ".join(first) + " "
    lines = [line for block in blocks() for line in block.splitlines() if line.startswith(starts)]
    return [shlex.split(line, comments=True) for line in lines]


def parse(words: list[str]) -> None:
    """Have click parse a command line without running it; raises on an unknown option or a missing argument."""
    context = cli.make_context("raylm", words[1:])
    name, command, rest = cli.resolve_command(context, words[1:])
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", commands("raylm"), ids=shlex.join)
def test_every_raylm_command_in_readme_parses(words: list[str]) -> None:
    parse(words)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(shlex.split("raylm train jobs/quickstart.yaml --fast"))


def test_readme_shows_every_command() -> None:
    shown = {words[1] for words in commands("raylm")} | {"quickstart"}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("words", commands("raylm", "plan") + commands("raylm", "prepare"), ids=shlex.join)
def test_readme_commands_that_start_nothing_run(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rest = words[1:] if words[1] == "plan" else [*words[1:], "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main(rest)
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", commands("make"), ids=shlex.join)
def test_every_make_target_in_readme_exists(words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("words", commands("raylm", "cluster"), ids=shlex.join)
def test_every_cluster_command_in_readme_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.deploy.local.LocalCluster", MagicMock())
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0


@pytest.mark.parametrize("words", [w for w in commands("python") if w[1].startswith("benchmarks/")], ids=shlex.join)
def test_every_benchmark_in_readme_exists(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()
    assert words[2:] == ["--quick"]
    assert Path(words[1]).stem in (ROOT / "Makefile").read_text()


def test_every_path_in_readme_exists() -> None:
    named = set(re.findall(r"`((?:raylm|jobs|cluster|tests|benchmarks|docs|\.ci)/[\w./-]*)`", README))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_tree_in_readme_is_the_tree() -> None:
    tree = next(block for block in blocks() if block.startswith("raylm/\n"))
    named = set(re.findall(r"(?<![\w./<-])(\w+(?:\.py|/))", tree))
    there = {path.name for path in (ROOT / "raylm").rglob("*.py")} | {"local.py", "results/"}
    folders = [*ROOT.iterdir(), *(ROOT / "raylm").rglob("*")]
    there |= {f"{path.name}/" for path in folders if path.is_dir()}
    assert named - there == set()
    rooms = {f"{path.name}/" for path in (ROOT / "raylm").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "raylm").glob("*.py")} - {"__init__.py"}
    assert rooms - named == set()


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_every_job_file_loads_and_can_be_planned(job: Path) -> None:
    loaded = load_job(job)
    assert loaded.name != "run"
    assert budget.plan(loaded).memories
    assert job.name in README


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_every_job_file_shows_what_it_would_do(
    job: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    # No store answers there, and the answer must come at once.
    nowhere = ["object_store.endpoint=http://127.0.0.1:9", "object_store.retries=0", "object_store.timeout_seconds=2"]
    flags = [word for setting in nowhere for word in ("--set", setting)]
    if command == "prepare" and "glob:" in job.read_text():
        (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
        flags += ["--set", f"prepare.sources.0.glob={tmp_path}/text.jsonl"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with pytest.raises(SystemExit) as ended:
        main([command, str(job), *flags, "--dry-run"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "workers" in said.out
    assert "tokens" in said.out
    assert "output" in said.out


@pytest.mark.parametrize("name", ["sweep", "long"])
def test_marks_in_readme_are_marks(name: str) -> None:
    assert f"-m {name}" in README
    assert f'"{name}: ' in (ROOT / "pyproject.toml").read_text()


def test_constraints_pin_what_the_project_declares() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {"torch", "ray", "deepspeed", "transformers", "pyarrow", "fsspec", "pydantic", "click"} <= pinned
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


def test_the_documentation_lists_every_operator_as_it_describes_itself() -> None:
    from raylm.prep.operators import operator_rows

    pages = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]
    written = {line for page in pages for line in page.splitlines()}
    assert [name for name, summary in operator_rows() if f"| `{name}` | {summary} |" not in written] == []
