"""Preparation: every document exactly once, the same bytes whatever killed it, and errors that name the line."""

from __future__ import annotations

import ast
import contextlib
import gzip
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylm.config.job import Job
from raylm.config.prepare.sources import SourceSettings
from raylm.errors import ConfigError, DataError, StorageError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.prepare import PrepareProgress, PrepareReport, prepare
from raylm.prep.ranges import FileRange
from raylm.prep.readers import python_docs
from raylm.prep.readers.read import read_range
from raylm.prep.report.inspect import inspect_dataset
from raylm.prep.split import document_held_out
from raylm.prep.tasks import here
from raylm.prep.tokenizer import load
from raylm.prep.units import WorkList, differences
from raylm.records import Document
from raylm.shards import read_manifest, read_rows
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data
from raylm.testing.servers import Faults, S3Server, failing, free_port, proxy

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "Ünïcode",
    "東京",
    "naïve",
    "12",
    "345",
    "<|endoftext|>",
    "()",
]
TEXTS_FOLDER = external_data("pretrain-text")


def text(number: int) -> str:
    chance = random.Random(number)
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 60)))


def job(output: Path | str, sources: list[dict[str, Any]], **settings: Any) -> Job:
    defaults: dict[str, Any] = {
        "sources": sources,
        "output": str(output),
        "sequence_length": 64,
        "held_out": 0.1,
        "unit_bytes": 3000,
        "tokenizer": {"vocab_size": 400},
    }
    return Job.model_validate({"prepare": defaults | settings})


def run(wanted: Job, **more: Any) -> PrepareReport:
    return prepare(wanted, session=here, **more)


def write_corpus(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Sources of every kind, and the documents they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text(number) for number in range(300)]
    (folder / "a").mkdir()
    for number, one in enumerate(texts[:20]):
        (folder / "a" / f"{number:02d}.txt").write_text(one)
    (folder / "lines.txt").write_text("\n".join(texts[20:100]) + "\n\n")
    (folder / "blocks.txt").write_text("\n\n \n".join(f"{one}\nsecond line" for one in texts[100:150]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"id": 1, "text": one}) + "\n" for one in texts[150:200]))
    with gzip.open(folder / "c.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in texts[200:250])
    pq.write_table(pa.table({"body": texts[250:], "n": list(range(50))}), folder / "d.parquet", row_group_size=7)
    sources = [
        {"name": "files", "glob": f"{folder}/a/*.txt"},
        {"name": "lines", "glob": f"{folder}/lines.txt", "document": "line"},
        {"name": "blocks", "glob": f"{folder}/blocks.txt", "document": "block"},
        {"name": "json", "kind": "jsonl", "glob": f"{folder}/*.jsonl*"},
        {"name": "parquet", "kind": "parquet", "glob": f"{folder}/*.parquet", "column": "body"},
    ]
    held = texts[:100] + [f"{one}\nsecond line" for one in texts[100:150]] + texts[150:]
    return sources, held


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str]]:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "raw")


@pytest.fixture(scope="module")
def finished(corpus: tuple[list[dict[str, Any]], list[str]], tmp_path_factory: pytest.TempPathFactory) -> StoragePath:
    """The corpus, prepared without interruption."""
    output = tmp_path_factory.mktemp("finished") / "data"
    run(job(output, corpus[0]))
    return StoragePath(str(output))


def documents(output: StoragePath, side: str = "train") -> list[str]:
    """The texts in the shards, told apart by document starts alone."""
    manifest = read_manifest(output)
    tokenizer, _ = load(output / "tokenizer")
    found: list[str] = []
    for shard in getattr(manifest, side):
        rows = read_rows(output, shard, 0, shard.rows, manifest)
        current: list[int] = []
        for tokens, starts, length in zip(rows.tokens, rows.document_starts, rows.lengths, strict=True):
            assert starts[0] == 0
            begun = {int(start) for start in starts[1:]} | ({0} if not current else set())
            for position, token in enumerate(tokens[:length].tolist()):
                assert (position in begun) == (not current), "a document starts where the one before ended"
                current.append(token)
                if token == manifest.eos_id:
                    found.append(tokenizer.decode(current[:-1], skip_special_tokens=False))
                    current = []
            assert all(token == manifest.eos_id for token in tokens[length:])
        assert not current, "the last document of a shard is whole"
    return found


