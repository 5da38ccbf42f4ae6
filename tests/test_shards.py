"""Rows come back as they were written, and a shard or manifest that is not what it should be is named."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylm.errors import DataError
from raylm.shards import (
    Column,
    Counts,
    DatasetManifest,
    RowFormat,
    Shard,
    ShardWriter,
    check_shards,
    read_manifest,
    read_rows,
    token_dtype,
    write_manifest,
)
from raylm.storage import StoragePath
from raylm.testing.servers import S3Server

SEQUENCE = 32
VOCABULARY = 1000
FORMAT = RowFormat(SEQUENCE, VOCABULARY, "t", eos_id=0)


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(1, VOCABULARY, SEQUENCE).astype(np.uint16)


def starts(number: int) -> list[int]:
    return [0] if number % 3 == 0 else [0, 1 + number % 30]


def write(folder: StoragePath, rows: int, path: str = "train/a.parquet", short: int | None = None) -> Shard:
    with ShardWriter(folder / path, FORMAT, name=path) as writer:
        for number in range(rows):
            cut = short if number == rows - 1 else None
            writer.add(row(number)[:cut], starts(number) if cut is None else [0])
    return writer.close()


def manifest_of(*shards: Shard) -> DatasetManifest:
    return DatasetManifest.of(FORMAT, train=shards, held_out=(), counts=Counts())


@pytest.fixture(params=["local", "memory", "moto"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    if request.param == "moto":
        server: S3Server = request.getfixturevalue("moto")
        return server.bucket() / "data"
    return StoragePath(str(tmp_path / "data") if request.param == "local" else f"memory://{tmp_path.name}")


def test_any_range_of_rows_is_read_back(folder: StoragePath) -> None:
    total = 64 * 2 + 7
    shard = write(folder, total, short=5)
    manifest = manifest_of(shard)
    assert shard.rows == total
    assert shard.bytes == (folder / shard.path).size()
    for start, stop in ((0, total), (0, 1), (63, 65), (64, 128), (10, 130), (total - 1, total), (9, 9)):
        rows = read_rows(folder, shard, start, stop, manifest)
        assert rows.tokens.shape == (stop - start, SEQUENCE)
        for offset, number in enumerate(range(start, stop)):
            if number < total - 1:
                np.testing.assert_array_equal(rows.tokens[offset], row(number))
                assert rows.document_starts[offset].tolist() == starts(number)
                assert rows.lengths[offset] == SEQUENCE
            else:
                assert rows.tokens[offset].tolist() == [*row(number)[:5].tolist(), *[0] * (SEQUENCE - 5)]
                assert rows.lengths[offset] == 5


def test_threads_read_the_same_shard_at_once(tmp_path: Path) -> None:
    folder = StoragePath(str(tmp_path))
    shard = write(folder, 640)
    manifest = manifest_of(shard)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 600, 50).tolist():
            tokens = read_rows(folder, shard, start, start + 40, manifest).tokens
            if not np.array_equal(tokens, np.stack([row(number) for number in range(start, start + 40)])):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_equal_rows_give_equal_bytes_anywhere(tmp_path: Path) -> None:
    one = write(StoragePath(str(tmp_path / "one")), 100)
    two = write(StoragePath(f"memory://{tmp_path.name}"), 100)
    assert one == two
    assert manifest_of(one).fingerprint == manifest_of(two).fingerprint
    assert manifest_of(one).fingerprint != manifest_of(write(StoragePath(str(tmp_path / "three")), 99)).fingerprint


def test_a_writer_that_fails_leaves_no_shard(folder: StoragePath) -> None:
    with pytest.raises(ZeroDivisionError):
        write_and_fail(folder)
    assert not (folder / "train/a.parquet").exists()


def write_and_fail(folder: StoragePath) -> None:
    with ShardWriter(folder / "train/a.parquet", FORMAT) as writer:
        for number in range(64 * 20):
            writer.add(row(number), [0])
        raise ZeroDivisionError


def test_token_types() -> None:
    assert token_dtype(65536) == "uint16"
    assert token_dtype(65537) == "uint32"


def test_the_manifest_is_read_back(folder: StoragePath) -> None:
    manifest = replace(manifest_of(write(folder, 3)), sources={"a": {"documents": 2}}, settings={"held_out": 0.1})
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    assert manifest.train_rows == 3
    assert manifest.held_out_rows == 0
    check_shards(folder, manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"format": "raylm-sh', r"is not JSON \(20 bytes; truncated\?\)"),
        (b'{"vocab": 1}', "is not a manifest of raylm shards"),
        (b"[]", "is not a manifest of raylm shards"),
        (b'{"format": "raylm-shards", "version": 99}', "has version 99; this raylm reads version 2"),
        (b'{"format": "raylm-shards", "version": 1}', "has version 1; this raylm reads version 2"),
        (b'{"format": "raylm-shards", "version": 2}', "lacks or misspells 'fingerprint'"),
    ],
)
def test_a_bad_manifest_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(StoragePath(str(tmp_path)))
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert caught.value.hint


def test_a_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no prepared data in {tmp_path}") as caught:
        read_manifest(StoragePath(str(tmp_path)))
    assert "raylm prepare" in str(caught.value.hint)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    folder = StoragePath(str(tmp_path))
    write_manifest(folder, manifest_of(write(folder, 3)))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_id": 7}))
    with pytest.raises(DataError, match="was changed after it was written"):
        read_manifest(folder)


def test_a_missing_shard_is_named(folder: StoragePath) -> None:
    shard = write(folder, 3)
    manifest = manifest_of(shard)
    (folder / shard.path).remove()
    for check in (
        lambda: check_shards(folder, manifest),
        lambda: read_rows(folder, shard, 0, 1, manifest),
    ):
        with pytest.raises(DataError, match=f"shard {folder.url}/train/a.parquet is missing") as caught:
            check()
        assert "prepare the data" in str(caught.value.hint)


def test_any_flipped_bit_of_the_data_is_noticed(folder: StoragePath) -> None:
    """Tokens that are still in range would be trained on: pages carry checksums."""
    shard = write(folder, 20)
    manifest = manifest_of(shard)
    place = folder / shard.path
    whole = place.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for byte in range(4, footer, max(1, footer // 25)):
        place.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(DataError, match=r"train/a\.parquet"):
            read_rows(folder, shard, 0, 20, manifest)
    place.write_bytes(whole)
    assert len(read_rows(folder, shard, 0, 20, manifest).tokens) == 20


def test_a_damaged_shard_is_named(folder: StoragePath) -> None:
    shard = write(folder, 300)
    manifest = manifest_of(shard)
    place = folder / shard.path
    whole = place.read_bytes()
    other = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": list(range(50_000))}), other)
    cases = [
        (b"", "it is empty"),
        (whole[:-100], f"it is truncated: {shard.bytes - 100} bytes, the manifest says {shard.bytes}"),
        (whole[: shard.bytes // 2], "it is truncated"),
        (bytes(shard.bytes), "it is no Parquet file"),
        (other.getvalue().to_pybytes(), "not the one the manifest names|not a raylm shard|truncated"),
    ]
    for content, message in cases:
        place.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_rows(folder, shard, 0, 300, manifest)
        assert place.url in str(caught.value)
    place.write_bytes(whole)
    assert len(read_rows(folder, shard, 0, 300, manifest).tokens) == 300


def test_a_shard_of_another_data_set_is_refused(folder: StoragePath) -> None:
    shard = write(folder, 3)
    for change, message in (
        ({"tokenizer": "other"}, "its tokenizer is 't', the manifest says 'other'"),
        ({"sequence_length": 64}, "its sequence_length is 32, the manifest says 64"),
        ({"vocab_size": 2**17}, "its dtype is 'uint16', the manifest says 'uint32'"),
    ):
        with pytest.raises(DataError, match=message):
            read_rows(folder, shard, 0, 1, replace(manifest_of(shard), **change))
    more = replace(shard, rows=4)
    with pytest.raises(DataError, match="it has 3 rows, the manifest says 4"):
        read_rows(folder, more, 0, 4, manifest_of(more))


def test_a_flipped_page_is_not_served(folder: StoragePath) -> None:
    shard = write(folder, 300)
    content = bytearray((folder / shard.path).read_bytes())
    content[4:40] = bytes(36)  # the first page's header
    (folder / shard.path).write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(folder, shard, 0, 10, manifest_of(shard))


WITH_COLUMNS = replace(
    FORMAT,
    columns=(
        Column("loss_mask", "uint8"),
        Column("score", "float32", per="row"),
        Column("features", "float32", per="row", shape=(3, 2)),
        Column("spans", "int32", shape=(2,)),
    ),
)


def values(number: int, length: int = SEQUENCE) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    return {
        "loss_mask": random.integers(0, 2, length),
        "score": np.float32(number / 7),
        "features": random.random((3, 2), dtype=np.float32),
        "spans": random.integers(-5, 5, (length, 2)),
    }


def write_columns(folder: StoragePath, rows: int) -> DatasetManifest:
    with ShardWriter(folder / "a.parquet", WITH_COLUMNS) as writer:
        for number in range(rows - 1):
            writer.add(row(number), starts(number), values(number))
        writer.add(row(rows - 1)[:5], [0], values(rows - 1, 5))
    return DatasetManifest.of(WITH_COLUMNS, train=[writer.close()], held_out=(), counts=Counts())


def test_columns_come_back_as_they_were_written(folder: StoragePath) -> None:
    write_manifest(folder, write_columns(folder, 140))
    manifest = read_manifest(folder)
    assert manifest.columns == WITH_COLUMNS.columns
    for wanted in (manifest.columns, manifest.columns[2:], manifest.columns[:1], ()):
        for start, stop in ((0, 140), (63, 66), (139, 140), (70, 70)):
            rows = read_rows(folder, manifest.train[0], start, stop, manifest, wanted)
            assert list(rows.columns) == [column.name for column in wanted]
            for column in wanted:
                found = rows.columns[column.name]
                assert found.dtype == column.dtype
                assert found.shape == (stop - start, *column.row_shape(SEQUENCE))
                for offset, number in enumerate(range(start, stop)):
                    length = 5 if number == 139 else SEQUENCE
                    due = values(number, length)[column.name]
                    if column.per == "token":
                        assert not found[offset][length:].any()
                        np.testing.assert_array_equal(found[offset][:length], due)
                    else:
                        np.testing.assert_array_equal(found[offset], due)
            if start < min(stop, 139):
                np.testing.assert_array_equal(rows.tokens[0], row(start))


def test_columns_are_part_of_what_a_dataset_is(tmp_path: Path) -> None:
    folder = StoragePath(str(tmp_path))
    manifest = write_columns(folder, 3)
    assert manifest.fingerprint != replace_columns(manifest, manifest.columns[:3]).fingerprint
    with pytest.raises(DataError, match=r"its columns is .* the manifest says"):
        read_rows(folder, manifest.train[0], 0, 1, replace_columns(manifest, manifest.columns[:3]))


def replace_columns(manifest: DatasetManifest, columns: tuple[Column, ...]) -> DatasetManifest:
    rows = replace(manifest.rows, columns=columns)
    return DatasetManifest.of(rows, train=manifest.train, held_out=(), counts=Counts())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_mask": None}, "a row has the columns score, features, spans; this dataset's are loss_mask, score"),
        ({"extra": 1}, "this dataset's are loss_mask"),
        ({"loss_mask": np.full(SEQUENCE, 300)}, "column loss_mask: a value does not fit uint8"),
        ({"loss_mask": np.zeros(3)}, r"column loss_mask: values of shape \(3,\), where \(32,\) is due"),
        ({"features": np.zeros((2, 3))}, r"column features: values of shape \(2, 3\), where \(3, 2\) is due"),
    ],
)
def test_a_row_whose_columns_do_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    given = {name: value for name, value in {**values(0), **changes}.items() if value is not None}
    writing = ShardWriter(StoragePath(str(tmp_path / "a.parquet")), WITH_COLUMNS)
    with pytest.raises(ValueError, match=message), writing as writer:
        writer.add(row(0), [0], given)
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize("name", ["tokens", "Loss", "a-b", ""])
def test_a_column_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        Column(name, "uint8")
    with pytest.raises(ValueError, match="the same name"):
        RowFormat(SEQUENCE, VOCABULARY, "t", 0, columns=(Column("a", "uint8"), Column("a", "int32")))
