"""Batches are what the order says, at any world size and from any step, whoever delivers them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylm.config.data import DataSettings
from raylm.config.optim import BatchSettings
from raylm.errors import DataError
from raylm.records import Batch, MicroBatch
from raylm.shards import (
    Column,
    Counts,
    DatasetManifest,
    RowFormat,
    ShardWriter,
    WantedColumn,
    write_manifest,
)
from raylm.storage import StoragePath
from raylm.stream import loader, reading
from raylm.stream.held_out import held_out
from raylm.stream.loader import Dataset, Stream, StreamSettings, order_of
from raylm.testing import servers
from raylm.testing.servers import Faults, S3Server, proxy

SEQUENCE = 16
VOCABULARY = 5000
FORMAT = RowFormat(SEQUENCE, VOCABULARY, "t", eos_id=0, group_rows=8)
BATCH = BatchSettings(sequences=8, micro_batch=2)
DATA = DataSettings(reader="threads", chunk_rows=8, window_chunks=3)
SETTINGS = StreamSettings(BATCH, DATA, seed=5)


def row_tokens(dataset: int, row: int) -> np.ndarray:
    """A row that names itself in each token; every seventh is shorter than the sequence."""
    length = SEQUENCE - 5 if row % 7 == 3 else SEQUENCE
    return (dataset * 1000 + row + np.arange(length) * 3) % VOCABULARY


def row_starts(row: int) -> list[int]:
    return [0, 4, 9][: 1 + row % 3]


def row_columns(dataset: int, row: int) -> dict[str, np.ndarray]:
    """What the optional columns of a row hold."""
    random = np.random.default_rng([dataset, row])
    length = len(row_tokens(dataset, row))
    return {"loss_mask": random.integers(0, 2, length), "pair": random.integers(0, 99, 2)}


MASK, PAIR = Column("loss_mask", "uint8"), Column("pair", "int32", per="row", shape=(2,))
WANTED = (WantedColumn("loss_mask", fill=1), WantedColumn("pair", per="row", shape=(2,)))


def write_dataset(
    folder: Path,
    shards: Sequence[int],
    *,
    number: int = 0,
    held_out_rows: int = 11,
    columns: tuple[Column, ...] = (),
) -> Dataset:
    """A folder of shards whose rows are known."""
    format_ = replace(FORMAT, columns=columns)
    place, row = StoragePath(str(folder)), 0
    written = []
    for shard, rows in enumerate((*shards, held_out_rows)):
        with ShardWriter(place / f"shard-{shard}.parquet", format_) as writer:
            for _ in range(rows):
                values = row_columns(number, row)
                more = {column.name: values[column.name] for column in columns}
                writer.add(row_tokens(number, row), row_starts(row), more)
                row += 1
        written.append(writer.close())
    manifest = DatasetManifest.of(
        format_,
        train=written[:-1],
        held_out=written[-1:] if held_out_rows else [],
        counts=Counts(sum(shards) * SEQUENCE),
    )
    write_manifest(place, manifest)
    return Dataset(place, manifest, weight=number + 1.0)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    return [write_dataset(folder / "a", [50, 13, 70], number=0), write_dataset(folder / "b", [9], number=1)]


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Test data is tiny: read it block by block, as large data is.
    monkeypatch.setattr(reading, "KEPT_BYTES", 0)


def stream(
    datasets: Sequence[Dataset], rank: int = 0, world_size: int = 1, start: int = 0, *, attention: bool = False
) -> Stream:
    return Stream(
        datasets,
        replace(SETTINGS, document_attention=attention),
        rank=rank,
        world_size=world_size,
        start_step=start,
    )


def take(batches: Stream, steps: int) -> list[Batch]:
    with batches:
        taken = list(itertools.islice(batches, steps))
    for thread in readers():
        thread.join(5)
    return taken


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("raylm-read")]


def same(one: MicroBatch, other: MicroBatch) -> bool:
    return (
        one.lane == other.lane
        and np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.epochs, other.epochs)
        and all(np.array_equal(a, b) for a, b in zip(one.document_starts, other.document_starts, strict=True))
        and one.columns.keys() == other.columns.keys()
        and all(np.array_equal(values, other.columns[name]) for name, values in one.columns.items())
    )


def check_rows(batch: MicroBatch, first_of_b: int, *, attention: bool = False) -> None:
    for place, number in enumerate(batch.ids.tolist()):
        dataset, row = (0, number) if number < first_of_b else (1, number - first_of_b)
        expected = row_tokens(dataset, row)
        assert np.array_equal(batch.tokens[place, : len(expected)], expected)
        labels = np.full(SEQUENCE, -100)
        labels[: len(expected)] = expected
        if attention:
            labels[row_starts(row)] = -100
        assert np.array_equal(batch.labels[place], labels)
        assert batch.document_starts[place].tolist() == row_starts(row)


@pytest.mark.parametrize("attention", [False, True])
def test_batches_hold_the_rows_that_the_order_names(datasets: list[Dataset], attention: bool) -> None:
    order = order_of(datasets, SETTINGS)
    for step, batch in enumerate(take(stream(datasets, attention=attention), 40)):
        assert batch.step == step
        assert [micro.lane for micro in batch.micro_batches] == [0, 1, 2, 3]
        for micro in batch.micro_batches:
            ids, epochs = order.micro_batch(micro.lane, step)
            assert np.array_equal(micro.ids, ids)
            assert np.array_equal(micro.epochs, epochs)
            check_rows(micro, 133, attention=attention)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("start", [0, 5, 31])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_out_the_same_batches(datasets: list[Dataset], world_size: int, start: int, mixed: bool) -> None:
    datasets = datasets if mixed else datasets[:1]
    whole = take(stream(datasets), start + 20)[start:]
    shares = [take(stream(datasets, rank, world_size, start), 20) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            assert share[step].step == batch.step
            assert [micro.lane for micro in share[step].micro_batches] == list(range(rank, 4, world_size))
            assert all(same(micro, batch.micro_batches[micro.lane]) for micro in share[step].micro_batches)


def test_a_walk_over_world_sizes_loses_and_repeats_nothing(datasets: list[Dataset]) -> None:
    rows = datasets[0].manifest.train_rows
    seen: list[int] = []
    step = 0
    for world_size, steps in ((4, 3), (1, 5), (3, 6), (2, 3)):
        for rank in range(world_size):
            for batch in take(stream(datasets[:1], rank, world_size, step), steps):
                seen += [
                    int(number)
                    for micro in batch.micro_batches
                    for number, epoch in zip(micro.ids, micro.epochs, strict=True)
                    if epoch == 0
                ]
        step += steps
    assert step * BATCH.sequences > rows
    assert sorted(seen) == list(range(rows))


def wait_for_closed_readers() -> None:
    """A closed stream's threads still finish the blocks they are reading: what is counted begins after them."""
    for thread in threading.enumerate():
        if thread.name.startswith("raylm-read"):
            thread.join(5)


