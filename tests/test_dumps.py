"""Web archives and Wikipedia dumps become documents; what is damaged or skipped is reported, never dropped."""

from __future__ import annotations

import base64
import bz2
import datetime
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from raylm.config.job import Job
from raylm.config.load import load_job, parse_job
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.quarantine import Quarantine
from raylm.prep.checks.skipped import Skipped
from raylm.prep.passes import UnitLog, UnitResult
from raylm.prep.prepare import prepare
from raylm.prep.ranges import FileRange
from raylm.prep.readers.listing import list_files
from raylm.prep.readers.read import read_range
from raylm.prep.tasks import here
from raylm.prep.units import Unit, WorkList, ranges_of
from raylm.records import Document
from raylm.rows import compressed
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data, needs_data

ROOT = Path(__file__).parents[1]
DUMPS = external_data("web-and-wiki-dumps")
needs_dumps = needs_data("web-and-wiki-dumps")


def read(path: Path, kind: str, piece: FileRange | None = None, **settings: Any) -> tuple[list[Document], Skipped]:
    source = SourceSettings.model_validate({"name": "x", "kind": kind, "glob": str(path), **settings})
    skipped = Skipped()
    piece = piece or FileRange(str(path), path.stat().st_size)
    documents = list(read_range(source, piece, Connection(), skipped))
    quarantine = Quarantine(WorkList({}, (Unit(0, "x", (piece,)),)), 0.5)
    quarantine.add(UnitResult(0, "x", UnitLog(skipped)))
    quarantine.check_all()
    return documents, skipped


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


# -- web archives --------------------------------------------------------------------------------------------------


def record(
    kind: str,
    body: bytes,
    *,
    length: int | None = None,
    digest: bytes | None = None,
    url: str = "http://example.org/",
    **headers: str,
) -> bytes:
    """One WARC record; `length` and `digest` for headers that lie."""
    of_block = base64.b32encode(hashlib.sha1(digest if digest is not None else body).digest()).decode()
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        "WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789abc>",
        "WARC-Date: 2026-01-01T00:00:00Z",
        f"WARC-Target-URI: {url}",
        f"WARC-Block-Digest: sha1:{of_block}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body + b"\r\n\r\n"


