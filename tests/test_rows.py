"""One reader of records: every kind gives the same rows with their places, and bad ones are counted or refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import itertools
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylm.errors import ConfigError, DataError
from raylm.rows import (
    BadRow,
    BadRows,
    BrokenFile,
    MissingColumn,
    RowFile,
    kind_of,
    read_glob,
    read_rows,
    split_files,
)
from raylm.storage import Connection, StoragePath

RECORDS = [{"text": f"line {number}, grüße", "url": f"http://x/{number}"} for number in range(50)]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(folder: Path, name: str) -> StoragePath:
    """The records as a file of the kind that its name says."""
    path = folder / name
    plain, _, ending = name.partition(".")[2].partition(".")
    if plain == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=20)
    elif plain == "arrow":
        with (
            pa.OSFile(str(path), "wb") as stream,
            pa.ipc.new_stream(stream, pa.Table.from_pylist(RECORDS).schema) as out,
        ):
            out.write_table(pa.Table.from_pylist(RECORDS), 15)
    elif plain in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as text:
            rows = csv.DictWriter(text, ["url", "text"], delimiter="\t" if plain == "tsv" else ",")
            rows.writeheader()
            rows.writerows(RECORDS)
    else:
        content = json.dumps(RECORDS).encode() if plain == "json" else lines(RECORDS)
        path.write_bytes(PACKED[f".{ending}" if ending else ""](content))
    return StoragePath(str(path))


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.ndjson.xz", "a.json", "a.json.bz2", "a.csv", "a.tsv", "a.parquet", "a.arrow"],
)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert [row.value for row in read_rows(RowFile(path))] == RECORDS or name.endswith("sv")
    assert [row.value["text"] for row in read_rows(RowFile(path))] == [record["text"] for record in RECORDS]
    chosen = list(read_rows(RowFile(path, columns=("url",))))
    assert [row.value for row in chosen] == [{"url": record["url"]} for record in RECORDS]
    assert len({row.position for row in chosen}) == len(RECORDS)
    assert {row.path.url for row in chosen} == {path.url}


def test_lines_of_text_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n\nthree".encode())
    rows = list(read_rows(RowFile(StoragePath(str(tmp_path / "a.txt")))))
    assert [row.value["text"] for row in rows] == ["one", "two", "", "three"]
    assert [row.position for row in rows] == [0, 8, 12, 13]


@pytest.mark.parametrize("cuts", [(0, 1, 500, None), (0, 37, 38, 39, 1200, None), (0, 10_000, None)])
def test_ranges_of_lines_hold_each_row_once(tmp_path: Path, cuts: tuple[int | None, ...]) -> None:
    path = write(tmp_path, "a.jsonl")
    files = [RowFile(path, start=start or 0, stop=stop) for start, stop in itertools.pairwise(cuts)]
    assert [row.value for file in files for row in read_rows(file)] == RECORDS


def test_ranges_of_parquet_count_row_groups(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet")
    rows = list(read_rows(RowFile(path, start=1, stop=2)))
    assert [row.position for row in rows] == list(range(20, 40))
    assert [row.value for row in rows] == RECORDS[20:40]


BAD = (
    b'{"text": "a"}\n{"text": \n[1]\n{"other": 1}\n{"text": "\xff"}\n{"text": "b"}\n'
    + b'{"text": "'
    + b"x" * 99
    + b'"}\n'
)


def test_bad_rows_are_told_with_their_line_and_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(BAD)
    found: list[BadRow] = []
    file = RowFile(StoragePath(str(tmp_path / "a.jsonl")), columns=("text",), max_bytes=80, on_bad=found.append)
    assert [row.value["text"] for row in read_rows(file)] == ["a", "b"]
    assert [bad.reason for bad in found] == [*["broken_record"] * 3, "encoding", "too_large"]
    messages = [bad.error().message.removeprefix(f"{tmp_path}/a.jsonl ") for bad in found]
    assert messages[0].startswith("line 2 is not JSON: ")
    assert messages[1:] == [
        "line 3 has no key 'text'; it has: list",
        "line 4 has no key 'text'; it has: other",
        "line 5 is not UTF-8: 0xff at its byte 10",
        "line 7 a line of 112 bytes",
    ]
    error = found[2].error()
    assert isinstance(error, MissingColumn)
    assert error.column == "text"


def test_a_bad_row_is_an_error_unless_a_share_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS) + b"no\n")
    path = StoragePath(str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match=r"a\.jsonl line 51 is not JSON"):
        list(read_rows(RowFile(path)))
    allowed = BadRows(0.05)
    good = sum(1 for _ in read_rows(RowFile(path, on_bad=allowed)))
    allowed.check(good)
    assert allowed.reasons == {"broken_record": 1}
    strict = BadRows(0.01)
    good = sum(1 for _ in read_rows(RowFile(path, on_bad=strict)))
    with pytest.raises(DataError, match=r"line 51 is not JSON.*1 of 51 rows are bad; 0\.01 of them may be"):
        strict.check(good)


def test_a_row_of_csv_that_is_not_utf8_is_bad_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,one\n2,\xe4\n3,"th,ree"\n4\n')
    found: list[BadRow] = []
    rows = list(read_rows(RowFile(StoragePath(str(tmp_path / "a.csv")), columns=("text",), on_bad=found.append)))
    assert [row.value["text"] for row in rows] == ["one", "th,ree"]
    assert [(bad.place(), bad.reason) for bad in found] == [("line 3", "encoding"), ("line 5", "broken_record")]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.arrow"])
def test_a_table_without_the_column_names_those_that_it_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingColumn, match=r"has no column 'body'; it has: .*text") as caught:
        list(read_rows(RowFile(write(tmp_path, name), columns=("url", "body"))))
    assert caught.value.column == "body"


def test_what_cannot_be_read_to_its_end_is_broken(tmp_path: Path) -> None:
    whole = write(tmp_path, "a.jsonl.gz")
    cut = StoragePath(str(tmp_path / "b.jsonl.gz"))
    cut.write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "c.jsonl").write_bytes(b"PK\x03\x04 and more")
    (tmp_path / "d.json").write_bytes(b'{"a": ')
    bomb = StoragePath(str(tmp_path / "e.jsonl.gz"))
    bomb.write_bytes(gzip.compress(b" " * 70_000_000))
    for path, message in [
        (cut, "cannot be unpacked"),
        (StoragePath(str(tmp_path / "c.jsonl")), "but a zip archive"),
        (StoragePath(str(tmp_path / "d.json")), "is not JSON"),
        (bomb, "unpacks to more than 64000000 bytes"),
    ]:
        with pytest.raises(BrokenFile, match=message):
            list(read_rows(RowFile(path, on_bad=BadRows(1.0))))
    with pytest.raises(BrokenFile, match="JSON of more than 100 bytes"):
        list(read_rows(RowFile(write(tmp_path, "f.json"), max_bytes=100)))


def test_a_name_that_says_no_kind_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(lines(RECORDS))
    path = StoragePath(str(tmp_path / "a.dat"))
    assert kind_of(path) is None
    with pytest.raises(ConfigError, match=r"a\.dat is no file of rows"):
        list(read_rows(RowFile(path)))
    assert [row.value for row in read_rows(RowFile(path), "jsonl")] == RECORDS
    with pytest.raises(ConfigError, match="no kind of rows 'xml'"):
        list(read_rows(RowFile(path), "xml"))


def test_a_glob_is_read_file_after_file(tmp_path: Path) -> None:
    write(tmp_path, "b.parquet")
    write(tmp_path, "a.jsonl")
    rows = list(read_glob(f"{tmp_path}/*", Connection(), columns=("text",)))
    assert [row.path.name for row in rows] == ["a.jsonl"] * 50 + ["b.parquet"] * 50
    with pytest.raises(DataError, match="no file matches"):
        list(read_glob(f"{tmp_path}/*.csv", Connection()))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/*.jsonl", ["data/a.jsonl"]),
        ("data/**", ["data/a.jsonl", "data/deep/b.jsonl"]),
        ("**/b.jsonl", ["data/deep/b.jsonl"]),
        ("*.jsonl", ["c.jsonl"]),
        ("data/[ab].jsonl", ["data/a.jsonl"]),
        ("data/?.jsonl", ["data/a.jsonl"]),
        ("./data/a.jsonl", ["data/a.jsonl"]),
    ],
)
def test_patterns_of_data_files_mean_what_they_mean_on_the_hub(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("data/a.jsonl", "data/deep/b.jsonl", "c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(lines(RECORDS))
    card = f"---\nconfigs:\n- config_name: default\n  data_files: '{pattern}'\n---\n"
    (tmp_path / "README.md").write_text(card)
    found = split_files(StoragePath(str(tmp_path)))
    assert [path.url.removeprefix(f"{tmp_path}/") for path, _ in found] == names
