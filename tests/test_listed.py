"""Files that come, or change, after a preparation was begun are told, whether it goes on or is finished."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.load import load_job
from raylm.errors import DataError, StorageError
from raylm.prep.prepare import PrepareProgress, PrepareReport, prepare
from raylm.prep.tasks import here
from raylm.storage import local


class Stopped(Exception):
    """In place of a kill."""


def corpus(folder: Path, *names: str, sentences: int = 40) -> None:
    for name in names:
        texts = [f"{name} has a sentence of number {number} about the bridge." for number in range(sentences)]
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def job(folder: Path, **settings: Any) -> Job:
    given = {
        "sources": [{"name": "web", "kind": "jsonl", "glob": str(folder / "*.jsonl")}],
        "output": str(folder / "data"),
        "tokenizer": {"vocab_size": 300, "sample_bytes": 10_000},
        "unit_bytes": 2000,
        "held_out": 0,
        **settings,
    }
    return Job.model_validate({"name": "x", "prepare": given})


def run(wanted: Job, progress: Callable[[PrepareProgress], None] | None = None) -> PrepareReport:
    return prepare(wanted, session=here, progress=progress)


def stop_after_a_unit(wanted: Job) -> None:
    def stop(progress: PrepareProgress) -> None:
        if progress.done and progress.tokens:
            raise Stopped

    with pytest.raises(Stopped):
        run(wanted, stop)


def test_nothing_is_told_where_the_files_are_the_same(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl", "b.jsonl")
    assert run(job(tmp_path)).warnings == ()
    again = run(job(tmp_path))
    assert (again.already_done, again.warnings) == (True, ())
    assert json.loads((tmp_path / "data/sources.json").read_text()) == {
        "web": {f"../{name}": (tmp_path / name).stat().st_size for name in ("a.jsonl", "b.jsonl")}
    }


def test_a_file_that_comes_after_the_end_is_told(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl")
    documents = run(job(tmp_path)).documents
    corpus(tmp_path, "b.jsonl")
    again = run(job(tmp_path))
    assert again.documents == documents
    assert again.warnings == (
        "source 'web': 1 of its files were added since this preparation began, and are not taken in (../b.jsonl): "
        f"choose another prepare.output, or remove {tmp_path}/data, to prepare it anew",
    )


def test_a_file_that_changes_after_the_end_is_told(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl")
    run(job(tmp_path))
    size = (tmp_path / "a.jsonl").stat().st_size
    corpus(tmp_path, "a.jsonl", sentences=41)
    (told,) = run(job(tmp_path)).warnings
    assert (
        f"1 of its files have changed since this preparation began, and are not taken in (../a.jsonl, {size:,} " in told
    )


def test_raw_files_may_go_when_the_dataset_stands(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl")
    run(job(tmp_path))
    (tmp_path / "a.jsonl").unlink()
    assert run(job(tmp_path)).warnings == ()


def test_sources_and_dataset_may_move_together(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    corpus(tmp_path / "old", "a.jsonl")
    settings = job(tmp_path).model_dump(mode="json")["prepare"] | {"output": "data"}
    settings["sources"] = [{"name": "web", "kind": "jsonl", "glob": "*.jsonl"}]
    (tmp_path / "old/job.yaml").write_text(json.dumps({"name": "x", "prepare": settings}))
    run(load_job(str(tmp_path / "old/job.yaml"), []))
    (tmp_path / "old").rename(tmp_path / "new")
    again = run(load_job(str(tmp_path / "new/job.yaml"), []))
    assert (again.already_done, again.warnings) == (True, ())


def test_a_file_that_comes_after_a_kill_is_told_at_once_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus(tmp_path, "a.jsonl", "b.jsonl")
    stop_after_a_unit(job(tmp_path))
    corpus(tmp_path, "c.jsonl")
    with caplog.at_level(logging.WARNING, "raylm"):
        report = run(job(tmp_path))
    assert report.documents == 80
    assert len(report.warnings) == 1
    assert "1 of its files were added since this preparation began" in report.warnings[0]
    assert report.warnings[0] in caplog.text


def test_a_file_that_changes_after_a_kill_is_refused_where_it_was_not_read(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl", "b.jsonl")
    stop_after_a_unit(job(tmp_path))
    corpus(tmp_path, "b.jsonl", sentences=41)
    with pytest.raises(DataError, match=r"b\.jsonl changed while it was being prepared: \d+ bytes when listed"):
        run(job(tmp_path))


def test_a_file_that_changes_after_it_was_read_is_told(tmp_path: Path) -> None:
    corpus(tmp_path, "a.jsonl", "b.jsonl")
    wanted = job(tmp_path, unit_bytes=4000)  # a file a unit
    stop_after_a_unit(wanted)
    corpus(tmp_path, "a.jsonl", sentences=41)
    (told,) = run(wanted).warnings
    assert "1 of its files have changed" in told


@pytest.mark.parametrize("steps", [[], ["exact_duplicates"], ["near_duplicates"]], ids=["none", "exact", "near"])
@pytest.mark.parametrize("room", [0, 500, 3000, 20_000, 60_000])
def test_a_disk_that_becomes_full_is_told_in_words_and_done_work_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[str], room: int
) -> None:
    corpus(tmp_path, *(f"{letter}.jsonl" for letter in "abcdefgh"), sentences=200)
    wanted = job(tmp_path, steps=steps, unit_bytes=8000)
    with full_after(monkeypatch, room):
        with pytest.raises(StorageError, match=r"cannot write .*: no space left") as caught:
            run(wanted)
        assert "free some space" in str(caught.value.hint)
    elsewhere = job(tmp_path, steps=steps, unit_bytes=8000, output=str(tmp_path / "elsewhere"))
    assert run(wanted).manifest.fingerprint == run(elsewhere).manifest.fingerprint


@contextmanager
def full_after(monkeypatch: pytest.MonkeyPatch, room: int) -> Iterator[None]:
    """A disk on which so many bytes can be written in all."""
    left = room

    class Disk:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def write(self, data: Any) -> int:
            nonlocal left
            left -= memoryview(data).nbytes
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._stream.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    whole = local.LocalFiles.open_write

    @contextmanager
    def open_write(self: Any, url: str) -> Iterator[Any]:
        with whole(self, url) as stream:
            yield Disk(stream) if "write-check" not in url else stream

    with monkeypatch.context() as patched:
        patched.setattr(local.LocalFiles, "open_write", open_write)
        yield