def response(html: bytes, content_type: str = "text/html", status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{extra}\r\n".encode()
    return head + html


def page(words: str) -> bytes:
    return f"<html><head><title>t</title></head><body><p>{words}</p><script>no()</script></body></html>".encode()


HTTP = {"Content_Type": "application/http; msgtype=response"}


def test_every_record_of_an_archive_is_a_page_or_counted(tmp_path: Path) -> None:
    good = record("response", response(page("A good page.")), **HTTP)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page("In chunks.")), page("In chunks."))
    packed = gzip.compress(page("Packed on its way."))
    records = [
        record("warcinfo", b"software: test\r\n"),
        record("request", b"GET / HTTP/1.1\r\n\r\n", Content_Type="application/http; msgtype=request"),
        good,
        record("response", response(chunked, extra="Transfer-Encoding: chunked\r\n"), **HTTP),
        record("response", response(packed, extra="Content-Encoding: gzip\r\n"), **HTTP),
        record("response", response(page("gone"), status="404 Not Found"), **HTTP),
        record("response", response(b"\x89PNG", "image/png"), **HTTP),
        record("response", response(b"<html><body><img src=x></body></html>"), **HTTP),
        record("response", response(page("changed")), digest=b"another", **HTTP),
        record("revisit", response(b""), **HTTP),
        record("response", response(page("long " * 400)), **HTTP),
        record("resource", page("A resource."), Content_Type="text/html"),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    documents, skipped = read(path, "warc", max_bytes=1500)
    assert texts(documents) == ["A good page.", "In chunks.", "Packed on its way.", "A resource."]
    assert documents[0].id == f"{path}#2"
    assert skipped.counts() == {
        "skipped_broken_record": 1,
        "skipped_http_status": 1,
        "skipped_no_page": 1,
        "skipped_no_text": 1,
        "skipped_other_record": 2,
        "skipped_revisit": 1,
        "skipped_too_large": 1,
    }
    assert skipped.examples["broken_record"] == [f"{path} record 8 is damaged: its block digest differs"]
    assert skipped.examples["too_large"][0].startswith(f"{path}#10: ")


@pytest.mark.parametrize(
    ("says", "is_in"), [("utf-8", "cp1252"), ("iso-8859-1", "utf-8"), ("no-such-charset", "utf-8"), ("", "utf-16")]
)
def test_a_page_whose_encoding_lies_is_read_all_the_same(tmp_path: Path, says: str, is_in: str) -> None:
    words = "Fünf größere Ärzte essen süßes Gebäck während der Mittagspause, schön langsam und für müde Füße."
    html = page(words).decode().encode(is_in)
    charset = f"text/html; charset={says}" if says else "text/html"
    path = tmp_path / "a.warc"
    path.write_bytes(record("response", response(html, charset), **HTTP))
    (document,), _ = read(path, "warc")
    assert document.text == words


def test_menus_are_left_out_unless_all_text_is_wanted(tmp_path: Path) -> None:
    article = "<p>The river rose twice that spring, and nobody in the valley had seen it so high before.</p>" * 6
    html = f"<html><body><nav><ul><li>Home</li><li>Contact</li></ul></nav><main>{article}</main></body></html>"
    path = tmp_path / "a.warc"
    path.write_bytes(record("response", response(html.encode()), **HTTP))
    assert "Contact" not in read(path, "warc")[0][0].text
    assert "Contact" in read(path, "warc", extract="all")[0][0].text


def test_wet_files_give_their_text_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.wet"
    plain = {"Content_Type": "text/plain"}
    path.write_bytes(
        record("warcinfo", b"x: y\r\n")
        + record("conversion", "Größe\nzwei Zeilen\n".encode(), **plain)
        + record("conversion", b"no \xff text", **plain)
    )
    documents, skipped = read(path, "wet")
    assert texts(documents) == ["Größe\nzwei Zeilen\n"]
    assert skipped.counts() == {"skipped_encoding": 1, "skipped_other_record": 1}


def cld2(code: str) -> bytes:
    found = {"reliable": True, "languages": [{"code": code, "text-covered": 0.9}, {"code": "la"}]}
    return f"fetchTimeMs: 1\r\nlanguages-cld2: {json.dumps(found)}\r\n".encode()


def test_pages_carry_what_the_archive_says_of_them(tmp_path: Path) -> None:
    words = "Wir gehen heute wieder durch den Wald, und es regnet nicht mehr."
    html = page(words).replace(b"<html>", b'<html lang="de-AT">')
    fields = {"Content_Type": "application/warc-fields"}
    of_server = response(page(words), extra="Content-Language: fr, en\r\n")
    records = [
        record("response", response(html), url="http://a.org/1", **HTTP),
        record("metadata", cld2("en"), url="http://a.org/1", **fields),
        record("response", response(html), url="http://a.org/2", **HTTP),
        record("metadata", cld2("en"), url="http://a.org/other", **fields),
        record("response", of_server, url="http://a.org/3", **HTTP),
        record("metadata", b"languages-cld2: {no json\r\n", url="http://a.org/3", **fields),
        record("response", response(page(words)), url="http://a.org/4", **HTTP),
    ]
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(records))
    documents, _ = read(path, "warc")
    assert [document.meta.get("language") for document in documents] == ["en", "de", "fr", None]
    about = {"url": "http://a.org/4", "date": "2026-01-01T00:00:00Z", "title": "t"}
    assert documents[3].meta == about
    path.write_bytes(b"".join(records)[:-100])
    source = SourceSettings.model_validate({"name": "x", "kind": "warc", "glob": str(path)})
    found = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), Skipped()))
    assert found == documents[:3], "the page that waited for its language is not lost where the file is cut"


@pytest.mark.parametrize(
    ("said", "language"), [("spa,eng", "es"), ("zho", "zh"), ("arg", "an"), ("xx-", None), ("", None)]
)
def test_languages_are_written_as_iso_639_1_where_that_has_them(
    tmp_path: Path, said: str, language: str | None
) -> None:
    path = tmp_path / "a.warc.wet"
    path.write_bytes(record("conversion", b"words", WARC_Identified_Content_Language=said))
    (document,), _ = read(path, "wet")
    assert document.meta.get("language") == language


def envelope(kind: str, url: str, payload: dict[str, Any]) -> bytes:
    head = {"WARC-Type": kind, "WARC-Target-URI": url, "WARC-Date": "2026-01-01T00:00:00Z"}
    content = {"Container": {}, "Envelope": {"WARC-Header-Metadata": head, "Payload-Metadata": payload}}
    return record("metadata", json.dumps(content).encode(), Content_Type="application/json")


def seen(head: dict[str, Any] | None, status: str = "200", **headers: str) -> dict[str, Any]:
    html = {} if head is None else {"HTML-Metadata": {"Head": head, "Links": [{"path": "A@/href", "url": "/a"}] * 3}}
    return {"HTTP-Response-Metadata": {"Response-Message": {"Status": status}, "Headers": headers, **html}}