def content(output: StoragePath) -> dict[str, bytes]:
    """Every file in the folder, by name."""
    return {place.url.removeprefix(output.url): place.read_bytes() for place in output.glob("**/*")}


def test_every_document_is_there_exactly_once(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath
) -> None:
    texts = corpus[1]
    train, held_out = documents(finished), documents(finished, "held_out")
    assert Counter(train + held_out) == Counter(texts)
    assert 0 < len(held_out) < 60
    manifest = read_manifest(finished)
    assert {name: counts["documents"] + counts["held_out_documents"] for name, counts in manifest.sources.items()} == {
        "files": 20, "lines": 80, "blocks": 50, "json": 100, "parquet": 50,
    }  # fmt: skip
    assert manifest.sources["lines"]["skipped_empty"] == 1
    assert manifest.held_out_bytes == sum(len(one.encode()) for one in held_out)
    assert manifest.dtype == "uint16"
    assert len(manifest.train) > 10, "several units"


def test_unit_size_and_sequence_length_change_the_shards_but_not_the_documents(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, tmp_path: Path
) -> None:
    for unit_bytes, sequence_length in ((200, 8), (900, 1000), (10**6, 16)):
        output = StoragePath(str(tmp_path / str(unit_bytes)))
        run(job(output.url, corpus[0], unit_bytes=unit_bytes, sequence_length=sequence_length))
        assert sorted(documents(output)) == sorted(documents(finished))
        assert sorted(documents(output, "held_out")) == sorted(documents(finished, "held_out"))


def test_equal_inputs_elsewhere_give_an_equal_fingerprint(tmp_path: Path, finished: StoragePath) -> None:
    sources, _ = write_corpus(tmp_path / "moved")
    report = run(job(tmp_path / "data", sources))
    there = read_manifest(finished)
    assert report.manifest.fingerprint == there.fingerprint
    assert run(job(tmp_path / "other", sources, held_out=0.2)).manifest.fingerprint != there.fingerprint
    assert run(job(tmp_path / "more", sources[:-1])).manifest.fingerprint != there.fingerprint


def test_a_finished_job_is_left_alone(corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath) -> None:
    before = {place.url: Path(place.url).stat().st_mtime_ns for place in finished.glob("**/*")}
    report = run(job(finished.url, corpus[0]))
    assert report.already_done
    assert report.documents == 300
    assert {place.url: Path(place.url).stat().st_mtime_ns for place in finished.glob("**/*")} == before


def test_other_settings_are_refused_and_nothing_is_harmed(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath
) -> None:
    before = content(finished)
    with pytest.raises(ConfigError) as caught:
        run(job(finished.url, corpus[0], sequence_length=128, tokenizer={"vocab_size": 500}))
    assert str(caught.value) == (
        f"{finished.url} holds data prepared with other settings: prepare.sequence_length is 64 there and 128 here; "
        "prepare.tokenizer.vocab_size is 400 there and 500 here"
    )
    assert "choose another prepare.output" in str(caught.value.hint)
    assert content(finished) == before


def test_what_differs_is_named_by_its_place() -> None:
    old = {"steps": [{"sample": {"rate": 0.5, "by": "a"}}, {"exact_duplicates": {"part": "line"}}]}
    new = {"steps": [{"sample": {"rate": 0.5, "by": "b"}}, {"exact_duplicates": {"part": "line"}}]}
    assert differences(old, new) == ['prepare.steps.0.sample.by is "a" there and "b" here']
    assert [line[:20] for line in differences(old, {"steps": []})] == ['prepare.steps is [{"']
    assert differences(old, old) == []


def test_of_two_long_lists_the_first_difference_is_shown() -> None:
    begin = [{"normalize": {"form": "NFC"}}, {"language": {"keep": [f"l{n}" for n in range(40)]}}]
    (line,) = differences({"steps": [*begin, "quality"]}, {"steps": [*begin, "sample", "quality"]})
    assert line == 'prepare.steps has 3 entries there and 4 here, of which 2 is "quality" there and "sample" here'
    (line,) = differences({"steps": begin}, {"steps": [*begin, "quality"]})
    assert line == 'prepare.steps has 2 entries there and 3 here, of which 2 is null there and "quality" here'


def test_of_two_long_values_what_stands_around_the_first_difference_is_shown() -> None:
    names = ", ".join(f"name-{number}" for number in range(60))
    (line,) = differences({"glob": f"{names}.txt"}, {"glob": f"{names}.csv"})
    assert line.endswith('name-59.txt" there and ...' + line.rpartition("...")[2])
    assert '.txt" there' in line
    assert line.endswith('.csv" here')
    assert len(line) < 300


