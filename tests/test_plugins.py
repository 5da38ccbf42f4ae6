"""Plugins: the user's modules and files are imported wherever a job runs, or one error says why not."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from raylm.config.job import Job
from raylm.config.load import load_job, parse_job, resolved_yaml
from raylm.errors import ConfigError
from raylm.plugins import copy_names
from raylm.registry import Registry
from raylm.run.folder import RunFolder
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.train.sources import publish

TABLE: Registry[int] = Registry("operator", builtin={"sample": "nowhere:ENTRY"})
HEADER = "from test_plugins import TABLE\n"


@pytest.fixture(autouse=True)
def no_entries() -> None:
    for name in set(TABLE.names()) - {"sample"}:
        TABLE._forget(TABLE._owners[name])


def plugin(folder: Path, text: str, name: str = "steps.py") -> Path:
    path = folder / name
    path.write_text(HEADER + text)
    return path


def refusal(folder: Path, *plugins: str) -> ConfigError:
    job = folder / "job.yaml"
    job.write_text(f"name: a\nplugins: [{', '.join(plugins)}]\n")
    with pytest.raises(ConfigError) as caught:
        load_job(job)
    return caught.value


def test_a_file_is_found_from_the_job_file_and_imported_once(tmp_path: Path) -> None:
    plugin(tmp_path, "TABLE.register('own', 1)\n")
    (tmp_path / "job.yaml").write_text("plugins: [steps.py, ./steps.py]\n")
    job = load_job(tmp_path / "job.yaml")
    assert job.plugins == [str(tmp_path / "steps.py")] * 2
    assert TABLE.get("own") == 1
    assert load_job(tmp_path / "job.yaml") == job == parse_job(resolved_yaml(job), origin="run.yaml")


def test_a_module_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, "TABLE.register('of_a_module', 2)\n", "installed_steps.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert Job.model_validate({"plugins": ["installed_steps"]}).plugins == ["installed_steps"]
    assert TABLE.get("of_a_module") == 2


def test_a_file_that_was_edited_replaces_what_it_registered(tmp_path: Path) -> None:
    path = plugin(tmp_path, "TABLE.register('own', 1)\nTABLE.register('gone', 1)\n")
    Job.model_validate({"plugins": [str(path)]})
    plugin(tmp_path, "TABLE.register('own', 2)\n")
    Job.model_validate({"plugins": [str(path)]})
    assert TABLE.get("own") == 2
    assert "gone" not in TABLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n1 / 0\n", "raised ZeroDivisionError in line 3: division by zero"),
        ("def f(:\n", "raised SyntaxError in line 2: invalid syntax"),
        ("import no_such_module_anywhere\n", "cannot be imported: No module named 'no_such_module_anywhere'"),
        ("TABLE.register('own', 1)\nTABLE.register('own', 2)\n", "operator 'own' is registered twice, first by"),
        ("TABLE.register('sample', 1)\n", "raylm has a built-in operator of that name"),
    ],
)
def test_a_plugin_that_fails_is_one_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = plugin(tmp_path, text)
    for _ in range(2):  # the second time as the first: nothing is left half registered
        error = refusal(tmp_path, "steps.py")
        assert error.message.startswith(f"{tmp_path / 'job.yaml'}:2: plugin {path}")
        assert message in error.message
        assert error.hint
    assert TABLE.names() == ["sample"]


@pytest.mark.parametrize("call", ["sys.exit(0)", "sys.exit('bye')", "raise SystemExit"])
def test_a_plugin_that_ends_the_program_is_an_error(tmp_path: Path, call: str) -> None:
    path = plugin(tmp_path, f"import sys\nTABLE.register('own', 1)\n{call}\n")
    error = refusal(tmp_path, "steps.py")
    assert error.message == f"{tmp_path / 'job.yaml'}:2: plugin {path} ended the program (SystemExit) in line 4"
    assert 'if __name__ == "__main__":' in str(error.hint)
    assert TABLE.names() == ["sample"]


def test_ctrl_c_while_a_plugin_is_imported_is_no_error_of_the_plugin(tmp_path: Path) -> None:
    path = plugin(tmp_path, "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Job.model_validate({"plugins": [str(path)]})


def test_the_hint_for_a_missing_module_fits_who_misses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, "import no_such_module_anywhere\n")
    plugin(tmp_path, "import no_such_module_anywhere\n", "installed_but_broken.py")
    monkeypatch.syspath_prepend(tmp_path)
    hint = "install no_such_module_anywhere wherever the job runs; a plugin of one file imports no files beside it"
    assert [refusal(tmp_path, name).hint for name in ("steps.py", "installed_but_broken")] == [hint, hint]


def test_two_plugins_may_not_take_one_name(tmp_path: Path) -> None:
    first = plugin(tmp_path, "TABLE.register('own', 1)\n")
    plugin(tmp_path, "TABLE.register('own', 2)\n", "others.py")
    error = refusal(tmp_path, "steps.py", "others.py")
    assert f"operator 'own' is registered twice, first by {first}" in error.message


def test_a_module_or_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "no_such_steps")
    assert error.message == f"{tmp_path / 'job.yaml'}:2: plugin no_such_steps cannot be imported: No module named " + (
        "'no_such_steps'"
    )
    assert "plugin of one file is named by its path" in str(error.hint)
    assert "steps.py cannot be read: No such file" in refusal(tmp_path, "steps.py").message


def test_a_file_travels_with_the_job_to_a_process_that_cannot_read_it(tmp_path: Path) -> None:
    path = plugin(tmp_path, "TABLE.register('own', 7)\n")
    job = Job.model_validate({"name": "travels", "plugins": [str(path)]})
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    path.unlink()
    code = (
        "import pickle, sys; job = pickle.load(open(sys.argv[1], 'rb')); from test_plugins import TABLE\n"
        "assert type(job).model_validate(job.model_dump()) == job\n"  # checked again, without the file
        "assert pickle.loads(pickle.dumps(job)) == job\n"
        "print(job.name, TABLE.get('own'))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job.pickle")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.strip() == "travels 7", done.stderr


def published(folder: Path, *plugins: str) -> RunFolder:
    """The run folder of a job with these plugins, as a start leaves it."""
    if not (folder / "data").exists():
        make_data(folder / "data", rows=8, held_out=2)
    settings = job_settings(folder / "runs", folder / "data", name="own", steps=1, plugins=list(plugins))
    job = load_job(write_job(folder, settings))
    run = RunFolder.of(job)
    publish(job, run)
    return run


def test_a_moved_run_folder_brings_its_plugins(tmp_path: Path) -> None:
    path = plugin(tmp_path, "TABLE.register('own', 7)\n")
    run = published(tmp_path, "steps.py", "test_plugins")
    assert [file.name for file in run.plugins.list()] == ["steps.py"]
    path.unlink()
    moved = Path(run.url).rename(tmp_path / "moved")
    code = (
        "import sys; from raylm.storage import StoragePath; from test_plugins import TABLE, RunFolder, load_job\n"
        "run = RunFolder(StoragePath(sys.argv[1]))\n"
        "job = run.read_job() if sys.argv[2] == 'read' else load_job(run.settings.url)\n"
        "print(job.plugins[0], TABLE.get('own'))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    for way in ("read", "load"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(moved), way],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert done.stdout.strip() == f"{path} 7", done.stderr


def test_a_folder_beside_a_job_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    plugin(tmp_path / "plugins", "TABLE.register('own', 1)\n", "not_read_yet.py")
    assert "not_read_yet.py cannot be read: No such file" in refusal(tmp_path, "not_read_yet.py").message


def test_a_plugin_that_changed_is_said_when_its_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = plugin(tmp_path, "TABLE.register('own', 1)\n")
    run = published(tmp_path, "steps.py")
    plugin(tmp_path, "TABLE.register('own', 2)\n")
    published(tmp_path, "steps.py")
    assert caplog.messages == []  # no step was taken with the text before
    run.metrics.write_text("")
    plugin(tmp_path, "TABLE.register('own', 3)\n")
    published(tmp_path, "steps.py")
    published(tmp_path, "steps.py")
    assert caplog.messages == [
        f"plugin {path} has changed since {run.url} was last trained; it goes on with the new text"
    ]
    assert (run.plugins / "steps.py").read_text() == path.read_text()


def test_files_of_one_name_are_kept_apart() -> None:
    assert copy_names(["/a/steps.py", "module", "/b/steps.py", "/a/steps.py", "/c/steps-2.py"]) == {
        "/a/steps.py": "steps.py",
        "/b/steps.py": "steps-2.py",
        "/c/steps-2.py": "steps-2-2.py",
    }