def test_wat_files_give_titles_and_descriptions(tmp_path: Path) -> None:
    described = {"name": "Description", "content": "About  rivers."}
    lang = {"name": "HTML@/lang", "content": "es-MX"}
    noted = [{"Name": "languages-cld2", "Value": json.dumps({"languages": [{"code": "en"}]})}]
    found = {"WARC-Metadata-Metadata": {"Metadata-Records": noted}}
    records = [
        record("warcinfo", b"x: y\r\n"),
        envelope("request", "http://a.org/1", {}),
        envelope("response", "http://a.org/1", seen({"Title": "Rivers\n of  the north", "Metas": [described, lang]})),
        envelope("metadata", "http://a.org/1", found),
        envelope("response", "http://a.org/2", seen({"Metas": [described, lang]})),
        envelope("response", "http://a.org/3", seen({"Title": "Lakes"}, **{"content-language": "de"})),
        envelope("response", "http://a.org/4", seen({"Title": "Gone"}, status="404")),
        envelope("response", "http://a.org/5", seen(None)),
        envelope("response", "http://a.org/6", seen({"Metas": [lang, 5]})),
        envelope("revisit", "http://a.org/7", {}),
        record("metadata", b"{no json", Content_Type="application/json"),
        record("metadata", b"[]", Content_Type="application/json"),
        envelope("response", "http://a.org/8", {"HTTP-Response-Metadata": None}),
        envelope("response", "http://a.org/9", seen({"Title": ["no"], "Metas": 5})),
    ]
    path = tmp_path / "a.warc.wat.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    source = SourceSettings.model_validate({"name": "x", "kind": "wat", "glob": str(path)})
    skipped = Skipped()
    documents = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    assert texts(documents) == ["Rivers of the north\n\nAbout rivers.", "About rivers.", "Lakes"]
    date = {"date": "2026-01-01T00:00:00Z", "links": 3}
    assert [document.meta for document in documents] == [
        {"url": "http://a.org/1", "title": "Rivers of the north", "language": "en", **date},
        {"url": "http://a.org/2", "language": "es", **date},
        {"url": "http://a.org/3", "title": "Lakes", "language": "de", **date},
    ]
    assert skipped.counts() == {
        "skipped_broken_record": 2,
        "skipped_http_status": 2,
        "skipped_no_page": 1,
        "skipped_no_text": 2,
        "skipped_other_record": 3,
        "skipped_revisit": 1,
    }
    assert skipped.examples["no_text"] == [f"{path}#8: http://a.org/6", f"{path}#13: http://a.org/9"]


