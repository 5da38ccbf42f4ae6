"""The run folder's names have one owner, and its log's records one type each."""

import ast
import math
from pathlib import Path

import pytest

from raylm.errors import ConfigError
from raylm.prep.readers.python_docs import parsed
from raylm.run.events import EVENTS, CheckpointCommitted, OtherEvent, PreemptionNotice, WorkerLost, parse_event
from raylm.run.folder import RunFolder
from raylm.run.identity import Identity
from raylm.run.metrics import StepMetrics
from raylm.storage import StoragePath
from raylm.train.launch.preflight import refuse_other_run

PACKAGE = Path(__file__).parent.parent / "raylm"
FILES = ("run.yaml", "metrics.jsonl", "events.jsonl", "audit.jsonl", "driver.json")
FOLDERS = ("tensorboard", "checkpoints")


def spelled(path: Path) -> set[str]:
    """The names of the run folder that a module's code spells, docstrings and sentences for people aside."""
    tree = parsed(path.read_text())
    joined = {
        node.right.value
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
    }
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }
    named = {text for text in texts if text.endswith(tuple(f"/{name}" for name in FILES + FOLDERS)) or text in FILES}
    return named | (joined & set(FOLDERS))


def test_no_other_module_spells_a_name_of_the_run_folder() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}: {text!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() != "run/folder.py"
        for text in spelled(path)
    ]
    assert wrong == []


def test_the_run_folder_around_a_checkpoint_is_found_where_it_stands_in_one() -> None:
    run = RunFolder(StoragePath("memory://a/run"))
    assert RunFolder.around(run.checkpoints / "step-000000001") == run
    assert RunFolder.around(StoragePath("memory://elsewhere/step-000000001")) is None


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_survives_its_line(kind: str) -> None:
    event = EVENTS[kind](step=7, workers=2, time="2026-03-01T00:00:00.000Z")
    assert event.name == kind
    line = event.to_line()
    assert parse_event(line) == event
    assert line["event"] == kind
    assert event.describe()


def test_fields_and_kinds_of_a_newer_version_are_kept() -> None:
    line = {"event": "checkpoint_committed", "time": "t", "step": 3, "workers": 2, "seconds": 0.5, "mirrored": True}
    event = parse_event(line)
    assert isinstance(event, CheckpointCommitted)
    assert event.more == {"mirrored": True}
    assert event.to_line() == line
    other = {"event": "teleported", "time": "t", "step": 3, "to": "moon"}
    found = parse_event(other)
    assert isinstance(found, OtherEvent)
    assert (found.name, found.to_line()) == ("teleported", other)
    assert "teleported" in found.describe()
    step = StepMetrics.parse({"step": 3, "loss": "nan", "fancy": 1})
    assert math.isnan(step.loss)
    assert step.more == {"fancy": 1}


def test_an_event_says_itself_in_words() -> None:
    assert PreemptionNotice(step=4, ranks=[1], grace_seconds=30.0).describe() == (
        "notice at step 4: a node will be reclaimed, 30s left; its workers leave"
    )
    assert WorkerLost(step=4, ranks=[1, 2], last_committed=3).describe() == (
        "lost rank 1, 2 at step 4; last checkpoint: step 3"
    )


def test_a_field_that_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="step is 'x'"):
        parse_event({"event": "finished", "step": "x"})
    with pytest.raises(ValueError, match="names no event"):
        parse_event({"step": 1})


def test_a_run_of_another_version_is_one_error(tmp_path: Path) -> None:
    run = RunFolder(StoragePath(str(tmp_path)))
    assert run.read_job() is None
    run.settings.write_text("optim: {clip: 1.0}\n")
    with pytest.raises(ConfigError, match=r"another version of raylm: .*unknown key 'optim\.clip'") as caught:
        run.read_job()
    assert "start the run again under another name" in str(caught.value.hint)


def test_steps_of_a_run_that_does_not_say_which_it_is_are_left_alone(tmp_path: Path) -> None:
    run = RunFolder(StoragePath(str(tmp_path)))
    now = Identity(data="a", order={}, model={}, optimizer={})
    refuse_other_run(run, now, allow_changed_data=False)
    run.metrics.write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"there is no identity\.json"):
        refuse_other_run(run, now, allow_changed_data=False)
    run.identity.write_bytes(now.to_json())
    refuse_other_run(run, now, allow_changed_data=False)
