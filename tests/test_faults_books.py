"""Books of other people: nothing of the text is taken for front matter, and one flaw costs no book."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_books import chapter, opf, page, prose, read, write

from raylm.prep.checks.skipped import Skipped
from raylm.prep.readers.books.prose import is_prose, list_length
from raylm.records import Document

STORY = "Winter came early that year, and nobody had thought of the lamps; the bridge was closed before a letter came. "


def story(number: int, times: int = 6) -> str:
    return f"Part {number} of the story begins. {STORY * times}".strip()


def text_book(folder: Path, *paragraphs: str, **settings: Any) -> tuple[str, Skipped]:
    path = folder / "book.txt"
    path.write_text("\n\n".join(paragraphs) + "\n")
    documents, skipped = read(path, **settings)
    return "\n\n".join(document.text for document in documents), skipped


def epub(folder: Path, pages: dict[str, str], **package: Any) -> tuple[list[Document], Skipped]:
    names = list(pages)
    files = {f"OPS/{name}": content for name, content in pages.items()}
    return read(write(folder / "a.epub", {"OPS/book.opf": opf(names, **package), **files}))


# --- text files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", ["CONTENTS:", "Contents", "INDEX", "Inhalt", "LIST OF ILLUSTRATIONS", "目次"])
def test_contents_end_where_the_text_begins_and_do_not_swallow_the_book(tmp_path: Path, heading: str) -> None:
    names = ["THE GOLDEN LAMP", "THE OLD BRIDGE", "THE WINTER LETTER"]
    body = [part for number, name in enumerate(names) for part in (name, story(number), story(10 + number))]
    text, skipped = text_book(tmp_path, heading, "\n".join(f"     {name}" for name in names), *body)
    assert text == "\n\n".join(body)
    assert skipped.counts()["skipped_front_matter"] == 1


def test_contents_with_page_numbers_end_at_the_first_chapter(tmp_path: Path) -> None:
    listed = "The Golden Lamp ........ 7\nThe Old Bridge ........ 31"
    body = ["The Golden Lamp", "Quiet.", story(1), "The Old Bridge", story(2)]
    text, _ = text_book(tmp_path, "Table of Contents", listed, *body)
    assert text == "\n\n".join(body)


def test_an_index_at_the_end_is_dropped_whole_however_long(tmp_path: Path) -> None:
    index = [f"lamp {number}, {number + 3}, {number + 9}" for number in range(400)]
    text, skipped = text_book(tmp_path, "CHAPTER I", story(1), "CHAPTER II", story(2), "INDEX", *index)
    assert text == "\n\n".join(["CHAPTER I", story(1), "CHAPTER II", story(2)])
    assert skipped.counts()["skipped_front_matter"] == 1


def test_the_letters_of_a_dictionary_are_no_chapters(tmp_path: Path) -> None:
    entries = [
        part
        for letter in "ABCDEFGHIJKLM"
        for part in (letter, *(f"{letter}{name}, n. {STORY * 2}".strip() for name in ("RIVER", "STONE", "LAMP")))
    ]
    text, skipped = text_book(tmp_path, "A DICTIONARY", *entries)
    assert text.endswith("\n\n".join(entries))
    assert skipped.counts().get("skipped_front_matter", 0) == 0
    chapters, _ = read(tmp_path / "book.txt", document="chapter")
    assert len(chapters) == 1


def test_roman_numerals_in_a_row_are_chapters_in_each_book_anew(tmp_path: Path) -> None:
    parts = [part for numeral in ("I", "II", "III", "IV.", "I", "II") for part in (numeral, story(len(numeral), 4))]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(parts))
    documents, _ = read(path, document="chapter")
    assert [document.meta["chapter"] for document in documents] == ["I", "II", "III", "IV.", "I", "II"]


def test_prose_before_chapter_one_stays_and_a_title_page_goes(tmp_path: Path) -> None:
    title = ["TALES", "by A Nobody", "London: Lamp & Bridge, 1901"]
    chapters = [part for number in range(8) for part in (f"CHAPTER {number + 1}", story(number, 8))]
    text, skipped = text_book(tmp_path, *title, story(99), *chapters)
    assert text == "\n\n".join([story(99), *chapters])
    assert skipped.counts()["skipped_front_matter"] == 1


@pytest.mark.parametrize(
    ("text", "prose_"),
    [
        (STORY * 2, True),
        ("静かな夜だった。" * 12, True),
        ("\n".join(f"Chapter {n} ..... {n * 9}" for n in range(30)), False),
        ("Abbey, 12, 34; Bridge, 7, 9; Candle, 3; " * 8, False),
        ("Short.", False),
    ],
    ids=["sentences", "without spaces", "entries", "an index in one line", "a few words"],
)
def test_prose_is_told_from_lists(text: str, prose_: bool) -> None:
    assert is_prose(text) == prose_


def test_a_list_ends_at_prose_or_where_an_entry_stands_again() -> None:
    assert list_length(["One\nTwo", "Three", "One", STORY]) == 2
    assert list_length(["One", "Two", STORY * 2, "Three"]) == 2
    assert list_length(["One", "Two"]) == 2


# --- EPUBs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", ["Contents", "Index", "Illustrations"])
def test_a_chapter_under_the_name_of_a_list_stays(tmp_path: Path, heading: str) -> None:
    body = f"<h1>{heading}</h1>" + "".join(f"<p>{story(number)}</p>" for number in range(5))
    (book,), skipped = epub(tmp_path, {"a.xhtml": page(body), "b.xhtml": chapter(2)})
    assert story(4) in book.text
    assert not skipped.counts()


def test_prose_full_of_links_is_no_table_of_contents(tmp_path: Path) -> None:
    linked = " ".join(f'<a href="b.xhtml#w{n}">river water number {n}</a> of' for n in range(40))
    pages = {"a.xhtml": page(f"<h1>River</h1><p>{linked} the old bridge.</p>"), "b.xhtml": chapter(2)}
    (book,), _ = epub(tmp_path, pages)
    assert "river water number 39 of the old bridge." in book.text


def test_a_section_that_a_book_calls_its_index_and_that_is_prose_stays(tmp_path: Path) -> None:
    index = "".join(f"<p>lamp, {number}</p>" for number in range(60))
    body = f'<section epub:type="index"><p>{story(1)}</p><p>{story(2)}</p></section>'
    pages = {
        "a.xhtml": page(body + f"<p>{story(3)}</p>"),
        "b.xhtml": page(f'<section epub:type="index">{index}</section>'),
    }
    (book,), skipped = epub(tmp_path, pages)
    assert book.text == "\n\n".join([story(1), story(2), story(3)])
    assert skipped.counts() == {"skipped_front_matter": 1}


def test_a_line_of_rights_at_the_foot_of_a_chapter_makes_it_no_copyright_page(tmp_path: Path) -> None:
    foot = "<p>© Copyright 2024 A. Writer. All rights reserved.</p>"
    rights = "<p>© Copyright 2024 A. Writer</p><p>All rights reserved. ISBN 123-4.</p><p>First published in 2024.</p>"
    pages = {"a.xhtml": page(rights), "b.xhtml": page(f"<h1>Two</h1><p>{prose(2)}</p><p>{prose(3)}</p>{foot}")}
    (book,), skipped = epub(tmp_path, pages)
    assert prose(3) in book.text
    assert "First published" not in book.text
    assert skipped.counts() == {"skipped_front_matter": 1}


@pytest.mark.parametrize(
    "code",
    [
        "<pre>def f(x):\n    if x:\n        return 1\n    return 2</pre>",
        "<pre><code>def f(x):\n    if x:\n        <b>return</b> 1\n    return 2\n</code></pre>",
        "<pre><div>def f(x):</div><div>    if x:</div><div>        return 1</div><div>    return 2</div></pre>",
        '<p style="white-space: pre-wrap">def f(x):\n    if x:\n        return 1\n    return 2</p>',
        '<p xml:space="preserve">def f(x):<br/>    if x:<br/>        return 1<br/>    return 2</p>',
    ],
    ids=["pre", "code in pre", "a block a line", "by style", "by xml:space"],
)
def test_code_keeps_its_lines(tmp_path: Path, code: str) -> None:
    pages = {"a.xhtml": page(f"<p>{prose(1)}</p>{code}<p>{prose(2)}</p>"), "b.xhtml": chapter(2)}
    (book,), _ = epub(tmp_path, pages)
    assert f"{prose(1)}\n\ndef f(x):\n    if x:\n        return 1\n    return 2\n\n{prose(2)}" in book.text


def test_the_reading_of_characters_is_left_out(tmp_path: Path) -> None:
    ruby = "<ruby>山<rt>やま</rt></ruby>に<ruby>登<rp>(</rp><rt>のぼ</rt><rp>)</rp></ruby>る。"
    bopomofo = "<ruby><rb>漢</rb><rtc><rt>ㄏㄢˋ</rt></rtc></ruby>字"
    (book,), _ = epub(tmp_path, {"a.xhtml": page(f"<p>{ruby}{bopomofo}</p><p>{prose(1)}</p>")})
    assert book.text.startswith("山に登る。漢字\n\n")


def test_a_formula_is_written_as_its_author_spells_it(tmp_path: Path) -> None:
    space = 'xmlns="http://www.w3.org/1998/Math/MathML"'
    half = "<mi>x</mi><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac>"
    tex = f'<math {space}><semantics><mrow>{half}</mrow><annotation encoding="application/x-tex">x=\\frac{{1}}{{2}}'
    body = f'<p>Let {tex}</annotation></semantics></math> and <math {space} alttext="x=1/2">{half}</math> hold.</p>'
    (book,), _ = epub(tmp_path, {"a.xhtml": page(body + f"<p>{prose(1)}</p>")})
    assert book.text.startswith("Let x=\\frac{1}{2} and x=1/2 hold.")


@pytest.mark.parametrize(
    ("told", "there"),
    [("Text\\a.xhtml", "Text/a.xhtml"), ("TEXT/A.xhtml", "Text/a.xhtml"), ("caf\u00e9.xhtml", "cafe\u0301.xhtml")],
    ids=["strokes", "case", "forms of letters"],
)
def test_a_page_is_found_however_its_name_is_spelled(tmp_path: Path, told: str, there: str) -> None:
    files = {"OPS/book.opf": opf([told, "b.xhtml"]), f"OPS/{there}": chapter(1), "OPS/b.xhtml": chapter(2)}
    (book,), skipped = read(write(tmp_path / "a.epub", dict(files)))
    assert prose(1) in book.text
    assert not skipped.counts()


def test_a_missing_and_a_damaged_page_cost_themselves(tmp_path: Path) -> None:
    names = ["a.xhtml", "gone.xhtml", "hurt.xhtml", "b.xhtml"]
    files = {f"OPS/{name}": chapter(n) for n, name in enumerate(names) if name != "gone.xhtml"}
    path = write(tmp_path / "a.epub", {"OPS/book.opf": opf(names), **files})
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("OPS/hurt.xhtml")
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 5
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    (book,), skipped = read(path)
    assert prose(0) in book.text
    assert prose(3) in book.text
    assert skipped.counts() == {"skipped_broken_page": 2}


def test_a_table_of_contents_that_names_other_folders_still_divides_the_book(tmp_path: Path) -> None:
    entries = '<li><a href="x/a.xhtml">One</a></li><li><a href="x/b.xhtml">Two</a></li>'
    nav = page(f'<nav epub:type="toc"><ol>{entries}</ol></nav>')
    item = '<item id="n" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
    files = {"OPS/nav.xhtml": nav, "OPS/a.xhtml": chapter(1), "OPS/b.xhtml": chapter(2)}
    path = write(tmp_path / "a.epub", {"OPS/book.opf": opf(["a.xhtml", "b.xhtml"], manifest=item), **files})
    documents, _ = read(path, document="chapter")
    assert [document.meta["chapter"] for document in documents] == ["One", "Two"]


@pytest.mark.parametrize("title", ["Salt & Pepper", "AT&T; a history", "If a < b"])
def test_a_bare_mark_in_a_title_costs_nothing(tmp_path: Path, title: str) -> None:
    package = opf(["a.xhtml"]).replace("The  Quiet House", title)
    (book,), _ = read(write(tmp_path / "a.epub", {"OPS/book.opf": package, "OPS/a.xhtml": chapter(1)}))
    assert prose(1) in book.text
    assert str(book.meta["title"]).startswith(title[:4])


# --- as others write them, once more --------------------------------------------------------------------------------


def verse(number: int) -> str:
    return "\n".join(f"The lamp of verse {number} in line {line}," for line in range(8))


@pytest.mark.parametrize("times", [2, 40])
def test_verses_under_contents_that_name_them_otherwise_stay(tmp_path: Path, times: int) -> None:
    verses = [part for name in ("THE LAMP\nto my mother", "A BRIDGE") for part in (name, *map(verse, range(times)))]
    text, skipped = text_book(tmp_path, "CONTENTS", "Lamp 3\nBridge 9", *verses)
    assert text.endswith("\n\n".join(verses))
    assert skipped.counts()["skipped_kept_front_matter"] == 1


@pytest.mark.parametrize("heading", ["Illustrations", "REGISTER", "INDEX", "目录"])
def test_people_who_talk_under_the_name_of_a_list_stay(tmp_path: Path, heading: str) -> None:
    talk = [f"“Yes, Anna {'very ' * (n % 3)}much,” she said quietly." for n in range(60)]
    body = ["CHAPTER I", story(1), heading, *talk, "CHAPTER II", story(2)]
    assert text_book(tmp_path, *body)[0] == "\n\n".join(body)
    pages = {"a.xhtml": page(f"<h2>{heading}</h2>" + "".join(f"<p>{line}</p>" for line in talk)), "b.xhtml": chapter(2)}
    assert talk[7] in epub(tmp_path, pages)[0][0].text


@pytest.mark.parametrize("heading", ["Cover", "Dedication", "Title Page"])
def test_a_chapter_under_the_name_of_a_short_page_stays(tmp_path: Path, heading: str) -> None:
    body = ["CHAPTER I", story(1, 40), heading, *(story(number) for number in range(9)), "CHAPTER II", story(2, 40)]
    assert text_book(tmp_path, *body)[0] == "\n\n".join(body)


@pytest.mark.parametrize("heading", ["TO THE READER", "Vorwort", "Предисловие", "前言", "Préface"])
def test_a_preface_stays_with_its_heading(tmp_path: Path, heading: str) -> None:
    body = [heading, verse(1), verse(2), "CHAPTER I", story(1, 40), "CHAPTER II", story(2, 40)]
    assert text_book(tmp_path, "The Lamp", "by N. N.", *body)[0] == "\n\n".join(body)


@pytest.mark.parametrize(
    "chapters", [("第一章 灯", "第二章 桥"), ("Глава первая", "Глава вторая"), ("Rozdział 1", "Rozdział 2")]
)
def test_chapters_of_other_languages_are_told_apart(tmp_path: Path, chapters: tuple[str, str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\r\r".join([chapters[0], story(1), chapters[1], story(2)]).encode())  # as old Macs end lines
    assert [document.meta["chapter"] for document in read(path, document="chapter")[0]] == list(chapters)


def test_several_books_of_project_gutenberg_in_one_file_all_stay(tmp_path: Path) -> None:
    books = [
        part
        for name in "AB"
        for part in (
            f"Title: {name}",
            f"*** START OF THIS PROJECT GUTENBERG EBOOK {name} ***",
            f"CHAPTER I\n\n{name} {story(1, 20)}",
            f"*** END OF THIS PROJECT GUTENBERG EBOOK {name} ***",
            "The license.",
        )
    ]
    text, _ = text_book(tmp_path, *books)
    assert text == "\n\n".join(f"CHAPTER I\n\n{name} {story(1, 20)}" for name in "AB")


PAGE_TYPE = 'media-type="application/xhtml+xml"'


@pytest.mark.parametrize(
    ("told", "instead"),
    [
        *(
            (PAGE_TYPE, f'media-type="{kind}"')
            for kind in ("text/x-oeb1-document", "APPLICATION/XHTML+XML; x=y", "text/xml")
        ),
        *((PAGE_TYPE, ""), ("<itemref ", '<itemref linear="no" '), ('href="a.xhtml"', 'href="/OPS/a.xhtml"')),
        ('<spine ><itemref idref="i0"/></spine>', ""),
        ('<itemref idref="i0"/>', ""),
    ],
)
def test_a_list_of_pages_that_is_written_otherwise_costs_no_book(tmp_path: Path, told: str, instead: str) -> None:
    package = opf(["a.xhtml"])
    assert told in package
    files: dict[str, str | bytes] = {"OPS/book.opf": package.replace(told, instead), "OPS/a.xhtml": chapter(1)}
    assert prose(1) in read(write(tmp_path / "a.epub", files))[0][0].text


GERMAN = "Der Ausschuß traf sich am Dienstag, um über die neue Brücke zu beraten. " * 5
CHINESE = "委员会于星期二开会讨论新桥的计划。" * 5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (f"<html><body><p>{GERMAN}~</p></body></html>".encode().replace(b"~", b"\xe4"), GERMAN),
        (f'<?xml version="1.0" encoding="gb2312"?><html><body><p>{CHINESE}~</p></body></html>'.encode("gbk"), CHINESE),
        (f"<html><body><p>{GERMAN}</p></body></html>".encode("cp1252"), GERMAN),
        (
            f'<?xml version="1.0" encoding="UTF-16"?><html><body><p>&eacute; {GERMAN}</p></body></html>'.encode(
                "utf-16"
            ),
            GERMAN,
        ),
    ],
    ids=["one bad byte", "GBK", "cp1252", "UTF-16"],
)
def test_a_page_of_a_book_is_read_in_the_encoding_that_it_is_in(tmp_path: Path, content: bytes, text: str) -> None:
    content = content.replace(b"~", b"\xff")
    files: dict[str, str | bytes] = {"OPS/book.opf": opf(["a.xhtml", "b.xhtml"]), "OPS/b.xhtml": chapter(2)}
    documents, _ = read(write(tmp_path / "a.epub", {**files, "OPS/a.xhtml": content}))
    assert text.strip() in documents[0].text