WHOLE = record("response", response(page("one")), **HTTP) + record("response", response(page("two")), **HTTP)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "cut in a body": (WHOLE[:-30], r"ends inside record 1: \d+ of \d+ bytes are missing"),
    "cut in a header": (WHOLE[: len(WHOLE) // 2 + 60], "ends inside record 1: its header is not whole"),
    "too short a length": (
        record("response", response(page("one")), length=50, **HTTP) + WHOLE,
        "is damaged or no WARC file: no record begins at byte",
    ),
    "too long a length": (
        record("response", response(page("one")), length=10_000, **HTTP) + WHOLE,
        "ends inside record 0",
    ),
    "no length": (b"WARC/1.0\r\nWARC-Type: response\r\n\r\n", "its header has no Content-Length"),
    "an ARC file": (
        b"filedesc://x.arc 127.0.0.1 20140216050221 text/plain 75\n1 0 x\n",
        "is an ARC file, not a WARC file",
    ),
    "binary": (bytes(range(256)) * 20, "no WARC file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_an_error_and_no_silent_end(tmp_path: Path, name: str) -> None:
    data, message = DAMAGED[name]
    path = tmp_path / "a.warc"
    path.write_bytes(data)
    with pytest.raises(DataError) as found:
        read(path, "warc")
    assert str(path) in str(found.value)
    assert re.search(message, f"{found.value} {found.value.hint}")


# -- compressed files ----------------------------------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", PACKERS)
def test_files_are_unpacked_by_their_ending(tmp_path: Path, ending: str) -> None:
    lines = [f"line {number} of many" for number in range(5000)]
    path = tmp_path / f"a.txt.{ending}"
    data = "\n".join(lines).encode()
    path.write_bytes(PACKERS[ending](data))
    assert texts(read(path, "text", document="line")[0]) == lines
    path.write_bytes(PACKERS[ending](data[:40_000]) + PACKERS[ending](data[40_000:]))
    assert texts(read(path, "text", document="line")[0]) == lines, "two streams one after the other"


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"a.txt.{ending}"
    packed = PACKERS[ending](b"".join(b"line %d\n" % (number * 7919) for number in range(20_000)))
    path.write_bytes(packed[: len(packed) // 2] if damage == "cut" else b"this was never packed by anybody")
    with pytest.raises(DataError, match=rf"a\.txt\.{ending} cannot be unpacked: ") as found:
        read(path, "text", document="line")
    assert found.value.hint


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_ALWAYS_UNPACKED", 100_000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"word\n" * 1_000_000))
    with pytest.raises(DataError, match=r"a\.txt\.gz unpacks to more than \d+ bytes: a bomb, or damaged"):
        read(path, "text", document="line")
    assert len(read(path, "text", document="line", max_compression_ratio=2000)[0]) == 1_000_000


@pytest.mark.parametrize(
    ("settings", "data", "kept", "too_large"),
    [
        ({"document": "line"}, b"short\n" + b"x" * 5000 + b"\nalso short\n" + b"y" * 101, ["short", "also short"], 2),
        ({"document": "line"}, b"x" * 100 + b"\n" + b"y" * 99 + b"\n", ["y" * 99], 1),
        ({"document": "block"}, b"a\nb\n\n" + b"long line\n" * 50 + b"\n\nc\nd", ["a\nb", "c\nd"], 1),
        ({"document": "block"}, b"a\n" + b"x" * 500 + b"\nb\n\nc\n", ["c"], 1),
        ({"document": "file"}, b"x" * 101, [], 1),
        ({"document": "file"}, b"x" * 100, ["x" * 100], 0),
    ],
)
def test_what_is_too_large_is_left_out_and_never_held(
    tmp_path: Path, settings: dict[str, Any], data: bytes, kept: list[str], too_large: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    documents, skipped = read(path, "text", max_bytes=100, **settings)
    assert texts(documents) == kept
    assert skipped.reasons["too_large"] == too_large


def test_a_source_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(record("response", response(b"<html></html>"), **HTTP) + record("warcinfo", b"x: y\r\n"))
    source = {"kind": "warc", "glob": str(path)}
    job = Job.model_validate({"prepare": {"sources": [source], "output": str(tmp_path / "data")}})
    with pytest.raises(DataError, match=r"no document: .* \(1 no text, 1 other record; such as .*a\.warc#0: http"):
        prepare(job, session=here)


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "book"])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x7fELF\0\0\0\1", "binary or UTF-16: byte 4 is zero"),
        ("two words".encode("utf-16"), "UTF-16"),
        ("two words".encode("utf-16-le"), "binary or UTF-16: byte 1 is zero"),
        (gzip.compress(b"words"), "a gzip file; its name must end in .gz"),
        (b"PK\x03\x04abc", "a zip archive"),
    ],
)
def test_binary_files_are_no_text(tmp_path: Path, kind: str, data: bytes, what: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.txt is no UTF-8 text but {what}"):
        read(path, kind)


def test_texts_of_zeros_and_control_characters_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    start = "good line\n" * 500
    path.write_text(f"{start}bad \0 line\n\x01\x02\x03\nwith \x1b[31mcolour\x1b[0m on a line of some length\n")
    source = SourceSettings.model_validate({"name": "x", "glob": str(path), "document": "line"})
    skipped = Skipped()
    documents = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    assert len(documents) == 501
    assert skipped.counts() == {"skipped_broken_record": 2}
    assert skipped.examples["broken_record"][0] == (
        f"{path} at {len(start)}: the text is binary, of zeros or control characters"
    )


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n")
    assert texts(read(path, "text")[0]) == ["one\n"]
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert texts(read(path, "jsonl")[0]) == ["one"]


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["stream", "file"])
def test_arrow_files_of_both_formats_are_read_and_a_cut_is_noticed(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"n": [1, 2, 3, 4], "text": ["one", None, "drei", "quatre"]})
    make = pa.ipc.new_stream if format == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    documents, skipped = read(path, "arrow")
    assert texts(documents) == ["one", "drei", "quatre"]
    assert skipped.counts() == {"skipped_empty": 1}
    with pytest.raises(DataError, match="has no column 'body'; it has: n, text"):
        read(path, "arrow", column="body")
    whole, noticed = path.read_bytes(), 0
    for size in range(0, whole.rindex(b"\xff\xff\xff\xff\0\0\0\0"), 8):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cannot be read as Arrow|without its end mark") as found:
            read(path, "arrow")
        noticed += "without its end mark" in str(found.value)
    assert noticed, "Arrow itself does not notice each of them"


def test_csv_rows_hold_what_their_quotes_say(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    rows = 'id,text\r\n1,"two\nlines, with ""quotes"""\r\n2,plain\r\n\r\n3\r\n4,Größe\r\n'
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + rows.encode()))
    documents, skipped = read(path, "csv")
    assert texts(documents) == ['two\nlines, with "quotes"', "plain", "Größe"]
    assert documents[0].id == f"{path}#3"
    assert skipped.examples == {"broken_record": [f"{path} line 6 is broken: 1 values for 2 columns"]}
    assert texts(read(path, "csv", column="id")[0]) == ["1", "2", "4"]
    tabs = tmp_path / "b.tsv"
    tabs.write_bytes(b"text\tn\nbad \xff\t1\ngood, good\t2\n")
    with pytest.raises(DataError, match="0xff at line 2, byte 4"):
        read(tabs, "csv")
    assert texts(read(tabs, "csv", encoding_errors="skip")[0]) == ["good, good"]
    (tmp_path / "c.csv").write_bytes(b"")
    assert read(tmp_path / "c.csv", "csv")[1].reasons == {"empty_file": 1}