def test_each_block_is_read_once(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int, int]] = []
    lock = threading.Lock()
    inner = reading.read_rows

    def counted(folder: StoragePath, shard: object, start: int, stop: int, *more: object) -> object:
        with lock:
            read.append((shard.path, start, stop))  # type: ignore[attr-defined]
        return inner(folder, shard, start, stop, *more)  # type: ignore[arg-type]

    wait_for_closed_readers()
    monkeypatch.setattr(reading, "read_rows", counted)
    monkeypatch.setattr(loader, "AHEAD_BYTES", 0)
    take(stream(datasets[:1]), 133 // 8)
    rows = sum(stop - start for _, start, stop in read)
    # An epoch, and what was read ahead of it: a window.
    assert 133 <= rows <= 133 + 2 * 24
    assert len({(path, start) for path, start, _ in read}) >= 133 // 8


def test_reading_ahead_is_bounded(datasets: list[Dataset]) -> None:
    with stream(datasets[:1]) as batches:
        next(batches)
        threads = batches._reader
        assert isinstance(threads, loader.Threads)
        held = threads._coming_rows
        assert held <= 4 * 24 + 24


def test_a_small_source_is_read_once_and_kept(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = take(stream(datasets), 60)
    monkeypatch.setattr(reading, "KEPT_BYTES", 2**20)
    calls = itertools.count()
    inner = reading.read_rows
    wait_for_closed_readers()
    monkeypatch.setattr(reading, "read_rows", lambda *args: (next(calls), inner(*args))[1])
    found = take(stream(datasets), 60)
    assert next(calls) == 4
    assert all(
        same(a, b)
        for x, y in zip(expected, found, strict=True)
        for a, b in zip(x.micro_batches, y.micro_batches, strict=True)
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("sequences", [1, 7, 16, None, 1000])
def test_held_out_is_the_same_at_any_world_size(
    datasets: list[Dataset], world_size: int, sequences: int | None
) -> None:
    def ask(rank: int, size: int) -> list[tuple[MicroBatch, bool, int]]:
        return list(held_out(datasets, SETTINGS, rank=rank, world_size=size, sequences=sequences))

    whole = ask(0, 1)
    assert all(counts for _, counts, _ in whole)
    ids = [int(number) for micro, _, _ in whole for number in micro.ids]
    assert len(ids) == len(set(ids)) == min(sequences or 22, 22)
    first_of_second = datasets[0].manifest.held_out_rows
    assert all((number >= first_of_second) == bool(source) for micro, _, source in whole for number in micro.ids)
    shares = [ask(rank, world_size) for rank in range(world_size)]
    dealt = [micro for share in shares for micro, counts, _ in share if counts]
    for expected, found in zip(
        sorted((micro for micro, _, _ in whole), key=lambda micro: micro.ids[0]),
        sorted(dealt, key=lambda micro: micro.ids[0]),
        strict=True,
    ):
        assert same(expected, found)
    assert len({len(share) for share in shares}) == 1, "every rank takes part as often"


def test_no_held_out_rows_is_said_plainly(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [9], held_out_rows=0)
    with pytest.raises(DataError, match="no held-out sequences in") as found:
        list(held_out([dataset], SETTINGS, sequences=4))
    assert "prepare.held_out" in (found.value.hint or "")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign", "vocabulary"])
def test_a_bad_shard_is_one_error_that_names_it(tmp_path: Path, damage: str) -> None:
    dataset = write_dataset(tmp_path, [30, 20])
    bad = tmp_path / "shard-1.parquet"
    spoil(bad, damage)
    with stream([dataset]) as batches:
        with pytest.raises(DataError, match=r"shard-1\.parquet") as found:
            for _ in itertools.islice(batches, 20):
                pass
        assert found.value.hint
        # Asked again, it says the same and does not go on with a hole.
        with pytest.raises(DataError, match=r"shard-1\.parquet"):
            next(batches)


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        path.write_bytes(os.urandom(len(content)))
    else:
        with ShardWriter(StoragePath(str(path)), FORMAT) as writer:
            for row in range(20):
                writer.add(row_tokens(0, 30 + row) * 0 + VOCABULARY, row_starts(30 + row))


@pytest.mark.parametrize("failing", [False, True])
def test_object_storage_gives_the_batches_of_local_disk(
    datasets: list[Dataset], seaweed: S3Server, failing: bool
) -> None:
    bucket = seaweed.bucket()
    for path in Path(datasets[0].folder.url).iterdir():
        (bucket / path.name).write_bytes(path.read_bytes())
    faults = Faults(servers.failing(0.1) if failing else lambda method, path: "pass")
    with proxy(seaweed, faults) as server:
        remote = Dataset(StoragePath(bucket.url, server.connection()), datasets[0].manifest)
        found, expected = take(stream([remote]), 30), take(stream(datasets[:1]), 30)
    for one, other in zip(found, expected, strict=True):
        assert all(same(a, b) for a, b in zip(one.micro_batches, other.micro_batches, strict=True))
    assert not failing or len(faults.counts) > 1


def test_a_shard_that_is_gone_from_object_storage_is_one_error(datasets: list[Dataset], seaweed: S3Server) -> None:
    bucket = seaweed.bucket()
    for name in ("shard-0.parquet", "shard-2.parquet"):
        (bucket / name).write_bytes(Path(datasets[0].folder.url, name).read_bytes())
    gone = pytest.raises(DataError, match=r"shard s3://.*/shard-1\.parquet is missing")
    with stream([Dataset(bucket, datasets[0].manifest)]) as batches, gone:
        list(itertools.islice(batches, 20))


def test_sources_must_agree(datasets: list[Dataset], tmp_path: Path) -> None:
    other = write_dataset(tmp_path, [9])
    foreign = Dataset(other.folder, DatasetManifest(**{**other.manifest.__dict__, "tokenizer": "u"}))
    with pytest.raises(DataError, match=r"datasets differ in tokenizer: t in .*, u in"):
        stream([datasets[0], foreign])


def test_close_ends_the_threads(datasets: list[Dataset]) -> None:
    batches = stream(datasets)
    next(batches)
    batches.close()
    batches.close()
    for thread in readers():
        thread.join(5)
    assert not readers()


@pytest.fixture(scope="module")
def with_columns(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Two datasets, of which the second has no mask."""
    folder = tmp_path_factory.mktemp("columns")
    return [
        write_dataset(folder / "a", [50, 13, 70], columns=(PAIR, MASK)),
        write_dataset(folder / "b", [40], number=1, columns=(PAIR,)),
    ]


@pytest.mark.parametrize("mixed", [False, True])
def test_batches_carry_the_columns_of_their_rows(with_columns: list[Dataset], mixed: bool) -> None:
    datasets = with_columns if mixed else with_columns[:1]
    settings = replace(SETTINGS, columns=WANTED)
    plain = take(stream(datasets), 30)
    whole = take(Stream(datasets, settings), 30)
    shares = [take(Stream(datasets, settings, rank=rank, world_size=3, start_step=10), 20) for rank in range(3)]
    for step, (without, batch) in enumerate(zip(plain, whole, strict=True)):
        for bare, micro in zip(without.micro_batches, batch.micro_batches, strict=True):
            assert same(bare, replace(micro, columns={}))
            check_columns(micro, 133)
            if step >= 10:
                share = shares[micro.lane % 3][step - 10]
                assert any(same(micro, other) for other in share.micro_batches)
    for micro, _, _ in held_out(datasets, settings, sequences=9):
        assert set(micro.columns) == {"loss_mask", "pair"}


def check_columns(micro: MicroBatch, first_of_b: int) -> None:
    assert micro.columns["loss_mask"].dtype == np.uint8
    for place, number in enumerate(micro.ids.tolist()):
        dataset, row = (0, number) if number < first_of_b else (1, number - first_of_b)
        due = row_columns(dataset, row)
        assert np.array_equal(micro.columns["pair"][place], due["pair"])
        mask = micro.columns["loss_mask"][place]
        if dataset == 1:
            assert mask.all(), "a dataset without the column counts as one of ones"
        else:
            assert np.array_equal(mask[: len(due["loss_mask"])], due["loss_mask"])


def test_an_optional_column_that_no_dataset_has_is_left_out(datasets: list[Dataset]) -> None:
    with Stream(datasets, replace(SETTINGS, columns=WANTED[:1])) as batches:
        assert all(micro.columns == {} for micro in next(batches).micro_batches)


def test_a_column_that_a_dataset_lacks_or_holds_otherwise_is_one_error(with_columns: list[Dataset]) -> None:
    with pytest.raises(DataError, match=r"the objective needs the column 'loss_mask', which .*b lacks") as found:
        Stream(with_columns, replace(SETTINGS, columns=(WantedColumn("loss_mask"),)))
    assert "its columns: pair" in found.value.message
    with pytest.raises(
        DataError, match=r"column pair holds values of shape \(2,\) per row, where \(\) per token is due"
    ):
        Stream(with_columns, replace(SETTINGS, columns=(WantedColumn("pair"),)))


def test_held_out_rows_are_read_in_blocks(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    inner = reading.read_rows
    wait_for_closed_readers()
    monkeypatch.setattr(reading, "read_rows", lambda *args: (next(calls), inner(*args))[1])
    assert len(list(held_out(datasets[:1], SETTINGS))) == 6
    assert next(calls) == 2  # eight rows in the first global batch, three in the second