def test_a_setting_that_is_younger_than_the_data_had_its_default(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, tmp_path: Path
) -> None:
    for name, data in content(finished).items():
        (tmp_path / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name.lstrip("/")).write_bytes(data)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["settings"]["steps"]
    del manifest["steps"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run(job(tmp_path, corpus[0])).already_done
    with pytest.raises(ConfigError, match=r"prepare\.steps is \[\] there"):
        run(job(tmp_path, corpus[0], steps=["exact_duplicates"]))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/mine.parquet").write_text("precious")
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(ConfigError, match="already holds train, but no work list and no manifest"):
        run(job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt"}]))
    assert (tmp_path / "data/train/mine.parquet").read_text() == "precious"


def test_progress_is_told(corpus: tuple[list[dict[str, Any]], list[str]], tmp_path: Path) -> None:
    told: list[PrepareProgress] = []
    report = run(job(tmp_path / "data", corpus[0]), progress=told.append)
    assert list(dict.fromkeys(one.phase for one in told)) == [
        "listing the sources", "training the tokenizer", "tokenizing", "writing the manifest",
    ]  # fmt: skip
    last = [one for one in told if one.phase == "tokenizing"][-1]
    assert last.done == last.total
    assert (last.documents, last.tokens) == (report.documents, report.tokens) == (300, report.tokens)


# Killed and resumed


def prepare_until_killed(wanted: Job, writes: int) -> None:
    """Prepare in this process, which kills itself in the middle of the given write."""
    from raylm.storage.local import LocalFiles

    left = itertools.count(writes, -1)
    whole = LocalFiles.open_write

    def open_write(self: LocalFiles, url: str) -> Any:
        if next(left) == 0:
            path = Path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".raylm-writing-{writes}").write_bytes(b"half of")
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, url)

    LocalFiles.open_write = open_write  # type: ignore[method-assign]
    run(wanted)