def write_table(path: Path, kind: str, columns: dict[str, list[Any]]) -> None:
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "csv":
        csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl"])
def test_named_columns_are_taken_along(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(path, kind, {"text": ["one", "two"], "url": ["a", "b"], "score": [0.5, 2.0], "other": [1, 2]})
    documents, _ = read(path, kind, meta=["url", "score"])
    numbers: list[str | float] = ["0.5", "2"] if kind == "csv" else [0.5, 2.0]
    assert [document.meta for document in documents] == [
        {"url": url, "score": score} for url, score in zip("ab", numbers, strict=True)
    ]
    if kind == "jsonl":  # where each record has keys of its own; one that none has is refused before reading begins
        assert [document.meta for document in read(path, kind, meta=["date"])[0]] == [{}, {}]
        return
    with pytest.raises(DataError, match=r"has no (column|key) 'date'; it has: .*url") as found:
        read(path, kind, meta=["date"])
    assert "`meta` of source 'x'" in str(found.value.hint)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_what_is_null_is_not_taken_along_and_lists_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(path, kind, {"text": ["one", "two"], "n": [None, 3], "tags": [["a"], ["b"]], "is_good": [True, False]})
    documents, _ = read(path, kind, meta=["n", "is_good"])
    assert [document.meta for document in documents] == [{"is_good": 1}, {"n": 3, "is_good": 0}]
    with pytest.raises(DataError, match="has list as 'tags', which `meta` names"):
        read(path, kind, meta=["tags"])


def test_what_is_taken_along_reaches_the_steps_behind_a_barrier_and_runs_end_in_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"text": f"words number {n // 2} of it", "language": "de" if n % 3 else "en"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    in_english = {"text": [f"a book, page {n}, in English" for n in range(4)], "language": ["en"] * 4}
    write_table(tmp_path / "b.parquet", "parquet", in_english)
    sources = [
        {"name": "a", "kind": "jsonl", "glob": f"{tmp_path}/a.jsonl", "meta": ["language"]},
        {"name": "b", "kind": "parquet", "glob": f"{tmp_path}/b.parquet", "meta": ["language"]},
    ]
    settings = {
        "sources": sources,
        "steps": [{"exact_duplicates": {}}, {"sample": {"by": "language", "shares": {"en": 1}}}],
        **{"tokenizer": {"vocab_size": 300}, "sequence_length": 32, "held_out": 0, "unit_bytes": 500},
    }
    first = {n // 2: rows[n]["language"] for n in reversed(range(60))}  # of equal documents the first stays
    reports = [
        prepare(Job.model_validate({"prepare": {**settings, "output": str(tmp_path / f"data-{run}")}}), session=here)
        for run in range(2)
    ]
    assert reports[0].documents == sum(language == "en" for language in first.values()) + 4
    shards = [sorted((tmp_path / f"data-{run}/train").iterdir()) for run in range(2)]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


def test_dates_are_taken_along_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, "parquet", {"text": ["one"], "day": [datetime.date(2026, 1, 2)], "n": [float("nan")]})
    (document,), _ = read(path, "parquet", meta=["day", "n"])
    assert document.meta == {"day": "2026-01-02"}


def test_meta_belongs_to_tables() -> None:
    text = "name: a\nprepare:\n  sources:\n  - {name: x, kind: warc, glob: '*', meta: [url]}\n"
    with pytest.raises(ConfigError, match=r"job\.yaml:4: unknown key 'prepare\.sources\.0\.meta'") as caught:
        parse_job(text, origin="job.yaml")
    assert caught.value.hint == "'meta' is a key of kind: arrow or csv or huggingface or jsonl or parquet"


# -- folders of Hugging Face ---------------------------------------------------------------------------------------


def hub(folder: Path, split: str = "train", unit_bytes: int = 10**6, **settings: Any) -> list[str]:
    source = SourceSettings.model_validate(
        {"name": "x", "kind": "huggingface", "glob": str(folder), "split": split, **settings}
    )
    pieces = [
        piece for _, piece, _ in ranges_of(source, SOURCES.get(source.kind).files(source, Connection()), unit_bytes)
    ]
    return [document.text for piece in pieces for document in read_range(source, piece, Connection(), Skipped())]


def put(folder: Path, name: str, *rows: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text("\n".join(rows))
    else:
        write_table(path, path.suffix.removeprefix(".").replace("tsv", "csv"), {"text": list(rows)})


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], "train", [0, 1]),
        (["data/train-00000-of-00001.parquet", "data/extra-00000-of-00001.parquet"], "extra", [1]),
        (["train.jsonl", "test.jsonl", "dataset_infos.json", "README.md"], "test", [1]),
        (["my-train-file.csv", "eval1.csv"], "test", [1]),
        (["train/a.jsonl", "dev/a.jsonl", ".cache/train.jsonl"], "validation", [1]),
        (["some.jsonl", "things.jsonl"], "train", [0, 1]),
        (["latest.txt"], "train", [0]),
    ],
)
def test_splits_are_told_by_names(tmp_path: Path, names: list[str], split: str, chosen: list[int]) -> None:
    for number, name in enumerate(names):
        if name.endswith((".md", "infos.json")):
            (tmp_path / name).write_text("{}")
        else:
            put(tmp_path, name, f"{number} one", f"{number} two")
    expected = [f"{number} {word}" for number in chosen for word in ("one", "two")]
    assert hub(tmp_path, split) == expected
    assert hub(tmp_path, split, unit_bytes=20) == expected, "a large file is cut as its own kind allows"


