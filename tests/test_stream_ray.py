"""Ray Data delivers the batches that threads deliver, beside other ranks, and never holds anybody up."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_stream
from test_stream import BATCH, same, spoil, write_dataset

from raylm.config.data import DataSettings
from raylm.errors import DataError
from raylm.records import Batch
from raylm.stream import ray_data
from raylm.stream.lanes import Block
from raylm.stream.loader import Dataset, Stream, StreamSettings, order_of
from raylm.stream.reading import Reader

DATA = DataSettings(chunk_rows=8, window_chunks=3)
SETTINGS = StreamSettings(BATCH, DATA, seed=5, document_attention=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _temp_dir=str(tmp_path_factory.mktemp("ray")),
    )
    # The test modules are on no worker's path.
    for module in (test_stream, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    return [write_dataset(folder / "a", [50, 13, 70], number=0), write_dataset(folder / "b", [9], number=1)]


@pytest.fixture(autouse=True)
def _small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "BLOCKS_A_TASK", 16)
    monkeypatch.setattr(ray_data, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(ray_data, "START_SECONDS", 0.0)


def stream(datasets: Sequence[Dataset], reader: Any, rank: int = 0, world_size: int = 1, start: int = 0) -> Stream:
    return Stream(datasets, SETTINGS, rank=rank, world_size=world_size, start_step=start, reader=reader)


def from_ray(batches: Stream) -> int:
    """Blocks that came through Ray Data so far."""
    delivering = batches._reader
    assert isinstance(delivering, ray_data.RayDataReader)
    return delivering.from_ray


def consume(batches: Stream, until: Callable[[], bool], *, more: int, pause: float = 0.02) -> list[Batch]:
    """Batches until something is true, and `more` after that."""
    taken: list[Batch] = []
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline, "it never came"
        taken.append(next(batches))
        time.sleep(pause)
    return taken + list(itertools.islice(batches, more))


def check_same(found: list[Batch], expected: Iterator[Batch]) -> None:
    for one, other in zip(found, expected, strict=False):
        assert one.step == other.step
        assert all(same(a, b) for a, b in zip(one.micro_batches, other.micro_batches, strict=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_ray_data_and_threads_give_the_same_batches(cluster: Any, datasets: list[Dataset], mixed: bool) -> None:
    datasets = datasets if mixed else datasets[:1]
    with stream(datasets, "ray", start=3) as batches, stream(datasets, "threads", start=3) as expected:
        found = consume(batches, lambda: from_ray(batches) > 0, more=0)
        found += consume(batches, lambda: from_ray(batches) > 200, more=20, pause=0)
        check_same(found, expected)


def train_part(datasets: list[Dataset], rank: int, world_size: int) -> list[Batch]:
    """What a Ray Train worker does, in an actor that holds its CPU."""
    with stream(datasets, "ray", rank, world_size) as batches:
        return consume(batches, lambda: from_ray(batches) > 10, more=20)


def test_ranks_in_actors_that_reserve_cpus_stream_side_by_side(cluster: Any, datasets: list[Dataset]) -> None:
    part = cluster.remote(num_cpus=0.7)(train_part)
    pending = [part.remote(datasets, rank, 2) for rank in range(2)]
    shares = cluster.get(pending, timeout=150)
    with stream(datasets, "threads") as whole:
        for batch, *parts in zip(whole, *shares, strict=False):
            dealt = sorted((micro for part in parts for micro in part.micro_batches), key=lambda micro: micro.lane)
            assert all(same(a, b) for a, b in zip(dealt, batch.micro_batches, strict=True))


def test_threads_serve_while_no_cpu_is_free(cluster: Any, datasets: list[Dataset]) -> None:
    class Holder:
        def ready(self) -> bool:
            return True

    holder = cluster.remote(num_cpus=2)(Holder).remote()
    assert cluster.get(holder.ready.remote(), timeout=60)
    with stream(datasets, "ray") as batches, stream(datasets, "threads") as expected:
        began = time.monotonic()
        found = consume(batches, lambda: time.monotonic() > began + 2, more=0)
        assert from_ray(batches) == 0
        cluster.kill(holder)
        found += consume(batches, lambda: from_ray(batches) > 0, more=10)
        check_same(found, expected)


def test_threads_take_over_where_ray_data_stalls(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()
    monkeypatch.setattr(ray_data, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(ray_data, "PATIENCE_SECONDS", 0.1)
    fake_executions(monkeypatch, datasets, then=lambda: never.wait(60))
    with caplog.at_level(logging.WARNING), stream(datasets, "ray") as batches, stream(datasets, "threads") as expected:
        check_same(consume(batches, lambda: from_ray(batches) > 0, more=100), expected)
        assert from_ray(batches) == 7
    never.set()
    assert [record.message for record in caplog.records if "gave nothing for 0.5 s" in record.message]


def test_threads_take_over_where_ray_data_fails(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("the node went away")

    fake_executions(monkeypatch, datasets, then=fail)
    with caplog.at_level(logging.WARNING), stream(datasets, "ray") as batches, stream(datasets, "threads") as expected:
        check_same(consume(batches, lambda: from_ray(batches) > 0, more=100), expected)
        assert from_ray(batches) == 7
    assert len([record for record in caplog.records if "RuntimeError: the node went away" in record.message]) == 1


def test_a_fault_of_our_own_in_the_reading_thread_is_raised(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack_badly() -> None:
        np.frombuffer(ray_data.Limits, dtype=np.int32)  # type: ignore[call-overload]

    fake_executions(monkeypatch, datasets, then=unpack_badly)
    monkeypatch.setattr(ray_data, "_PACKAGE", Path(__file__).parent)
    with stream(datasets, "ray") as batches, pytest.raises(TypeError):
        consume(batches, lambda: False, more=0)


def test_threads_help_out_where_ray_data_is_late(
    datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_data, "PATIENCE_SECONDS", 0.05)
    fake_executions(monkeypatch, datasets, then=lambda: time.sleep(1))
    with caplog.at_level(logging.WARNING), stream(datasets, "ray") as batches, stream(datasets, "threads") as expected:
        check_same(consume(batches, lambda: from_ray(batches) > 30, more=10), expected)
    assert not caplog.records


def fake_executions(monkeypatch: pytest.MonkeyPatch, datasets: list[Dataset], then: Callable[[], object]) -> None:
    """Executions that together give seven blocks and then do something else."""
    given = itertools.count()

    def execute(self: Any, blocks: Sequence[Block]) -> Iterator[Any]:
        reader = Reader(datasets)
        for block in blocks:
            if next(given) == 7:
                then()
            yield reader.read(block.dataset, block.row_ranges, block.order)

    monkeypatch.setattr(ray_data.RayDataReader, "_await_cpu", lambda self: True)
    monkeypatch.setattr(ray_data.RayDataReader, "_execute", execute)


def test_a_bad_shard_in_a_read_task_is_one_error(cluster: Any, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [1600, 8])
    order = order_of([dataset], SETTINGS)
    late = next(
        number
        for number, block in enumerate(order.needs(range(4), 0))
        if any(row_range.shard == 1 for row_range in block.row_ranges)
    )
    assert late > 20, "another seed, so that the bad shard is not needed at once"
    with stream([dataset], "ray") as batches:
        consume(batches, lambda: from_ray(batches) > 0, more=0)
        spoil(tmp_path / "shard-1.parquet", "missing")
        with pytest.raises(DataError, match=r"shard-1\.parquet is missing") as found:
            list(itertools.islice(batches, 2000))
        assert found.value.hint
        with pytest.raises(DataError, match=r"shard-1\.parquet is missing"):
            next(batches)


def test_no_execution_stays_open_while_the_consumer_takes_its_time(cluster: Any, datasets: list[Dataset]) -> None:
    """Its scheduler would take the interpreter's lock from training all the while."""
    with stream(datasets, "ray") as batches, stream(datasets, "threads") as expected:
        found = consume(batches, lambda: from_ray(batches) > 0, more=5)
        quiet = 0
        deadline = time.monotonic() + 60
        while quiet < 10:
            assert time.monotonic() < deadline, streaming_threads()
            time.sleep(0.1)
            quiet = quiet + 1 if streaming_threads() == ["raylm-ray-data"] else 0
        so_far = from_ray(batches)
        found += consume(batches, lambda: from_ray(batches) > so_far + 50, more=5, pause=0)
        check_same(found, expected)


def test_close_ends_the_execution(cluster: Any, datasets: list[Dataset]) -> None:
    batches = stream(datasets, "ray")
    consume(batches, lambda: from_ray(batches) > 0, more=5)
    batches.close()
    batches.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and streaming_threads():
        time.sleep(0.1)
    assert not streaming_threads()


def streaming_threads() -> list[str]:
    names = ("raylm-ray-data", "StreamingExecutor")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]
