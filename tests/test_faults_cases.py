"""Small files of other people that once failed, each read as its settings say, where their folder is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.operators.language import identifier
from raylm.prep.operators.personal.internet import emails, ips
from raylm.prep.operators.personal.numbers import ibans
from raylm.prep.operators.personal.phones import phones
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.records import Document
from raylm.storage import Connection
from raylm.testing.external import external_data

INPUTS = external_data("../faults/inputs")
pytestmark = pytest.mark.skipif(not INPUTS.exists(), reason="../faults/inputs is not beside RAYLM_TEST_DATA")


def case(name: str) -> tuple[list[Document], Skipped]:
    settings: dict[str, Any] = json.loads((INPUTS / "cases.json").read_text())[name]
    own = {key: value for key, value in settings.items() if key not in ("glob", "steps", "tokenizer", "quarantine")}
    path = INPUTS / settings["glob"]
    source = SourceSettings.model_validate({"name": "x", **own, "glob": str(path)})
    skipped = Skipped()
    found = list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped))
    return found, skipped


def text_of(name: str) -> str:
    documents, _ = case(name)
    return "\n\n".join(document.text for document in documents)


def test_book_contents() -> None:
    given = (INPUTS / "book-contents.txt").read_text()
    body = given[given.index("\nTHE GOLDEN LAMP\n\n") :].strip()
    assert len(text_of("book-contents")) > 0.95 * len(body)


def test_book_letters() -> None:
    given = (INPUTS / "book-letters.txt").read_text()
    assert len(text_of("book-letters")) > 0.95 * len(given[given.index("\nA\n\n") :].strip())


def test_epub_pre() -> None:
    assert "    if x:\n        return 1\n    return 2" in text_of("epub-pre")


def test_epub_ruby() -> None:
    assert text_of("epub-ruby") == "山に登る。"


def test_epub_math() -> None:
    assert "Let x=\\frac{1}{2} hold for 10" in text_of("epub-math")


@pytest.mark.parametrize("name", ["epub-footer", "epub-links", "epub-backslash", "epub-ampersand", "epub-missing-page"])
def test_epub_keeps_its_chapters(name: str) -> None:
    documents, skipped = case(name)
    assert len(documents) == 1
    assert not skipped.counts().get("skipped_front_matter")
    wanted = {"epub-links": ["River", "Chapter Two"], "epub-ampersand": ["Chapter One"]}
    assert all(heading in documents[0].text for heading in wanted.get(name, ["Chapter One", "Chapter Two"]))


def test_epub_nav_elsewhere() -> None:
    documents, _ = case("epub-nav-elsewhere")
    assert [document.meta.get("chapter") for document in documents] == ["One", "Two"]


def test_wiki_de() -> None:
    assert text_of("wiki-de") == "Brücke\n\nEine Brücke führt über den Fluss."


def test_wiki_en() -> None:
    colons, templates, code, history = (document.text for document in case("wiki-en")[0])
    assert colons.startswith("Colons\n\nThe list has two parts:\none\ntwo\n\nHe said:")
    assert "__NOTOC__" not in colons
    wanted = "At 1300 mi, it is long (from γέφυρα). It is 3 old, see 10 km. Let x^2 be."
    assert templates == f"Templates\n\n{wanted}"
    assert "for x in y:\n    f(x)" in code
    assert "if a:\n    b" in code
    assert history == "History\n\nThe newest text."


def test_warc_one_bad_byte() -> None:
    assert "Der Ausschuß traf sich am Dienstag, um über die neue Brücke" in text_of("warc-one-bad-byte")


@pytest.mark.parametrize(("name", "count"), [("warc-gzip-decoded", 2), ("warc-content-type", 2)])
def test_warc_heads(name: str, count: int) -> None:
    documents, _ = case(name)
    assert len(documents) >= count
    assert all("it agreed" in document.text for document in documents)


def test_warc_ul() -> None:
    assert "Add two cups of flour to the bowl" in text_of("warc-ul")


def test_warc_angle_uri() -> None:
    (document,), _ = case("warc-angle-uri")
    assert document.meta["url"] == "http://blocked.example/a"


def test_warc_garbage_behind() -> None:
    documents, skipped = case("warc-garbage-behind")
    assert len(documents) == 3, "every whole page"
    assert skipped.reasons["broken_file"] == 1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("csv-cr-only", 2),
        ("csv-bom-quoted", 1),
        ("csv-open-quote", 1000),
        ("csv-latin1-meta", 2),
        ("jsonl-nul", 51),
        ("jsonl-array", 2),
        ("jsonl-language-tags", 5),
    ],
)
def test_tables_keep_every_whole_record(name: str, texts: int) -> None:
    documents, _ = case(name)
    assert len(documents) == texts


def test_jsonl_language_tags_are_spelled_in_one_way() -> None:
    found = [document.meta.get("language") for document in case("jsonl-language-tags")[0]]
    assert found == ["en", "en", "en", "en", None]


@pytest.mark.parametrize("name", ["parquet-damaged", "zstd-long-window"])
def test_files_that_cannot_be_read_are_set_aside(name: str) -> None:
    documents, skipped = case(name)
    assert not documents
    assert skipped.reasons["broken_file"] == 1
    assert name != "zstd-long-window" or "--long=31" in str(skipped.hint)


def test_parquet_two_columns() -> None:
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        case("parquet-two-columns")


@pytest.mark.parametrize("name", ["glob-stars"])
def test_patterns_are_refused_in_words(name: str) -> None:
    source = SourceSettings.model_validate({"name": "x", "kind": "text", "glob": str(INPUTS / "**.txt")})
    with pytest.raises(DataError, match="is no pattern of files"):
        SOURCES.get("text").files(source, Connection())


def test_hf_data_dir() -> None:
    settings = {"name": "x", "kind": "huggingface", "glob": str(INPUTS / "hf-data-dir"), "config": "en"}
    files = SOURCES.get("huggingface").files(SourceSettings.model_validate(settings), Connection())
    assert [path.url[-26:] for path, _ in files] == ["hf-data-dir/en/train.jsonl"]


def test_pii() -> None:
    lines = [json.loads(line)["text"] for line in (INPUTS / "pii.jsonl").read_text().splitlines()]
    mail = [[text[start:stop] for start, stop in emails(text)] for text in lines]
    assert mail[:2] == [["nobody@example.com"], ["nobody@example.jp"]]
    assert mail[4] == ["nobody@example.org"]
    assert mail[5] == []
    numbers = [[text[a:b] for a, b in phones(text, (0, len(text)), ["CN", "JP"])] for text in lines]
    assert numbers[2:4] == [["13900000000"], ["03-0000-1234"]]
    assert not list(ips(lines[6]))
    assert len(list(ibans(lines[7], (0, len(lines[7]))))) == 1


def test_language_capitals() -> None:
    for line in (INPUTS / "language-capitals.jsonl").read_text().splitlines():
        language, score = identifier()(json.loads(line)["text"])
        assert language in ("de", "en", "fr", "es", "it", "ru", "nl", "pt"), line
        assert score > 0.5