def test_saved_data_sets_are_read_in_the_order_that_they_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(2):
            put(tmp_path / split, f"data-0000{number}-of-00002.arrow", f"{split} {number}")
        state = {"_data_files": [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (1, 0)], "_split": split}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert hub(tmp_path, "test") == ["test 1", "test 0"]
    assert hub(tmp_path / "train", "train") == ["train 1", "train 0"]
    with pytest.raises(DataError, match="has no split 'dev'; it has: test, train"):
        hub(tmp_path, "dev")
    (tmp_path / "test/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"state\.json names test/data-00001-of-00002\.arrow, which is not there"):
        hub(tmp_path, "test")
    (tmp_path / "train/state.json").unlink()
    with pytest.raises(DataError, match=r"has no state\.json"):
        hub(tmp_path)


def test_a_readme_names_configurations(tmp_path: Path) -> None:
    put(tmp_path, "en/part.jsonl", "english")
    put(tmp_path, "de/part.jsonl", "deutsch")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.jsonl\n"
        "- config_name: de\n  data_files:\n  - {split: test, path: ['de/*.jsonl']}\n---\n# Words\n"
    )
    assert hub(tmp_path, config="en") == ["english"]
    assert hub(tmp_path, "test", config="de") == ["deutsch"]
    with pytest.raises(DataError, match="has several configurations: de, en"):
        hub(tmp_path)
    with pytest.raises(DataError, match="has no configuration 'fr'; it has: de, en"):
        hub(tmp_path, config="fr")
    with pytest.raises(DataError, match="has no split 'train'; it has: test"):
        hub(tmp_path, config="de")


def test_a_folder_that_is_none_and_mixed_kinds_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*/nowhere, or nothing in it"):
        hub(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match="has no split 'train'; it has: no data file"):
        hub(tmp_path)
    put(tmp_path, "train.csv", "a")
    put(tmp_path, "train.parquet", "a")
    with pytest.raises(DataError, match="is there as csv and parquet"):
        hub(tmp_path)


def test_files_are_found_by_a_list_of_paths(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(name)
    paths = tmp_path / "text.paths.gz"
    paths.write_bytes(gzip.compress(b"two.txt\n\none.txt\n"))
    source = SourceSettings.model_validate({"paths": str(paths), "prefix": f"{tmp_path}/"})
    assert [(place.url, size) for place, size in list_files(source, Connection())] == [
        (f"{tmp_path}/two.txt", 3),
        (f"{tmp_path}/one.txt", 3),
    ]
    # Without a prefix, lines start from the list's folder.
    paths.write_bytes(gzip.compress(f"two.txt\n{tmp_path}/one.txt\n".encode()))
    beside = SourceSettings.model_validate({"paths": str(paths)})
    assert [place.name for place, _ in list_files(beside, Connection())] == ["two.txt", "one.txt"]
    paths.write_bytes(gzip.compress(b"two.txt\nfour.txt\n"))
    with pytest.raises(DataError, match=r"four\.txt, line 2 of .*text\.paths\.gz, does not exist"):
        list_files(source, Connection())
    for content, message in [(b"", "names no file"), (b"\xff\xfe", "is no list of files")]:
        paths.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=message):
            list_files(source, Connection())


# -- Wikipedia -----------------------------------------------------------------------------------------------------

