"""What the documentation and the job files say is so: commands parse, files exist, examples run, jobs load."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import pytest
import yaml

from raylm.cli.main import COMMANDS, cli, main
from raylm.config.load import load_job
from raylm.model import budget
from raylm.testing import documents

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (".", "docs", "cluster", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.md"))
}
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def blocks() -> list[str]:
    """The fenced blocks of all pages that name no language."""
    return [
        block
        for page in PAGES.values()
        for fence, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
        if not fence
    ]


def commands(*first: str) -> list[list[str]]:
    """Every command line on a page that begins with these words, each once."""
    starts = " ".join(first) + " "
    lines = [line for block in blocks() for line in block.splitlines() if line.startswith(starts)]
    return [shlex.split(line, comments=True) for line in dict.fromkeys(lines)]


def parse(words: list[str]) -> None:
    """Have click parse a command line without running it; raises on an unknown option or a missing argument."""
    context = cli.make_context("raylm", words[1:])
    name, command, rest = cli.resolve_command(context, words[1:])
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", commands("raylm"), ids=shlex.join)
def test_every_raylm_command_on_a_page_parses(words: list[str]) -> None:
    parse(words)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(shlex.split("raylm train jobs/quickstart.yaml --fast"))


def test_the_pages_show_every_command() -> None:
    shown = {words[1] for words in commands("raylm")} | {"quickstart"}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("words", commands("raylm", "plan") + commands("raylm", "prepare"), ids=shlex.join)
def test_commands_on_pages_that_start_nothing_run(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rest = words[1:] if words[1] == "plan" else [*words[1:], "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main(rest)
    err = capsys.readouterr().err
    assert ended.value.code == 0 or ("prepare" in words and f"no file matches {ROOT}/data/" in err), err


@pytest.mark.parametrize("words", commands("make"), ids=shlex.join)
def test_every_make_target_on_a_page_exists(words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("words", commands("raylm", "cluster"), ids=shlex.join)
def test_every_cluster_command_on_a_page_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.deploy.local.LocalCluster", MagicMock())
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0


@pytest.mark.parametrize("words", [w for w in commands("python") if w[1].startswith("benchmarks/")], ids=shlex.join)
def test_every_benchmark_on_a_page_exists(words: list[str]) -> None:
    assert (ROOT / words[1]).is_file()
    assert words[2:] == ["--quick"]
    assert Path(words[1]).stem in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_link_on_a_page_exists(page: str) -> None:
    named = set(re.findall(r"`((?:raylm|jobs|cluster|tests|benchmarks|docs|\.ci)/[\w./-]*)`", PAGES[page]))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    links = set(re.findall(r"\]\(([\w./-]+)\)", PAGES[page]))
    assert [link for link in sorted(links) if not ((ROOT / page).parent / link).exists()] == []


def test_the_tree_of_packages_is_the_tree() -> None:
    tree = next(block for block in blocks() if block.startswith("raylm/\n"))
    named = set(re.findall(r"(?<![\w./<-])(\w+(?:\.py|/))", tree))
    there = {path.name for path in (ROOT / "raylm").rglob("*.py")}
    there |= {f"{path.name}/" for path in [ROOT / "raylm", *(ROOT / "raylm").rglob("*")] if path.is_dir()}
    assert named - there == set()
    rooms = {f"{path.name}/" for path in (ROOT / "raylm").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "raylm").glob("*.py")} - {"__init__.py"}
    assert rooms - named == set()


def test_the_floors_on_the_page_are_those_that_are_kept() -> None:
    from test_house import FLOORS

    there = {path.stem for path in (ROOT / "raylm").iterdir()}
    floors = [" | ".join(room for room in rooms if room in there) for rooms in reversed(FLOORS)]
    assert "\n".join(floors) + "\n" in blocks()


def test_what_follows_from_the_code_is_current() -> None:
    for page in documents.pages():
        assert page.read_text() == documents.replaced(page.read_text()), (
            f"run python -m raylm.testing.documents: {page}"
        )
    assert len(documents.known_errors()) > 150


def test_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 130


def python_example(name: str) -> str:
    """The file of that name in docs/extend.md."""
    found = re.search(rf"^```python {re.escape(name)}\n(.*?)^```$", PAGES["docs/extend.md"], re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def yaml_example(plugin: str) -> dict[str, Any]:
    """The job in docs/extend.md that names the plugin."""
    found = re.findall(r"^```yaml\n(.*?)^```$", PAGES["docs/extend.md"], re.DOTALL | re.MULTILINE)
    job: dict[str, Any] = yaml.safe_load(next(block for block in found if plugin in block))
    return job


def test_the_step_and_the_source_of_the_page_prepare_data(tmp_path: Path) -> None:
    for name in ("shout.py", "recipes.py"):
        (tmp_path / name).write_text(python_example(name))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/a.txt").write_text("Soup\nboil the water\n---\nTea\nboil it\n---\nCake\nmix and bake it all\n")
    prepare = yaml_example("recipes.py")["prepare"] | yaml_example("shout.py")["prepare"]
    prepare |= {"tokenizer": {"vocab_size": 300}, "sequence_length": 16, "held_out": 0.0}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"plugins": ["shout.py", "recipes.py"], "prepare": prepare}))
    code = (
        "from raylm import load_job, prepare\nfrom raylm.prep.tasks import here\n"
        "report = prepare(load_job('job.yaml'), session=here)\nprint(report.manifest.steps[0], report.documents)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'too_short': 1" in done.stdout
    assert done.stdout.rstrip().endswith("2")


def test_the_objective_of_the_page_trains(tmp_path: Path) -> None:
    from raylm.testing.datasets import job_settings, make_data, write_job
    from raylm.testing.elastic import run_alone

    (tmp_path / "zloss.py").write_text(python_example("zloss.py"))
    data = make_data(tmp_path / "data", rows=96)
    plain = job_settings(tmp_path / "runs", data, name="plain", steps=3)
    penalized = {**plain, "name": "penalized", **yaml_example("zloss.py")}
    before, after = (run_alone(write_job(tmp_path, settings)) for settings in (plain, penalized))
    assert after.losses[0] > before.losses[0]
    z = after.metrics[0]["z"]
    assert after.losses[0] == pytest.approx(before.losses[0] + 0.001 * z, rel=1e-6)


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
        flags += ["--set", f"prepare.sources=[{{kind: jsonl, glob: {tmp_path}/text.jsonl}}]"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with pytest.raises(SystemExit) as ended:
        main([command, str(job), *flags, "--dry-run"])
    said = capsys.readouterr()
    if command == "prepare" and "sources:" not in job.read_text():  # it trains on data that other jobs prepare
        assert (ended.value.code, "the job names no texts to prepare" in said.err) == (2, True)
        return
    assert ended.value.code == 0 or (command == "train" and "no prepared data in" in said.err), said.err
    assert "workers" in said.out
    assert "tokens" in said.out
    assert "output" in said.out


@pytest.mark.parametrize("name", ["sweep", "long"])
def test_marks_on_the_page_are_marks(name: str) -> None:
    assert f"| `{name}` |" in PAGES["CONTRIBUTING.md"]
    assert f'"{name}: ' in (ROOT / "pyproject.toml").read_text()


def test_constraints_pin_what_the_project_declares() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {"torch", "ray", "deepspeed", "transformers", "pyarrow", "fsspec", "pydantic", "click"} <= pinned
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


def test_the_documentation_lists_every_operator_as_it_describes_itself() -> None:
    from raylm.prep.operators import operator_rows

    written = {line for page in PAGES.values() for line in page.splitlines()}
    from raylm.prep.readers import source_rows

    assert [name for name, summary in source_rows() if f"| `{name}` | {summary} |" not in written] == []
    assert [name for name, summary in operator_rows() if f"| `{name}` | {summary} |" not in written] == []


def test_what_set_up_imports_is_there() -> None:
    code = re.search(r"-c '(from raylm[^']*)'", (ROOT / "Makefile").read_text())
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1]], check=True, capture_output=True)
