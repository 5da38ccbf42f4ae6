"""Small files of other people that once failed, each read as its settings say, where their folder is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raylm.config.prepare.sources import SourceSettings
from raylm.prep.checks.skipped import Skipped
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