SITE = "<siteinfo><sitename>Wikipedia</sitename></siteinfo>"
MARKUP = """{{Infobox|name={{nested|1}}}}
'''Amber''' is ''fossil'' [[tree resin|resin]] from [[Baltic Sea|the Baltic]].<ref name="a">Books.</ref> It is &gt; old.
[[File:Amber.jpg|thumb|A [[stone]] in hand]]
== History ==
=== Empty ===
{| class="wikitable"
| cell
|}
=== Trade ===
Traded since the [[Stone Age]].<br/>Widely.<!-- hidden -->
* first
* [http://example.org second]
== References ==
<references />
== External links ==
{{Commons}}
[[Category:Resins]]"""
PLAIN = """Amber

Amber is fossil resin from the Baltic. It is > old.

History
Trade
Traded since the Stone Age.
Widely.
first
second"""


def wiki_page(number: int, title: str, markup: str, namespace: int = 0, redirect: str = "") -> str:
    markup = markup.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    moved = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{moved}"
        "<revision><id>9</id><timestamp>2026-01-02T03:04:05Z</timestamp>"
        f'<text xml:space="preserve">{markup}</text></revision></page>\n'
    )


def dump(*pages: str, encoding: str = "utf-8") -> bytes:
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding != "utf-8" else ""
    root = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de">'
    whole = f"{head}{root}{SITE}{''.join(pages)}</mediawiki>"
    return whole.encode(encoding)


PAGES = [
    wiki_page(1, "Amber", MARKUP),
    wiki_page(2, "Ambre", "#REDIRECT [[Amber]]", redirect="Amber"),
    wiki_page(3, "Talk:Amber", "Is it?", namespace=1),
    wiki_page(4, "Nothing", "{{stub}}"),
    wiki_page(5, "Größe", "Die Größe zählt."),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_articles_keep_their_words_and_lose_their_markup(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "wiki.xml.bz2"
    path.write_bytes(bz2.compress(dump(*PAGES, encoding=encoding)))
    documents, skipped = read(path, "wikipedia")
    assert texts(documents) == [PLAIN, "Größe\n\nDie Größe zählt."]
    assert [document.id for document in documents] == [f"{path}#1", f"{path}#5"]
    assert documents[0].meta == {"title": "Amber", "date": "2026-01-02T03:04:05Z", "language": "de"}
    assert skipped.counts() == {"skipped_namespace": 1, "skipped_no_text": 1, "skipped_redirect": 1}


def write_multistream(folder: Path) -> tuple[Path, StoragePath]:
    """A dump as Wikimedia makes them: the head, runs of pages and the tail, each a bz2 stream; and its index."""
    pages = [wiki_page(number, f"Page {number}", f"Text of page {number}. " * 30) for number in range(1, 26)]
    head, tail = dump("@").decode().split("@")
    streams = [head, *("".join(pages[first : first + 4]) for first in range(0, 25, 4))]
    packed = [bz2.compress(stream.encode()) for stream in streams[:-1]]
    packed.append(bz2.compress(streams[-1].encode()) + bz2.compress(tail.encode()))
    path = folder / "xwiki-20260101-pages-articles-multistream.xml.bz2"
    path.write_bytes(b"".join(packed))
    begins = [sum(map(len, packed[: number + 1])) for number in range(len(packed) - 1)]
    index = "".join(f"{begins[(n - 1) // 4]}:{n}:Page {n}\n" for n in range(1, 26))
    (folder / "xwiki-20260101-pages-articles-multistream-index.txt.bz2").write_bytes(bz2.compress(index.encode()))
    return path, StoragePath(str(path))


@pytest.mark.parametrize("unit_bytes", [1, 500, 900, 10_000])
def test_a_multistream_dump_is_cut_between_its_streams(tmp_path: Path, unit_bytes: int) -> None:
    path, place = write_multistream(tmp_path)
    whole, _ = read(path, "wikipedia")
    assert len(whole) == 25
    source = SourceSettings.model_validate({"name": "x", "kind": "wikipedia", "glob": str(path)})
    pieces = [piece for _, piece, _ in ranges_of(source, [(place, place.size())], unit_bytes)]
    assert (len(pieces) > 1) == (unit_bytes < place.size())
    parts = [document for piece in pieces for document in read(path, "wikipedia", piece)[0]]
    assert parts == whole


def test_without_its_index_a_multistream_dump_is_read_whole(tmp_path: Path) -> None:
    path, place = write_multistream(tmp_path)
    index = tmp_path / "xwiki-20260101-pages-articles-multistream-index.txt.bz2"
    source = SourceSettings.model_validate({"name": "x", "kind": "wikipedia", "glob": str(path)})
    index.write_bytes(bz2.compress(b"no numbers here\n"))
    with pytest.raises(DataError, match=r"index\.txt\.bz2 is no index of a multistream dump"):
        list(ranges_of(source, [(place, place.size())], 100))
    index.unlink()
    assert [piece for _, piece, _ in ranges_of(source, [(place, place.size())], 100)] == [
        FileRange(str(path), place.size())
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dump(*PAGES)[:-300], "is broken XML: "),
        (dump(*PAGES).replace(b"</ns>", b"", 1), "is broken XML: .* line "),
        (b"", "is broken XML"),
        (b"plain words", "is broken XML"),
        (dump(wiki_page(1, "Long", "word " * 100_000)), "holds a page of more than 100000 bytes"),
    ],
)
def test_a_damaged_dump_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "wiki.xml"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as found:
        read(path, "wikipedia", max_bytes=100_000)
    assert found.value.hint


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    """A dump from a stranger could grow a thousandfold, or name files of this machine."""
    (tmp_path / "secret").write_text("a secret")
    body = wiki_page(1, "T", "@").replace("@", "before &a; &b; after")
    bomb = f'<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b SYSTEM "file://{tmp_path}/secret">]>'.encode() + dump(body)
    path = tmp_path / "wiki.xml"
    path.write_bytes(bomb)
    documents, _ = read(path, "wikipedia")
    assert "secret" not in str(documents)
    assert "lol" not in str(documents)


