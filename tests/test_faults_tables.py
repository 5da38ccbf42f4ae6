"""Tables, lists and folders as other programs leave them: a flaw costs its own record, and is told in words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import job, run, text

from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.readers.read import read_range
from raylm.prep.units import ranges_of
from raylm.records import Document
from raylm.storage import Connection


def read(glob: Path | str, kind: str, **settings: Any) -> tuple[list[Document], Skipped]:
    source = SourceSettings.model_validate({"name": "x", "kind": kind, "glob": str(glob), **settings})
    skipped, found = Skipped(), list[Document]()
    files = SOURCES.get(source.kind).files(source, Connection())
    for _, part, _ in ranges_of(source, files, 1 << 30):
        found += read_range(source, part, Connection(), skipped)
    return found, skipped


def texts(glob: Path | str, kind: str, **settings: Any) -> list[str]:
    return [document.text for document in read(glob, kind, **settings)[0]]


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- CSV ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["Unix", "Windows", "old"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_csv_is_read_whatever_ends_its_lines(tmp_path: Path, end: str, mark: str) -> None:
    lines = ['"text","id"', '"one, two",1', '"three', ' four",2']
    path = written(tmp_path / "a.csv", mark + end.join(lines) + end)
    assert texts(path, "csv") == ["one, two", f"three{end} four"]


@pytest.mark.parametrize("line", ['"this quote is never closed,1', '"a"b,1', "a,b,c,d"])
@pytest.mark.parametrize("where", [0, 250, 499])
def test_a_broken_record_costs_its_own_line(tmp_path: Path, line: str, where: int) -> None:
    rows = [f"row {number},{number}" for number in range(500)]
    path = written(tmp_path / "a.csv", "\n".join(["text,id", *rows[:where], line, *rows[where:]]) + "\n")
    documents, skipped = read(path, "csv")
    assert [document.text for document in documents] == [f"row {number}" for number in range(500)]
    assert skipped.reasons["broken_record"] == 1


def test_many_open_quotes_cost_no_other_line(tmp_path: Path) -> None:
    rows = [f'"open {n},{n}' if n % 10 == 0 else f"row {n},{n}" for n in range(100)]
    documents, _ = read(written(tmp_path / "a.csv", "\n".join(["text,id", *rows]) + "\n"), "csv")
    assert {document.text for document in documents} >= {f"row {n}" for n in range(100) if n % 10}


def test_tabs_have_no_quotes_unless_the_source_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'text\tid\n5" pipe\t1\n"quoted"\t2\n')
    assert texts(path, "csv") == ['5" pipe', '"quoted"']
    assert texts(written(tmp_path / "b.tsv", 'text\tid\n"a\tb"\t1\n'), "csv", quote='"') == ["a\tb"]
    assert texts(written(tmp_path / "c.csv", "text;id\n'a;b';1\n"), "csv", delimiter=";", quote="'") == ["a;b"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_among_many_is_counted_and_no_damage(tmp_path: Path, kind: str, content: str) -> None:
    written(tmp_path / f"a.{kind}", {"csv": "text\nhello\n", "jsonl": '{"text": "hello"}\n'}[kind])
    written(tmp_path / f"b.{kind}", content)
    documents, skipped = read(tmp_path / f"*.{kind}", kind)
    assert [document.text for document in documents] == ["hello"]
    assert (skipped.files, skipped.reasons) == ([], {"empty_file": 1})
    assert skipped.examples["empty_file"] == [f"{tmp_path}/b.{kind}#0"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_a_bad_byte_in_metadata_gets_a_mark_and_the_text_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_bytes(b"text,language\nhello,fran\xe7ais\n")
    else:
        raw = pa.array([b"fran\xe7ais"], pa.binary()).view(pa.string())
        table = pa.table({"text": ["hello"], "language": raw})
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    documents, _ = read(path, kind, meta=["language"])
    assert [(document.text, document.meta["language"]) for document in documents] == [("hello", "fran\ufffdais")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_told_in_words(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("text,text\na,b\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        read(path, kind)


# --- Parquet and JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "snappy", "gzip"])
def test_damaged_parquet_is_set_aside(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.parquet"
    words = [f"{n * 7919 % 10007} words {n}" for n in range(3000)]
    pq.write_table(pa.table({"text": words}), path, compression=codec, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(range(250)) * 4
    path.write_bytes(data)
    _, skipped = read(path, "parquet")
    assert skipped.files == [str(path)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_in_a_file_of_json_is_its_items(tmp_path: Path, mark: str) -> None:
    items = [{"text": "one"}, {"text": "two"}]
    path = written(tmp_path / "a.json", mark + json.dumps(items, indent=1))
    assert texts(path, "jsonl") == ["one", "two"]


def test_a_zero_byte_costs_its_own_record_wherever_it_stands(tmp_path: Path) -> None:
    good = b'{"text":"two"}\n'
    for before in (1, 1000):
        path = written(tmp_path / f"{before}.jsonl", good * before + b'{"text":"a\0b"}\n' + good * 50)
        documents, skipped = read(path, "jsonl")
        assert len(documents) == before + 50
        assert skipped.reasons["broken_record"] == 1


@pytest.mark.parametrize(
    ("given", "language"),
    [("en", "en"), ("en-US", "en"), ("EN", "en"), ("eng", "en"), ("English", "en"), ("zh-Hans-CN", "zh"), ("??", "??")],
)
def test_the_language_that_a_table_gives_is_spelled_in_one_way(tmp_path: Path, given: str, language: str) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps({"text": "t", "language": given}))
    (document,), _ = read(path, "jsonl", meta=["language"])
    assert document.meta["language"] == language


# --- patterns and folders -----------------------------------------------------------------------------------------


def test_a_pattern_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no pattern of files") as raised:
        read(tmp_path / "**.txt", "text")
    assert "**/*.txt" in str(raised.value.hint)


def test_a_folder_in_place_of_a_pattern_is_told_in_words(tmp_path: Path) -> None:
    written(tmp_path / "data" / "a.txt", "hello")
    with pytest.raises(DataError, match="no file matches") as raised:
        read(tmp_path / "data", "text")
    assert f"it is a folder: {tmp_path}/data/* matches" in str(raised.value.hint)


def test_hidden_folders_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", ".git/b.txt", "c/.hidden/d.txt", ".e.txt"):
        written(tmp_path / name, f"text of {name}")
    assert texts(tmp_path / "**" / "*.txt", "text") == ["text of a.txt"]
    assert texts(tmp_path / ".git" / "*.txt", "text") == ["text of .git/b.txt"]


def hub(folder: Path, head: str) -> Path:
    written(folder / "README.md", f"---\n{head}---\n")
    for name in ("en/train.jsonl", "fr/train.jsonl", "en/test.jsonl", "en/deep/train.jsonl"):
        written(folder / name, json.dumps({"text": name}))
    return folder


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("configs:\n- {config_name: en, data_dir: en}\n- {config_name: fr, data_dir: fr}\n", 2),
        ("configs:\n- {config_name: en, data_files: {train: en/train.jsonl, test: en/test.jsonl}}\n", 1),
        ("configs:\n- {config_name: en, data_dir: ./en, data_files: [{split: train, path: '*train.jsonl'}]}\n", 1),
        ("configs:\n- {config_name: en, data_files: 'en/*train*'}\n", 1),
        ("license: mit\n", 2),
    ],
    ids=["data_dir", "a mapping", "both", "a pattern", "folders alone"],
)
def test_a_configuration_is_its_own_files(tmp_path: Path, head: str, found: int) -> None:
    names = texts(hub(tmp_path, head), "huggingface", config="en")
    assert all(name.startswith("en/") and "test" not in name for name in names)
    assert len(names) == found, "`*` stays within a folder"


@pytest.mark.parametrize(
    ("head", "config", "message"),
    [
        ("configs:\n- {config_name: en, data_dir: en}\n", "de", "no configuration 'de'; it has: en"),
        ("license: mit\n", "de", "has no configuration 'de'"),
        ("configs:\n- {config_name: en, data_files: gone/*.jsonl}\n", "en", "no file matches gone/*.jsonl"),
    ],
)
def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path, head: str, config: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read(hub(tmp_path, head), "huggingface", config=config)
    assert message in raised.value.message


# --- mending a job ------------------------------------------------------------------------------------------------


def test_a_job_that_is_mended_as_an_error_asks_goes_on_where_nothing_was_finished(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"body": f"{text(number)}"}) + "\n" for number in range(60))
    path = written(tmp_path / "a.jsonl", lines)
    source = {"name": "a", "kind": "jsonl", "glob": str(path)}
    with pytest.raises(DataError) as raised:
        run(job(tmp_path / "out", [source]))
    assert "set `column`" in str(raised.value.hint)
    assert run(job(tmp_path / "out", [{**source, "column": "body"}])).documents == 60
    with pytest.raises(ConfigError, match="other settings"):
        run(job(tmp_path / "out", [{**source, "column": "text"}]))


def test_work_that_was_finished_is_not_forgotten(tmp_path: Path) -> None:
    good = "".join(json.dumps({"text": text(number)}) + "\n" for number in range(60))
    written(tmp_path / "a.jsonl", good)
    written(tmp_path / "b.jsonl", '{"other": 1}\n' * 50)
    sources = [{"name": name, "kind": "jsonl", "glob": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")]
    tokenizer = {"vocab_size": 300}
    with pytest.raises(DataError):
        run(job(tmp_path / "out", sources, tokenizer=tokenizer, steps=[{"exact_duplicates": {}}]))
    with pytest.raises(ConfigError, match="other settings"):
        run(job(tmp_path / "out", sources[:1], tokenizer=tokenizer, steps=[{"exact_duplicates": {}}]))


@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_on_one_line_is_its_items(tmp_path: Path, name: str, end: str) -> None:
    items = [{"text": f"item {number} " + "[x]" * 900} for number in range(5)]
    path = written(tmp_path / name, json.dumps(items) + end)
    assert texts(path, "jsonl") == [item["text"] for item in items]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_zeros_beside_each_other_cost_their_own_record_where_lines_are_text(tmp_path: Path, kind: str) -> None:
    rows = {"csv": ["text"] + ["hello"] * 30, "jsonl": ['{"text": "hello"}'] * 30}[kind]
    rows[5] = rows[5].replace("hello", "he\0\0\0llo")
    documents, skipped = read(written(tmp_path / f"a.{kind}", "\n".join(rows) + "\n"), kind)
    assert [document.text for document in documents] == ["hello"] * 29
    assert skipped.reasons["broken_record"] == 1


def test_a_delimiter_behind_the_last_value_and_marks_before_the_first_name_cost_nothing(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.csv", "\ufeff\ufefftext,id\none,1,\ntwo,2,,\n"), "csv") == ["one", "two"]
    assert texts(written(tmp_path / "B.TSV", "text\tid\none\t1\n"), "csv") == ["one"]
    assert read(written(tmp_path / "c.csv", "text,id\none,1,x\n"), "csv")[1].reasons["broken_record"] == 1


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.jsonl.gz", gzip.compress(gzip.compress(b'{"text": "x"}\n')), "a gzip file inside another one"),
        ("a.jsonl.lz4", b"\x04\x22\x4d\x18\x60\x40\x82" + b"\0" * 9, "an lz4 file"),
        ("a.xml.7z", b"7z\xbc\xaf\x27\x1c\0\4" + b"\0" * 24, "a 7z archive"),
        ("a.tar.gz", gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 247), "a tar archive"),
        ("a.txt", "hello".encode("utf-32"), "UTF-32"),
    ],
)
def test_what_a_binary_file_is_gets_told(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    _, skipped = read(written(tmp_path / name, data), "text")
    assert word in skipped.examples["broken_file"][0]


CONFIGS = (
    "---\nconfigs:\n- config_name: {name}\n  data_files: no/*.jsonl\n- config_name: en\n  data_files: en/*.jsonl\n---\n"
)


@pytest.mark.parametrize("name", ["no", "2020", "2020-01-01", "1.10", "null"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n"])
def test_a_configuration_keeps_the_name_that_is_written(tmp_path: Path, name: str, before: str) -> None:
    for part in ("no", "en"):
        written(tmp_path / part / "train.jsonl", json.dumps({"text": part}))
    written(tmp_path / "README.md", before + CONFIGS.format(name=name))
    assert texts(tmp_path, "huggingface", config=name) == ["no"]
    with pytest.raises(DataError, match="several configurations"):
        texts(tmp_path, "huggingface")
    written(tmp_path / "README.md", before + CONFIGS.format(name=f"{name}\n  default: true"))
    assert texts(tmp_path, "huggingface") == ["no"]


def test_a_folder_of_data_that_is_not_there_is_no_reason_to_take_all(tmp_path: Path) -> None:
    written(tmp_path / "en" / "train.jsonl", '{"text": "en"}')
    written(tmp_path / "README.md", "---\nconfigs:\n- config_name: e\n  data_dir: e\n---\n")
    with pytest.raises(DataError, match="no data file is in e/, the data_dir of configuration 'e'"):
        texts(tmp_path, "huggingface", config="e")
    written(tmp_path / "README.md", "---\nconfigs:\n- config_name: e\n  data_files: 'en/[z-a].jsonl'\n---\n")
    with pytest.raises(DataError, match="names no pattern of files"):
        texts(tmp_path, "huggingface", config="e")


def test_parquet_taken_for_text_is_told_its_kind(tmp_path: Path) -> None:
    _, skipped = read(written(tmp_path / "a.parquet", b"PAR1" + b"\0" * 90), "jsonl")
    assert "a Parquet file; set kind: parquet" in skipped.examples["broken_file"][0]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_list_is_read_once_however_small_the_units(tmp_path: Path, indent: int | None) -> None:
    items = [{"text": f"item {number} " * 20} for number in range(100)]
    path = written(tmp_path / "a.json", json.dumps(items, indent=indent))
    source = SourceSettings.model_validate({"name": "x", "kind": "jsonl", "glob": str(path)})
    skipped, found = Skipped(), list[Document]()
    for _, part, _ in ranges_of(source, SOURCES.get("jsonl").files(source, Connection()), 3000):
        found += read_range(source, part, Connection(), skipped)
    assert [document.text for document in found] == [item["text"] for item in items]
    assert not skipped.reasons


def test_the_delimiter_is_the_one_that_a_file_tells_or_the_message_does(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "a.csv", "\ufeffsep=;\r\ntext;id\r\none, two;1\r\n"), "csv") == ["one, two"]
    for number, (mark, told) in enumerate([(";", '";"'), ("\t", '"\\t"'), ("|", '"|"')]):
        path = written(tmp_path / f"{number}.csv", f"id{mark}text\n1{mark}one\n")
        with pytest.raises(DataError, match="between its columns") as refused:
            texts(path, "csv")
        assert refused.value.hint == f"set `delimiter: {told}` of this source"
        assert texts(path, "csv", delimiter=mark) == ["one"]
    with pytest.raises(DataError, match="has no column 'text'"):
        texts(written(tmp_path / "d.csv", "body\none\n"), "csv")