def test_killed_at_any_write_and_resumed_the_result_is_byte_identical(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload(["test_prepare", "tokenizers", "pyarrow.parquet"])
    wanted = job(tmp_path / "data", corpus[0])
    output = StoragePath(wanted.shards_url)
    kills = 0
    for writes in (0, 1, 2, 3, 5, 8, 13, 13, 13, 13, 1, 0):
        child = spawn.Process(target=prepare_until_killed, args=(wanted, writes))
        child.start()
        child.join(120)
        kills += child.exitcode == -signal.SIGKILL
        if (output / "manifest.json").exists():
            break
        for place in output.glob("**/.raylm-writing-*"):
            place.remove()
    assert kills >= 8
    report = run(wanted)
    assert report.resumed_units > 0
    assert not report.already_done
    left_behind = {name for name in content(output) if "raylm-writing" in name}
    assert {name: data for name, data in content(output).items() if name not in left_behind} == content(finished)


def test_killed_on_ray_and_finished_without_it_the_result_is_byte_identical(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, tmp_path: Path
) -> None:
    wanted = job(tmp_path / "data", corpus[0])
    script = tmp_path / "go.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from raylm.config.job import Job
            from raylm.prep.prepare import prepare
            prepare(Job.model_validate_json(sys.stdin.read()))
            """
        )
    )
    output = StoragePath(wanted.shards_url)
    child = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stdin is not None
    child.stdin.write(wanted.model_dump_json())
    child.stdin.close()
    while child.poll() is None and len((output / "_work/pass-0/units").list()) < 3:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not (output / "manifest.json").exists()
    report = run(wanted)  # the rest without Ray: who runs a unit does not matter
    assert report.resumed_units >= 3
    assert content(output) == content(finished)


def test_input_that_changed_under_an_unfinished_job_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n" * 50)
    wanted = job(tmp_path / "data", [{"glob": str(path), "document": "line"}], unit_bytes=100)

    def two(task: Any, items: Any, resources: Any = None) -> Iterator[str]:
        yield from map(task, items[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(wanted, session=lambda _: contextlib.nullcontext(two))
    path.write_text("one\ntwo\n" * 51)
    with pytest.raises(DataError, match=r"x\.txt changed while it was being prepared: 400 bytes when listed, 408 now"):
        run(wanted)
    with pytest.raises(ConfigError, match=r"prepare\.held_out is 0\.1 there and 0\.2 here"):
        run(job(tmp_path / "data", [{"glob": str(path), "document": "line"}], unit_bytes=100, held_out=0.2))


# Cutting files


@pytest.mark.parametrize("document", ["line", "block"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cut_anywhere_pieces_hold_each_document_once(tmp_path: Path, document: str, newline: str) -> None:
    chance = random.Random(7)
    path = tmp_path / "x.txt"
    for _ in range(12):
        lines = [chance.choice(["", "", " ", "a", "bb", "c" * 30]) for _ in range(chance.randint(1, 14))]
        path.write_bytes(newline.join(lines).encode() + (newline.encode() if chance.random() < 0.5 else b""))
        size = path.stat().st_size
        source = SourceSettings.model_validate({"glob": str(path), "document": document})
        whole = [one.id for one in read_range(source, FileRange(str(path), size), Connection(), Skipped())]
        cuts_of = itertools.combinations(range(1, size), 2) if size < 40 else itertools.pairwise(range(1, size, 7))
        for cuts in cuts_of:
            bounds = [0, *cuts, size]
            pieces = [FileRange(str(path), size, start, stop) for start, stop in itertools.pairwise(bounds)]
            found = [one.id for piece in pieces for one in read_range(source, piece, Connection(), Skipped())]
            assert found == whole, (path.read_bytes(), bounds)


def test_a_work_list_is_read_back() -> None:
    from raylm.prep.units import units_of

    units = units_of(
        [("a", FileRange("x", 10, 0, 5), 5), ("a", FileRange("x", 10, 5, 10, 3), 5), ("b", FileRange("y", 1), 1)], 9
    )
    assert [len(unit.ranges) for unit in units] == [1, 1, 1]
    assert WorkList.from_json(WorkList({"held_out": 0.1}, units).to_json()) == WorkList({"held_out": 0.1}, units)


@pytest.mark.parametrize(("name", "version"), [("plan.json", None), ("worklist.json", 1), ("worklist.json", None)])
def test_an_unfinished_preparation_of_another_version_is_refused(
    tmp_path: Path, name: str, version: int | None
) -> None:
    (tmp_path / "x.txt").write_text("text")
    work = tmp_path / "data/_work"
    work.mkdir(parents=True)
    written: dict[str, Any] = {"settings": {}, "units": []}
    (work / name).write_text(json.dumps(written if version is None else written | {"version": version}))
    with pytest.raises(ConfigError, match=r"_work: .*is of another version of raylm") as caught:
        run(job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt"}]))
    assert "remove the folder" in str(caught.value.hint)


def test_prepared_data_of_another_version_is_refused_with_what_prepare_accepts(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text " * 200)
    run(job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt"}]))
    manifest = tmp_path / "data/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 1}))
    with pytest.raises(DataError, match="has version 1; this raylm reads version 2") as caught:
        run(job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt"}]))
    assert "into another folder (prepare.output) or after removing this one" in str(caught.value.hint)
    run(job(tmp_path / "another", [{"glob": f"{tmp_path}/x.txt"}]))


# Settings


def test_equal_texts_are_on_the_same_side(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"document {number % 50}\n" for number in range(400)))
    run(job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt", "document": "line"}], held_out=0.3))
    output = StoragePath(str(tmp_path / "data"))
    train, held_out = documents(output), documents(output, "held_out")
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 400
    many = [Document(str(number), str(number), "here") for number in range(1000)]
    assert 0.1 < sum(document_held_out(one, 0.2) for one in many) / 1000 < 0.3


@pytest.mark.parametrize("kind", ["line", "jsonl"])
def test_a_cap_takes_the_first_documents(tmp_path: Path, kind: str) -> None:
    texts = [text(number) for number in range(100)]
    if kind == "jsonl":
        (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
        source = {"kind": "jsonl", "glob": f"{tmp_path}/x.jsonl", "max_documents": 37}
    else:
        (tmp_path / "x.txt").write_text("\n".join(texts))
        source = {"glob": f"{tmp_path}/x.txt", "document": "line", "max_documents": 37}
    run(job(tmp_path / "data", [source], unit_bytes=500))
    output = StoragePath(str(tmp_path / "data"))
    assert Counter(documents(output) + documents(output, "held_out")) == Counter(texts[:37])


def test_a_tokenizer_is_loaded_from_a_folder(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, tmp_path: Path
) -> None:
    folder = finished / "tokenizer"
    report = run(job(tmp_path / "data", corpus[0], tokenizer={"path": folder.url}))
    assert report.manifest.tokenizer == read_manifest(finished).tokenizer
    assert report.manifest.fingerprint == read_manifest(finished).fingerprint
    assert content(StoragePath(str(tmp_path / "data/tokenizer"))) == content(folder)


def test_transformers_loads_the_trained_tokenizer(finished: StoragePath) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{finished.url}/tokenizer")
    manifest = read_manifest(finished)
    assert tokenizer.eos_token_id == manifest.eos_id
    assert len(tokenizer) == manifest.vocab_size <= 400
    assert tokenizer.decode(tokenizer("naïve  café\n東京").input_ids) == "naïve  café\n東京"


def test_a_bad_tokenizer_folder_is_named(corpus: tuple[list[dict[str, Any]], list[str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer in .*nowhere: the folder is missing or empty"):
        run(job(tmp_path / "a", corpus[0], tokenizer={"path": str(tmp_path / "nowhere")}))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer"):
        run(job(tmp_path / "b", corpus[0], tokenizer={"path": str(tmp_path / "bad")}))


# Bad input


@pytest.mark.parametrize(
    ("name", "raw", "source", "message"),
    [
        ("x.txt", b"fine\nbad \xff here\n", {"document": "line"}, r"x\.txt is not UTF-8: 0xff at byte 9"),
        ("x.txt", b"12345\xe9", {}, r"x\.txt is not UTF-8: 0xe9 at byte 5"),
        ("x.txt", b"a\n\n\nbc\xc3(", {"document": "block"}, r"x\.txt is not UTF-8: 0xc3 at byte 6"),
        ("x.txt.gz", gzip.compress(b"ab\xff"), {}, r"0xff at byte 2 of the unpacked text"),
        ("x.txt.gz", gzip.compress(b"ab" * 9000)[:-9], {}, r"x\.txt\.gz cannot be unpacked"),
        ("x.txt.gz", b"not gzip", {}, r"x\.txt\.gz cannot be unpacked"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', {"kind": "jsonl"}, r"x\.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', {"kind": "jsonl"}, r"line 3 has no key 'text'; it has: body"),
        ("x.jsonl", b'{"text": 5}\n', {"kind": "jsonl"}, r"line 1 has int, not text, as 'text'"),
        ("x.jsonl", b'{"text": "a"}\n' + b"[" * 200_000 + b"\n", {"kind": "jsonl"}, r"x\.jsonl line 2 is not JSON"),
        ("x.jsonl", b'{"text": "ab\xff"}\n', {"kind": "jsonl"}, r"x\.jsonl is not UTF-8: 0xff at byte 12"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', {"kind": "jsonl"}, r"lone surrogate"),
        ("x.parquet", b"PAR1 no", {"kind": "parquet"}, r"x\.parquet cannot be read as Parquet"),
        ("x.txt", b" \n\n", {"document": "line"}, r"the sources hold no document"),
        ("x.txt", b"", {}, r"the sources hold no document"),
        ("y.txt", b"a", {}, r"source 'text': no file matches .*x\*"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, name: str, raw: bytes, source: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        run(job(tmp_path / "data", [source | {"glob": f"{tmp_path}/x*"}]))
    assert caught.value.hint
    assert not (tmp_path / "data/manifest.json").exists()


def test_a_missing_parquet_column_names_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no column 'text'; it has: body, n"):
        run(job(tmp_path / "data", [{"kind": "parquet", "glob": f"{tmp_path}/*.parquet"}]))
    with pytest.raises(DataError, match="row 0: column 'n' is int, not text"):
        run(job(tmp_path / "more", [{"kind": "parquet", "glob": f"{tmp_path}/*.parquet", "column": "n"}]))


def test_bad_encoding_can_be_skipped_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\nbad \xff here\nalso fine\n")
    source = {"glob": f"{tmp_path}/x.txt", "document": "line", "encoding_errors": "skip"}
    report = run(job(tmp_path / "data", [source], held_out=0))
    assert documents(StoragePath(str(tmp_path / "data"))) == ["fine", "also fine"]
    assert report.skipped == {"encoding": report.manifest.sources["text"]["skipped_encoding"]} == {"encoding": 1}


def write_twenty(folder: Path) -> list[dict[str, Any]]:
    """Twenty packed files, of which one is cut off, and JSON lines, of which one is none."""
    lines = [text(number) for number in range(200)]
    for number in range(20):
        data = gzip.compress("\n".join(lines[number * 10 : number * 10 + 10]).encode())
        (folder / f"{number:02d}.txt.gz").write_bytes(data[:-20] if number == 7 else data)
    records = [json.dumps({"text": f"record {line}"}) for line in lines]
    (folder / "a.jsonl").write_text("\n".join([*records[:50], '{"text": ', *records[50:]]))
    return [
        {"name": "packed", "glob": f"{folder}/*.gz", "document": "line", "license": "CC0 | MIT"},
        {"name": "records", "kind": "jsonl", "glob": f"{folder}/*.jsonl"},
    ]


def test_what_is_broken_is_set_aside_up_to_the_share_the_job_allows(tmp_path: Path) -> None:
    sources = write_twenty(tmp_path)
    told = r"07\.txt\.gz cannot be unpacked: .* \(1 of 20 files of source 'packed' are broken;"
    with pytest.raises(DataError, match=told) as caught:
        run(job(tmp_path / "data", sources))
    assert caught.value.hint == (
        "fetch it again; it is truncated or no gz file; "
        "or raise prepare.max_broken_share to go on without what is broken"
    )
    assert not (tmp_path / "data/manifest.json").exists()
    report = run(job(tmp_path / "data", sources, max_broken_share=0.05))  # the same folder: only the limit is another
    assert report.skipped == {"broken_file": 1, "broken_record": 1}
    assert 390 < report.documents < 400, "what was read before the damage is kept"
    skipped = json.loads((tmp_path / "data/skipped.json").read_text())
    assert skipped["sources"]["packed"]["broken_files"] == [str(tmp_path / "07.txt.gz")]
    card = (tmp_path / "data/card.md").read_text()
    assert re.search(r"^\| packed \| text, `.*\*\.gz` \| CC0 \\\| MIT \| 19\d \| ", card, re.M)
    assert "- packed: 1 broken file\n" in card
    (example,) = skipped["sources"]["records"]["reasons"]["broken_record"]["examples"]
    assert example.startswith(f"{tmp_path}/a.jsonl line 51 is not JSON: ")


def test_too_many_broken_records_stop_the_run_and_mended_ones_are_read_again(tmp_path: Path) -> None:
    sources = write_twenty(tmp_path)[1:]
    path = tmp_path / "a.jsonl"
    good = path.read_text().splitlines()
    bad = [line if number % 10 else "x" * len(line) for number, line in enumerate(good)]
    path.write_text("\n".join(bad))
    with pytest.raises(DataError, match=r"line 1 is not JSON: .* \(21 of 201 records of source 'records' are broken"):
        run(job(tmp_path / "data", sources, max_broken_share=0.1))
    good[50] = '{"x": ""}'  # the same length
    path.write_text("\n".join(good))
    report = run(job(tmp_path / "data", sources, max_broken_share=0.1))
    assert report.documents == 200
    assert report.skipped == {"broken_record": 1}


def test_nothing_but_broken_records_end_a_source_soon(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 2000)
    sources = [{"kind": "jsonl", "glob": f"{tmp_path}/*.jsonl"}]
    with pytest.raises(DataError, match=r"byte \d+ has no key 'text'; it has: body"):
        run(job(tmp_path / "data", sources, max_broken_share=1, unit_bytes=100_000))


def test_a_look_shows_documents_as_they_went_in(tmp_path: Path) -> None:
    texts = [text(number) for number in range(60)] + ["long " * 200]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    run(job(tmp_path / "data", [{"glob": f"{tmp_path}/a.txt", "document": "line"}], held_out=0, unit_bytes=100_000))
    found = inspect_dataset(StoragePath(str(tmp_path / "data")), samples=100)
    assert list(found.samples) == texts
    tokenizer, _ = load(StoragePath(str(tmp_path / "data/tokenizer")))
    expected = sorted(len(tokenizer.encode(one).ids) + 1 for one in texts)
    assert list(found.lengths) == expected
    assert (found.quantile(0), found.quantile(1)) == (expected[0], expected[-1])
    assert len(inspect_dataset(StoragePath(str(tmp_path / "data")), samples=3).samples) == 3


def test_quarantined_input_gives_the_same_bytes_whatever_was_done_before(tmp_path: Path) -> None:
    sources = write_twenty(tmp_path)
    run(job(tmp_path / "one", sources, max_broken_share=0.1))
    with pytest.raises(DataError):
        run(job(tmp_path / "two", sources, max_broken_share=0.0))
    run(job(tmp_path / "two", sources, max_broken_share=0.1))
    for path in (tmp_path / "one").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    assert (tmp_path / "one/skipped.json").read_bytes() == (tmp_path / "two/skipped.json").read_bytes()


def test_an_unreadable_document_found_late_harms_nothing_done(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    good = "a line of text\n" * 40
    path.write_bytes(good.encode() + b"\xff\n")
    wanted = job(tmp_path / "data", [{"glob": str(path), "document": "line"}], unit_bytes=100, tokenizer={
        "vocab_size": 300, "sample_bytes": 20,
    })  # fmt: skip
    with pytest.raises(DataError, match="0xff at byte 600"):
        run(wanted)
    path.write_bytes(good.encode() + b"x\n")  # the same length: the job goes on
    report = run(wanted)
    assert report.resumed_units >= 4
    assert (
        len(documents(StoragePath(str(tmp_path / "data"))))
        + len(documents(StoragePath(str(tmp_path / "data")), "held_out"))
        == 41
    )


# Object stores


def test_sources_and_shards_on_s3(
    corpus: tuple[list[dict[str, Any]], list[str]], finished: StoragePath, seaweed: S3Server
) -> None:
    bucket = seaweed.bucket()
    root = Path(corpus[0][0]["glob"]).parents[1]
    for path in root.glob("**/*"):
        if path.is_file():
            (bucket / "raw" / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    sources = [{**one, "glob": one["glob"].replace(str(root), f"{bucket.url}/raw")} for one in corpus[0]]
    wanted = job(f"{bucket.url}/data", sources)
    wanted = wanted.model_copy(
        update={"object_store": wanted.object_store.model_copy(update={"endpoint": seaweed.endpoint})}
    )
    report = run(wanted)
    assert report.manifest.fingerprint == read_manifest(finished).fingerprint
    output = StoragePath(f"{bucket.url}/data", seaweed.connection())
    assert content(output).keys() == content(finished).keys()
    assert sorted(documents(output)) == sorted(documents(finished))
    assert run(wanted).already_done


def test_an_endpoint_that_nobody_serves_is_said_soon(tmp_path: Path) -> None:
    store = {"endpoint": f"http://127.0.0.1:{free_port()}", "region": "us-east-1"}
    (tmp_path / "x.txt").write_text("text")
    for output, glob in (("s3://bucket/data", f"{tmp_path}/x.txt"), (str(tmp_path / "data"), "s3://bucket/*.txt")):
        wanted = Job.model_validate(job(output, [{"glob": glob}]).model_dump() | {"object_store": store})
        began = time.monotonic()
        with pytest.raises(StorageError, match="the server cannot be reached") as caught:
            run(wanted)
        assert "object_store.endpoint" in str(caught.value.hint)
        assert time.monotonic() - began < 15
    assert not (tmp_path / "data/_work/worklist.json").exists()


def test_shards_on_disks_of_other_nodes_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text\n" * 100)
    wanted = job(tmp_path / "data", [{"glob": f"{tmp_path}/x.txt", "document": "line"}], unit_bytes=200)

    def elsewhere(task: Any, items: Any, resources: Any = None) -> Iterator[str]:
        for result in map(task, items):
            (tmp_path / "data" / json.loads(result)["train"]["path"]).unlink()
            yield result

    with pytest.raises(StorageError, match="is not the same folder on every node") as caught:
        prepare(wanted, session=lambda _: contextlib.nullcontext(elsewhere))
    assert "all nodes share" in str(caught.value.hint)


def test_a_store_that_fails_requests_is_outlasted(tmp_path: Path, moto: S3Server) -> None:
    (tmp_path / "x.txt").write_text("\n".join(text(number) for number in range(100)))
    sources = [{"glob": f"{tmp_path}/x.txt", "document": "line"}]
    calm = run(job(tmp_path / "data", sources)).manifest
    faults = Faults()
    with proxy(moto, faults) as flaky:
        wanted = job(f"{moto.bucket().url}/data", sources)
        store = wanted.object_store.model_copy(update={"endpoint": flaky.endpoint, "retries": 8})
        faults.choose = failing(0.15, seed=3)
        report = run(wanted.model_copy(update={"object_store": store}))
    assert report.manifest.fingerprint == calm.fingerprint
    assert sum(count for fate, count in faults.counts.items() if fate != "pass") > 3


# TokenizerFiles-in and real text


def test_python_docs_are_english_and_stable(tmp_path: Path) -> None:
    sources = [{"name": "python-docs", "kind": "python-docs", "max_documents": 120}]
    report = run(job(tmp_path / "data", sources, unit_bytes=200_000, tokenizer={"vocab_size": 2000}))
    output = StoragePath(str(tmp_path / "data"))
    found = documents(output) + documents(output, "held_out")
    assert Counter(found) == Counter(one for _, one in itertools.islice(python_docs.documents(), 120))
    assert report.documents == 120
    assert any("reserved words" in one for one in found)
    assert any(one.startswith("module argparse\n\nCommand-line parsing library") for one in found)


def test_a_module_is_read_without_running_it() -> None:
    source = '''
        """Top."""
        raise SystemExit("imported")
        class A:
            """An A."""
            def f(self, x): """Does f."""
    '''
    assert python_docs.module_text("m", textwrap.dedent(source)) == (
        "module m\n\nTop.\n\nclass m.A\n\nAn A.\n\ndef m.A.f(self, x)\n\nDoes f.\n"
    )
    assert python_docs.module_text("m", "not python (") == ""


def test_a_module_is_read_where_python_mistakes_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, calls = ast.parse, []

    def mistaken(source: str) -> ast.Module:
        calls.append(source)
        if len(calls) < 3:
            raise SystemError("AST constructor recursion depth mismatch (before=153, after=162)")
        return parse(source)

    monkeypatch.setattr(ast, "parse", mistaken)
    assert python_docs.module_text("m", '"""Top."""') == "module m\n\nTop.\n"
    assert len(calls) == 3


def test_real_text(tmp_path: Path) -> None:
    if not TEXTS_FOLDER.is_dir():
        pytest.skip("the shared sample texts are not on this machine")
    sources = [
        {"name": "plays", "glob": f"{TEXTS_FOLDER}/tinyshakespeare*.gz", "document": "block"},
        {"name": "wiki", "glob": f"{TEXTS_FOLDER}/wikipedia*.gz", "document": "line"},
        {"name": "web", "kind": "jsonl", "glob": f"{TEXTS_FOLDER}/c4_docs.jsonl.gz"},
    ]
    report = run(job(tmp_path / "data", sources, sequence_length=512, tokenizer={"vocab_size": 4096}, held_out=0.02))
    output = StoragePath(str(tmp_path / "data"))
    found = documents(output) + documents(output, "held_out")
    counts = report.manifest.sources
    assert counts["wiki"]["documents"] + counts["wiki"]["held_out_documents"] == 24
    assert counts["web"]["documents"] + counts["web"]["held_out_documents"] == 240
    with gzip.open(TEXTS_FOLDER / "c4_docs.jsonl.gz", "rt", encoding="utf-8") as stream:
        assert not Counter(json.loads(line)["text"] for line in stream) - Counter(found)
    assert sum(len(one.encode()) for one in found) / report.tokens > 3, "bytes a token"


def test_a_project_that_moved_as_a_whole_is_prepared_already(tmp_path: Path) -> None:
    from raylm.config.load import load_job
    from raylm.prep.prepare import prepare
    from raylm.prep.tasks import here

    project = tmp_path / "here"
    (project / "raw").mkdir(parents=True)
    (project / "raw" / "a.txt").write_text("\n\n".join(f"paragraph {n} of a few words" for n in range(300)))
    (project / "block.txt").write_text("example.com\n")
    (project / "job.yaml").write_text(
        "storage: runs\nprepare:\n  sources: [{glob: 'raw/*.txt', document: block}]\n"
        "  steps: [{blocklist: {domain_files: [block.txt]}}]\n  sequence_length: 64\n  tokenizer: {vocab_size: 300}\n"
    )
    first = prepare(load_job(project / "job.yaml"), session=here)
    moved = project.rename(tmp_path / "there")
    again = prepare(load_job(moved / "job.yaml"), session=here)
    assert again.already_done
    assert again.manifest.fingerprint == first.manifest.fingerprint
    assert str(tmp_path) not in (moved / "runs" / "run" / "data" / "manifest.json").read_text()
    with pytest.raises(ConfigError, match=r'prepare.sources.0.glob is "../../../raw/\*.txt" there and "/elsewhere'):
        prepare(load_job(moved / "job.yaml", ["prepare.sources.0.glob=/elsewhere/*.txt"]), session=here)