# -- the job files, on real dumps ----------------------------------------------------------------------------------

SMALL = [
    *("prepare.tokenizer.vocab_size=600", "prepare.sequence_length=64", "prepare.held_out=0.05"),
    *("model.preset=tiny", "batch.sequences=4", "batch.micro_batch=2", "train.steps=2", "workers.max=2"),
    "optim.warmup_steps=0",
]


@needs_dumps
def test_the_wikipedia_job_on_a_real_dump(tmp_path: Path) -> None:
    job = load_job(
        str(ROOT / "jobs/prepare-wikipedia.yaml"),
        [f"prepare.sources.0.glob={DUMPS}/enwiki-*.xml.bz2", f"storage={tmp_path}", *SMALL],
    )
    report = prepare(job, session=here)
    normalize, language, near_duplicates, _ = report.manifest.steps
    assert normalize["documents"] == 73
    assert report.skipped == {"redirect": 87}
    assert language["tallies"]["language"] == {"en": 73}
    assert report.documents == near_duplicates["kept"] == 73


@needs_dumps
def test_real_records_of_common_crawl_say_where_they_are_from() -> None:
    about = {"url": "https://an.wikipedia.org/wiki/Escopete", "date": "2024-05-18T01:58:10Z", "language": "es"}
    (document,), _ = read(DUMPS / "whirlwind.warc.gz", "warc")
    assert document.meta == {**about, "title": "Escopete - Biquipedia, a enciclopedia libre"}
    (document,), _ = read(DUMPS / "whirlwind.warc.wet.gz", "wet")
    assert document.meta == about
    documents, skipped = read(DUMPS / "whirlwind.warc.wat.gz", "wat")
    assert documents == [], "the one envelope in it is of a request"
    assert skipped.counts() == {"skipped_other_record": 2}
    assert skipped.examples["other_record"][0].endswith(f"#1: {about['url']}")
    documents, _ = read(DUMPS / "aut/crawl-part1.warc.gz", "warc")
    assert (len(documents), sum("title" in document.meta for document in documents)) == (59, 56)


@needs_dumps
def test_an_arc_file_in_place_of_a_warc_is_told() -> None:
    with pytest.raises(DataError, match=r"example\.arc\.gz is an ARC file, not a WARC file"):
        read(DUMPS / "warcio/example.arc.gz", "warc")


@needs_dumps
def test_the_web_job_on_real_archives_ends_in_shards_that_train_uses(tmp_path: Path) -> None:
    from raylm.train.without_ray import alone

    (tmp_path / "crawl").mkdir()
    for path in [*DUMPS.glob("*.gz"), *DUMPS.glob("aut/*.gz")]:
        (tmp_path / "crawl" / path.name).symlink_to(path)
    job = load_job(
        str(ROOT / "jobs/prepare-web.yaml"),
        [
            f"prepare.sources.0.glob={tmp_path}/crawl/*.warc.gz",
            f"prepare.sources.1.glob={tmp_path}/crawl/*.warc.wet.gz",
            f"storage={tmp_path}",
            *SMALL,
        ],
    )
    report = prepare(job, session=here)
    pages = report.manifest.sources["pages"]
    steps = {step["name"]: step for step in report.manifest.steps}
    assert steps["normalize"]["documents"] == 60 + 1, "60 pages, and 1 conversion"
    assert steps["language"]["tallies"]["language"] == {"en": 57, "es": 1, "unknown": 3}
    assert sum(steps["quality"]["dropped"].values()) == 57 - 14
    assert [step["kept"] for step in steps.values()] == [61, 57, 14, 14, 14, 14, 14]
    assert {key: pages[f"skipped_{key}"] for key in ("http_status", "no_page", "no_text")} == {
        "http_status": 35,
        "no_page": 114,
        "no_text": 1,
    }
    coordinator = alone(job)
    assert coordinator is not None
    assert coordinator.status().finished
