"""The log of a run: a step stands once, memory and bytes are bounded, damage is reported; on disk and object stores."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from unittest.mock import patch

import pytest

import raylm.run.lines as lines_module
import raylm.run.tensorboard as tensorboard_module
from raylm.errors import DataError, StorageError
from raylm.run.events import Evaluated, Started
from raylm.run.folder import RunFolder
from raylm.run.lines import read_lines
from raylm.run.log import RunLog, read_audit, read_events, read_metrics
from raylm.run.metrics import AuditLine, StepMetrics
from raylm.storage import StoragePath

STORES = ["local", "memory"]


def run_folder(tmp_path: Path, store: str) -> RunFolder:
    url = str(tmp_path / "run") if store == "local" else f"memory://runlog/{uuid.uuid4().hex}"
    return RunFolder(StoragePath(url))


def steps_of(run: RunFolder) -> list[int]:
    return [one.step for one in read_metrics(run)]


@pytest.mark.parametrize("store", STORES)
def test_a_replayed_step_stands_once_with_its_last_value(tmp_path: Path, store: str) -> None:
    run = run_folder(tmp_path, store)
    log = RunLog(run, audit=True)
    for step in range(1, 6):
        log.metric(StepMetrics(step=step, loss=1.0))
        log.audit(AuditLine(step=step, rows=[(0, step, 0)], attempt=1))
    log.flush()
    log.rewind(3)
    log.metric(StepMetrics(step=4, loss=2.0))
    log.audit(AuditLine(step=4, rows=[(0, 4, 0)], attempt=2))
    log.flush()
    # The lines themselves, before any reader may have put them right.
    lines = read_lines(run.metrics)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [(line["step"], line["attempt"]) for line in read_lines(run.audit)] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert [list(map(list, one.rows)) for one in read_audit(run)] == [[[0, step, 0]] for step in range(1, 5)]


@pytest.mark.parametrize("store", STORES)
def test_a_step_recorded_again_without_a_rewind_stands_once(tmp_path: Path, store: str) -> None:
    run = run_folder(tmp_path, store)
    log = RunLog(run)
    for step in (1, 2, 3, 2):
        log.metric(StepMetrics(step=step, loss=float(step)))
    log.flush()
    assert [line["step"] for line in read_lines(run.metrics)] == [1, 2]


@pytest.mark.parametrize("store", STORES)
def test_a_later_log_goes_on_and_rewinds_what_the_one_before_wrote(tmp_path: Path, store: str) -> None:
    run = run_folder(tmp_path, store)
    with patch.object(lines_module, "PART_BYTES", 2000):
        for attempt in range(1, 5):
            log = RunLog(run, audit=True)
            assert log.last_step == (attempt - 1) * 60
            log.rewind(max(0, log.last_step - 40))
            first = log.last_step + 1
            for step in range(first, attempt * 60 + 1):
                log.metric(StepMetrics(step=step, loss=float(attempt)))
                log.audit(AuditLine(step=step, rows=[(0, step, 0)], attempt=attempt))
                if step % 7 == 0:
                    log.flush()
            log.close()
        assert [line["step"] for line in read_lines(run.metrics)] == list(range(1, 241))
        assert [line["step"] for line in read_lines(run.audit)] == list(range(1, 241))
        # The last attempt began at 180 - 40, the one before at 120 - 40.
        losses = {one.step: one.loss for one in read_metrics(run)}
        assert (losses[80], losses[81], losses[140], losses[141]) == (2.0, 3.0, 3.0, 4.0)
        log = RunLog(run, audit=True)
        log.rewind(0)
        log.flush()
        assert steps_of(run) == []


def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    run = RunFolder(StoragePath(str(tmp_path)))
    log = RunLog(run)
    log.metric(StepMetrics(step=1, loss=1.0))
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')
    assert steps_of(run) == [1]
    again = RunLog(run)
    again.metric(StepMetrics(step=2, loss=0.5))
    assert steps_of(run) == [1, 2]


@pytest.mark.parametrize("store", STORES)
def test_damage_that_is_no_kill_costs_its_line_and_is_told_with_its_place(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(tmp_path, store)
    log = RunLog(run)
    for step in (1, 2, 3):
        log.metric(StepMetrics(step=step, loss=1.0))
    log.close()
    file = run.metrics if store == "local" else run.metrics.list()[0]
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:20], third]) + "\n")
    assert steps_of(run) == [1, 3]
    assert ".jsonl:2 is damaged and left out: not a JSON line" in caplog.text
    file.write_text("\n".join([first, second.replace('"step": 2', '"step": "two"'), third]) + "\n")
    with pytest.raises(DataError, match="line 2 is not what raylm writes: step is 'two'"):
        read_metrics(run)


def test_what_a_full_disk_refuses_is_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(tmp_path, "local")
    full, file = Path("/dev/full"), run.metrics.local_path()
    assert file is not None
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    log = RunLog(run)
    log.metric(StepMetrics(step=1, loss=1.0))
    first = file.read_bytes()
    file.unlink()
    file.symlink_to(full)
    for step in (2, 3):
        log.metric(StepMetrics(step=step, loss=1.0))
    with pytest.raises(StorageError, match="No space left on device; 2 of its lines wait in memory"):
        log.flush()
    assert caplog.text.count("its lines are kept and written later") == 1
    file.unlink()
    file.write_bytes(first)
    log.metric(StepMetrics(step=4, loss=1.0))
    assert steps_of(run) == [1, 2, 3, 4]


def test_a_chart_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_folder(tmp_path, "local")
    folder = run.tensorboard.local_path()
    assert folder is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    log = RunLog(run)
    for step in (1, 2):
        log.metric(StepMetrics(step=step, loss=1.0))
        log.flush()
    assert steps_of(run) == [1, 2]
    assert caplog.text.count("TensorBoard's files cannot be written") == 1
    folder.unlink()
    log.metric(StepMetrics(step=3, loss=1.0))
    log.close()
    assert list(folder.iterdir())


def test_numbers_that_are_not_finite_are_json_all_the_same(tmp_path: Path) -> None:
    def refuse(name: str) -> float:
        raise ValueError(name)

    run = run_folder(tmp_path, "local")
    log = RunLog(run)
    log.metric(StepMetrics(step=1, loss=math.nan, grad_norm=math.inf))
    log.close()
    line = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert (line["loss"], line["grad_norm"]) == ("NaN", "Infinity")
    (found,) = read_metrics(run)
    assert math.isnan(found.loss)
    assert found.grad_norm == math.inf


def test_tensorboard_shows_a_step_that_is_trained_again_once_and_the_held_out_loss(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_folder(tmp_path, "local")
    first = RunLog(run)
    for step in (1, 2, 3, 4):
        first.metric(StepMetrics(step=step, loss=float(step)))
    first.close()
    second = RunLog(run)  # as after a resume from a checkpoint of step 2
    second.rewind(2)
    for step in (3, 4, 5):
        second.metric(StepMetrics(step=step, loss=10.0 * step))
    second.event(Evaluated(step=5, held_out_loss=2.5, by_source={"web": 2.0, "books": 3.0}))
    second.close()
    shown = EventAccumulator(run.tensorboard.url)
    shown.Reload()
    assert [(one.step, one.value) for one in shown.Scalars("loss")] == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]
    assert [one.value for one in shown.Scalars("held_out_loss")] == [2.5]
    assert [one.value for one in shown.Scalars("held_out_loss/books")] == [3.0]
    assert read_events(run)[0].by_source == {"web": 2.0, "books": 3.0}  # type: ignore[attr-defined]


def test_a_writer_that_was_cut_off_and_comes_late_takes_no_line_of_its_successor() -> None:
    run = run_folder(Path(), "memory")
    late = RunLog(run)
    for step in range(1, 6):
        late.metric(StepMetrics(step=step, loss=1.0))
    late.flush()
    successor = RunLog(run)
    successor.rewind(3)
    for step in range(4, 8):
        successor.metric(StepMetrics(step=step, loss=2.0))
    successor.flush()
    late.metric(StepMetrics(step=6, loss=1.0))
    late.flush()
    assert {one.step: one.loss for one in read_metrics(run)} == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0, 7: 2.0}


def test_on_an_object_store_a_flush_makes_the_lines_readable() -> None:
    run = RunFolder(StoragePath("memory://runlog/run"))
    log = RunLog(run)
    log.metric(StepMetrics(step=1, loss=1.0))
    log.event(Started(step=0))
    assert not run.metrics.exists()
    log.close()
    assert steps_of(run) == [1]
    assert [event.name for event in read_events(run)] == ["started"]
    assert run.tensorboard.list()


def test_a_log_that_another_driver_took_over_writes_nothing(tmp_path: Path) -> None:
    run = RunFolder(StoragePath(str(tmp_path)))
    log = RunLog(run)
    log.metric(StepMetrics(step=1, loss=1.0))
    log.mute()
    log.metric(StepMetrics(step=2, loss=1.0))
    log.event(Started(step=0))
    log.rewind(0)
    assert steps_of(run) == [1]
    assert read_events(run) == []


@pytest.mark.parametrize("audited", [False, True])
def test_bytes_written_to_an_object_store_grow_with_the_steps_and_no_faster(audited: bool) -> None:
    written = {steps: written_bytes(steps, audited=audited) for steps in (2000, 8000)}
    # Four times the steps: exponent 1 is four times the bytes; rewriting whole files would be sixteen times.
    assert written[8000] < 4.6 * written[2000]


def written_bytes(steps: int, *, audited: bool) -> int:
    """Bytes that a log of so many steps sends to an object store when it is flushed after every ten."""
    sizes: list[int] = []
    original = StoragePath.write_bytes

    def counted(path: StoragePath, data: bytes | memoryview) -> None:
        sizes.append(len(data))
        original(path, data)

    run = run_folder(Path(), "memory")
    rows = [(lane, 1000 + lane, 0) for lane in range(8)]
    with (
        patch.object(StoragePath, "write_bytes", counted),
        patch.object(lines_module, "PART_BYTES", 32_000),
        patch.object(tensorboard_module, "PART_BYTES", 32_000),
    ):
        log = RunLog(run, audit=audited)
        for step in range(1, steps + 1):
            log.metric(StepMetrics(step=step, loss=1.0, lr=1e-3, grad_norm=1.0, tokens=100, tokens_per_second=5.0))
            log.audit(AuditLine(step=step, attempt=1, rows=rows))
            if step % 10 == 0:
                log.flush()
        log.close()
    assert steps_of(run) == list(range(1, steps + 1))
    # A flush writes again at most one part of each file, however long the run is.
    assert max(sizes) < 40_000
    return sum(sizes)


def test_a_log_holds_no_more_in_memory_after_many_steps_than_after_few() -> None:
    run = run_folder(Path(), "memory")
    with patch.object(lines_module, "PENDING_BYTES", 200_000), patch.object(lines_module, "PART_BYTES", 50_000):
        log = RunLog(run, audit=True, flush_seconds=1e9)
        for step in range(1, 3001):
            log.metric(StepMetrics(step=step))
            log.audit(AuditLine(step=step, rows=[(lane, step, 0) for lane in range(32)]))
            log.flush_if_due()
            assert sum(len(text) for _, text in log._audit._finished) <= 250_000  # type: ignore[attr-defined]
        log.close()
    assert len(read_audit(run)) == 3000
