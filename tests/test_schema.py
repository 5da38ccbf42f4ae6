"""What says what a job file may hold: the JSON Schema, docs/jobs.md, `raylm explain` and shell completion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raylm.cli.main import main
from raylm.config.job import Job
from raylm.config.keys import schema_keys
from raylm.config.load import resolved_yaml
from raylm.config.reference import job_schema, markdown

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
PLUGIN = """\
from pydantic import Field

import raylm
from raylm.config.base import Settings
from raylm.prep.operators.base import per_document
from raylm.prep.operators.kind import OperatorKind


class Shout(Settings):
    \"\"\"Write everything in capitals.\"\"\"

    marks: int = Field(1, ge=0, description="Exclamation marks at the end.")


def shout(settings, context):
    return per_document(lambda document, record: [document])


raylm.register_operator(OperatorKind("shout_of_schema", Shout, "Capitals.", make=shout))
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


def test_the_schema_of_the_editors_is_that_of_the_settings() -> None:
    # make docs
    assert json.loads((ROOT / "docs" / "job.schema.json").read_text()) == job_schema()


def test_the_reference_of_job_files_is_that_of_the_settings() -> None:
    # make docs
    assert (ROOT / "docs" / "jobs.md").read_text() == markdown()


def test_the_reference_has_every_key() -> None:
    text = markdown()
    assert [key for key in schema_keys() if f"| `{key.rpartition('.')[2]}` |" not in text] == []


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_files_name_the_schema_and_follow_it(path: Path) -> None:
    text = path.read_text()
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = path.parent / first.partition("$schema=")[2]
    jsonschema.validate(yaml.safe_load(text), json.loads(named.read_text()))


def test_a_resolved_job_follows_the_schema() -> None:
    jsonschema.validate(yaml.safe_load(resolved_yaml(Job())), job_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"optm": {}},
        {"optim": {"lrr": 1}},
        {"optim": {"lr": 0}},
        {"optim": {"schedule": "cosin"}},
        {"train": {"steps": "many"}},
        {"prepare": {"steps": ["qualty"]}},
        {"prepare": {"steps": [{"quality": {"rule": []}}]}},
        {"prepare": {"steps": [{"quality": {}, "sample": {"rate": 0.5}}]}},
        {"prepare": {"sources": [{"kind": "josnl", "glob": "x"}]}},
    ],
)
def test_the_schema_refuses_what_loading_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, job_schema())
    with pytest.raises(ValueError, match="validation error"):
        Job.model_validate(wrong)


def test_explain_says_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "optim.schedule") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["optim.schedule", "  Course of the learning rate after warm-up."]
    assert "takes      one of cosine, linear, constant, wsd" in out
    assert "default    cosine" in out
    assert run("explain", "data.mixture.0.weight") == run("explain", "data.mixture.weight") == 0
    one, other = capsys.readouterr().out.split("data.mixture.weight")[1:]
    assert one == other
    assert "number (> 0)" in one


def test_explain_lists_what_is_under_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain") == run("explain", "prepare.steps.quality") == run("explain", "prepare.steps") == 0
    out = capsys.readouterr().out
    for words in ("optim  ", "AdamW and its learning rate.", "gopher_repetition", "without_words", "near_duplicates"):
        assert words in out


OWN_KINDS = "kinds of your own are shown with --job JOB or --plugin FILE"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.clip", "did you mean optim.max_grad_norm?"),
        ("optim.lrr", "did you mean optim.lr?"),
        ("learning_rate", "did you mean optim.lr?"),
        ("objective.z_loss.factor", OWN_KINDS),
        ("prepare.steps.shout", OWN_KINDS),
        ("prepare.sources.mine.path", OWN_KINDS),
        ("prepare.steps.0.normalise", f"did you mean prepare.steps.normalize? {OWN_KINDS}"),
        ("prepare.sources.globb", f"did you mean prepare.sources.glob? {OWN_KINDS}"),
        ("prepare.steps.quality.ruls", "did you mean prepare.steps.quality.rules?"),
        ("zzzzz", "raylm explain lists the sections"),
    ],
)
def test_explain_refuses_an_unknown_key_with_the_nearest(
    key: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", key) == 2
    assert capsys.readouterr().err == f"error: no key of a job file is called {key}\nhint:  {hint}\n"


@pytest.mark.parametrize("how", ["--plugin", "--job"])
def test_what_a_plugin_registers_is_in_schema_reference_and_explain(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shout.py").write_text(PLUGIN)
    (tmp_path / "job.yaml").write_text("plugins: [shout.py]\noptim: {lr: wrong}\n")
    given = tmp_path / ("shout.py" if how == "--plugin" else "job.yaml")
    key = "prepare.steps.shout_of_schema.marks"
    for words in (["schema"], ["schema", "--markdown"], ["explain", key]):
        done = subprocess.run(
            [sys.executable, "-m", "raylm.cli.main", *words, how, str(given)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "shout_of_schema" in done.stdout
        assert "Exclamation marks at the end." in done.stdout
    assert run("explain", key) == 2  # in this process nobody registered it
    assert "no key of a job file is called" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_runs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    assert "_RAYLM_COMPLETE" in capsys.readouterr().out


def test_keys_are_completed() -> None:
    code = "from raylm.cli.main import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"_RAYLM_COMPLETE": "bash_complete", "COMP_WORDS": "raylm explain optim.ma", "COMP_CWORD": "2"}
        | {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")},
    )
    assert done.stdout.strip() == "plain,optim.max_grad_norm"
