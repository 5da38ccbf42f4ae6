"""Books become documents: their prose and nothing around it, whole or by chapter; a hostile archive does no harm."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raylm.config.prepare.sources import SourceSettings
from raylm.prep.checks.skipped import Skipped
from raylm.prep.ranges import FileRange
from raylm.prep.readers.books.front_matter import by_heading
from raylm.prep.readers.books.xhtml import blocks_of
from raylm.prep.readers.read import read_range
from raylm.records import Document
from raylm.rows import compressed
from raylm.storage import Connection

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
PROSE = "The lamp was lit before anybody came, and the house stood quiet until the carriage turned in at the gate. "


def prose(number: int, times: int = 4) -> str:
    return (f"Sentence {number} is here. " + PROSE * times).strip()


def page(body: str, title: str = "t") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" '
        f'xmlns:epub="http://www.idpf.org/2007/ops"><head><title>{title}</title></head><body>{body}</body></html>'
    )


def chapter(number: int) -> str:
    return page(f"<h2>Chapter {number}</h2><p>{prose(number)}</p>")


def opf(pages: list[str], *, manifest: str = "", spine: str = "", guide: str = "", version: str = "3.0") -> str:
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(pages)
    )
    order = "".join(f'<itemref idref="i{n}"/>' for n in range(len(pages)))
    return (
        f'<package xmlns="http://www.idpf.org/2007/opf" version="{version}">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The  Quiet House</dc:title>'
        "<dc:creator>A. Writer</dc:creator><dc:creator>B. Second</dc:creator>"
        "<dc:language>en-GB</dc:language></metadata>"
        f"<manifest>{items}{manifest}</manifest><spine {spine}>{order}</spine>{guide}</package>"
    )


def write(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, **files}.items():
            archive.writestr(name, content)
    return path


NCX = (
    '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>'
    '<navPoint><navLabel><text>One: The Gate</text></navLabel><content src="a.xhtml#one"/></navPoint>'
    '<navPoint><navLabel><text>Two: The Lamp</text></navLabel><content src="a.xhtml#two"/></navPoint>'
    '<navPoint><navLabel><text>Three</text></navLabel><content src="b.xhtml"/></navPoint></navMap></ncx>'
)


def epub2(path: Path) -> Path:
    """Two chapters in one file and a third in two; a cover by the guide, a copyright page by its words."""
    names = ["cover.xhtml", "title.xhtml", "rights.xhtml", "for.xhtml", "a.xhtml", "b.xhtml", "b2.xhtml", "index.xhtml"]
    pages = {
        "cover.xhtml": page("<p>A picture of a house.</p>"),
        "title.xhtml": page("<h1>The Quiet House</h1><p>A. Writer</p>"),
        "rights.xhtml": page("<p>Copyright © 1901 A. Writer.</p><p>All rights reserved. ISBN 123.</p>"),
        "for.xhtml": page("<p>For my mother, who knew the house.</p>"),
        "a.xhtml": page(
            f'<h2 id="one">I</h2><p>{prose(1)}</p><a id="two"/><h2>II</h2><p>{prose(2)}</p>', title="Chapters"
        ),
        "b.xhtml": page(f"<h2>III</h2><p>{prose(3)}</p>"),
        "b2.xhtml": page(f"<p>{prose(4)}</p>"),
        "index.xhtml": page("<h2>INDEX.</h2>" + "".join(f"<p>lamp, {n}</p>" for n in range(50))),
    }
    package = opf(
        names,
        manifest='<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>',
        spine='toc="ncx"',
        guide='<guide><reference type="cover" href="cover.xhtml"/><reference type="toc" href="a.xhtml#one"/></guide>',
        version="2.0",
    )
    files: dict[str, str | bytes] = {f"OPS/{name}": content for name, content in pages.items()}
    return write(path, {"OPS/book.opf": package, "OPS/toc.ncx": NCX, **files})


def epub3(path: Path) -> Path:
    """Marks of EPUB 3: a nav with landmarks, epub:type on sections, a part's title on a page of its own."""
    nav = page(
        '<nav epub:type="toc"><ol><li><a href="text/part.xhtml">Part One</a></li><li><a href="text/1.xhtml">First</a>'
        '</li><li><a href="text/2.xhtml">Second</a></li></ol></nav>'
        '<nav epub:type="landmarks"><a epub:type="titlepage" href="text/t.xhtml">Title</a></nav>'
    )
    first = (
        '<section epub:type="dedication"><p>To B.</p></section><section epub:type="chapter"><h2>First</h2>'
        f'<p>{prose(1)}<span epub:type="pagebreak">12</span><a epub:type="noteref" href="#n">1</a>'
        " End&nbsp;of&mdash;it.</p></section>"
    )
    names = ["nav.xhtml", "text/t.xhtml", "text/part.xhtml", "text/1.xhtml", "text/2%20b.xhtml"]
    extra = '<item id="n" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
    return write(
        path,
        {
            "OPS/book.opf": opf(names, manifest=extra),
            "OPS/nav.xhtml": nav.replace("text/2.xhtml", "text/2%20b.xhtml"),
            "OPS/text/t.xhtml": page("<p>The Quiet House, a novel in two parts</p>"),
            "OPS/text/part.xhtml": page("<h1>Part One</h1>"),
            "OPS/text/1.xhtml": page(first),
            "OPS/text/2 b.xhtml": page(f"<h2>Second</h2><p>{prose(2)}</p><ul><li>one</li><li>two<br/>lines</li></ul>"),
        },
    )


def read(path: Path, **settings: Any) -> tuple[list[Document], Skipped]:
    source = SourceSettings.model_validate({"name": "x", "kind": "book", "glob": str(path), **settings})
    skipped = Skipped()
    return list(read_range(source, FileRange(str(path), path.stat().st_size), Connection(), skipped)), skipped


ABOUT = {"title": "The Quiet House", "author": "A. Writer; B. Second", "language": "en"}


def test_an_epub_2_is_its_chapters_in_the_order_of_its_contents(tmp_path: Path) -> None:
    path = epub2(tmp_path / "a.epub")
    chapters, skipped = read(path, document="chapter")
    assert [document.meta for document in chapters] == [
        {**ABOUT, "chapter": "One: The Gate"},
        {**ABOUT, "chapter": "Two: The Lamp"},
        {**ABOUT, "chapter": "Three"},
    ]
    assert [document.text for document in chapters] == [
        f"I\n\n{prose(1)}",
        f"II\n\n{prose(2)}",
        f"III\n\n{prose(3)}\n\n{prose(4)}",
    ]
    assert [document.id for document in chapters] == [f"{path}#{number}" for number in range(3)]
    assert skipped.counts() == {"skipped_front_matter": 5}
    assert [example.rpartition("/")[2] for example in skipped.examples["front_matter"]] == [
        "cover.xhtml: cover",
        "title.xhtml: titlepage",
        "rights.xhtml: copyright-page",
        "for.xhtml: dedication",
        "index.xhtml: index",
    ]
    (book,), _ = read(path)
    assert book.text == "\n\n".join(document.text for document in chapters)
    assert book.meta == ABOUT


def test_an_epub_3_says_itself_what_is_front_matter(tmp_path: Path) -> None:
    path = epub3(tmp_path / "a.epub")
    chapters, skipped = read(path, document="chapter")
    assert [document.text for document in chapters] == [
        f"Part One\n\nFirst\n\n{prose(1)} End of—it.",
        f"Second\n\n{prose(2)}\n\none\n\ntwo\nlines",
    ]
    assert [document.meta["chapter"] for document in chapters] == ["First", "Second"]
    assert skipped.counts() == {"skipped_front_matter": 3}
    (everything,), skipped = read(path, front_matter=True)
    assert "a novel in two parts" in everything.text
    assert "To B." in everything.text
    assert not skipped.counts()


def test_a_chapter_is_never_taken_for_front_matter(tmp_path: Path) -> None:
    """A guide that is wrong, a long page under a telling heading, and prose that talks of copyright."""
    pages: dict[str, str | bytes] = {
        "OPS/1.xhtml": page(f"<h2>Chapter 1</h2><p>{prose(1, 300)}</p>"),
        "OPS/2.xhtml": page(f"<h2>Acknowledgements</h2><p>{prose(2, 300)}</p>"),
        "OPS/3.xhtml": page(f"<p>Copyright was on his mind.</p><p>{prose(3)}</p>"),
        "OPS/4.xhtml": page(f"<h2>Preface</h2><p>{prose(4)}</p>"),
    }
    guide = '<guide><reference type="title-page" href="1.xhtml"/></guide>'
    package = opf([f"{n}.xhtml" for n in range(1, 5)], guide=guide)
    (book,), skipped = read(write(tmp_path / "a.epub", {"OPS/book.opf": package, **pages}))
    assert [f"Sentence {n} is here" in book.text for n in range(1, 5)] == [True] * 4
    assert not skipped.counts()


def test_the_page_where_the_text_begins_is_none_and_asides_are_counted(tmp_path: Path) -> None:
    nav = page(
        '<nav epub:type="landmarks"><a epub:type="toc" href="1.xhtml">Contents</a>'
        '<a epub:type="bodymatter" href="1.xhtml">Start</a><a epub:type="backmatter index" href="2.xhtml">I</a></nav>'
    )
    names = ["1.xhtml", "2.xhtml", "3.xhtml"]
    package = opf(names, manifest='<item id="n" href="n.xhtml" properties="nav" media-type="application/xhtml+xml"/>')
    files: dict[str, str | bytes] = {f"OPS/{name}": chapter(n) for n, name in enumerate(names, 1)}
    files["OPS/2.xhtml"] = page("<h2>Names</h2>" + "".join(f"<p>gate, {n}</p>" for n in range(40)))
    aside = package.replace('<itemref idref="i2"/>', '<itemref idref="i2" linear="no"/>')
    (book,), skipped = read(write(tmp_path / "a.epub", {"OPS/book.opf": aside, "OPS/n.xhtml": nav, **files}))
    assert book.text == f"Chapter 1\n\n{prose(1)}"
    assert skipped.examples == {
        "beside_the_text": [f"{tmp_path}/a.epub#OPS/3.xhtml"],
        "front_matter": [f"{tmp_path}/a.epub#OPS/2.xhtml: index"],
    }


def bad(name: str, tmp_path: Path) -> Path:
    path = tmp_path / "a.epub"
    two = {"OPS/book.opf": opf(["1.xhtml"]), "OPS/1.xhtml": chapter(1)}
    whole = write(path, two).read_bytes()
    files: dict[str, dict[str, str | bytes]] = {
        "a path that escapes": {**two, "../../etc/passwd": "x"},
        "an absolute path": {**two, "/etc/passwd": "x"},
        "a Windows path": {**two, "..\\evil.dll": "x"},
        "a page outside": {"OPS/book.opf": opf(["../../secret.xhtml"])},
        "a page that is missing": {"OPS/book.opf": opf(["2.xhtml"])},
        "no package": {"META-INF/container.xml": "<container/>"},
        "no pages": {"OPS/book.opf": opf([])},
        "an empty package": {"OPS/book.opf": ""},
        "no container": {},
    }
    if name in files:
        write(path, files[name])
    elif name == "cut":
        path.write_bytes(whole[:-60])
    elif name == "damaged":
        at = whole.index(b"OPS/1.xhtml") + 40
        path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    elif name == "no zip":
        path.write_bytes(b"<html>not found</html>")
    if name == "no container":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "words")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a path that escapes", "holds a path that escapes the archive: '../../etc/passwd'"),
        ("an absolute path", "holds a path that escapes the archive: '/etc/passwd'"),
        ("a Windows path", "holds a path that escapes the archive: "),
        ("a page outside", "names a file outside of it: '../../secret.xhtml'"),
        ("a page that is missing", "names OPS/2.xhtml, which is not in it"),
        ("no package", "names no package"),
        ("no pages", "lists no page of text"),
        ("an empty package", "OPS/book.opf is empty"),
        ("no container", "is no EPUB: it has no META-INF/container.xml"),
        ("cut", "cannot be unpacked: "),
        ("damaged", "cannot be unpacked: "),
        ("no zip", "cannot be unpacked: File is not a zip file"),
    ],
)
def test_a_bad_epub_is_set_aside_with_its_reason(tmp_path: Path, name: str, message: str) -> None:
    path = bad(name, tmp_path)
    documents, skipped = read(path)
    assert documents == []
    assert skipped.files == [str(path)]
    assert message in skipped.examples["broken_file"][0]
    assert skipped.hint


def test_a_bomb_is_refused_by_its_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_ALWAYS_UNPACKED", 100_000)
    files: dict[str, str | bytes] = {"OPS/book.opf": opf(["1.xhtml"]), "OPS/1.xhtml": chapter(1)}
    path = write(tmp_path / "a.epub", {**files, "OPS/picture.png": bytes(10_000_000)})
    documents, skipped = read(path)
    assert documents == []
    assert "unpacks to more than" in skipped.examples["broken_file"][0]
    assert len(read(path, max_compression_ratio=2000)[0]) == 1


def test_more_text_than_allowed_is_left_out(tmp_path: Path) -> None:
    path = epub2(tmp_path / "a.epub")
    documents, skipped = read(path, max_bytes=2000)
    assert documents == []
    assert skipped.counts()["skipped_too_large"] == 1


@pytest.mark.parametrize(
    ("algorithm", "is_locked"),
    [("http://www.w3.org/2001/04/xmlenc#aes128-cbc", True), ("http://www.idpf.org/2008/embedding", False)],
)
def test_a_locked_book_is_told_from_hidden_fonts(tmp_path: Path, algorithm: str, is_locked: bool) -> None:
    encryption = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        f'<EncryptedData xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="{algorithm}"/>'
        '<CipherData><CipherReference URI="OPS/1.xhtml"/></CipherData></EncryptedData></encryption>'
    )
    files: dict[str, str | bytes] = {"OPS/book.opf": opf(["1.xhtml"]), "OPS/1.xhtml": chapter(1)}
    path = write(tmp_path / "a.epub", {**files, "META-INF/encryption.xml": encryption})
    documents, skipped = read(path)
    assert len(documents) == (0 if is_locked else 1)
    assert skipped.counts() == ({"skipped_encrypted": 1} if is_locked else {})
    if is_locked:
        assert "its content is encrypted (DRM)" in skipped.examples["encrypted"][0]


def test_pages_that_are_no_xml_keep_all_their_words() -> None:
    broken = "<html><body><p>One &amp; two &lt;three&gt;<p>four & größer</b><p>six&nbsp;seven &unknown; end</body>"
    blocks, _ = blocks_of(broken.encode(), ())
    assert [block.text for block in blocks] == ["One & two <three>", "four & größer", "six seven &unknown; end"]
    long = page("<p>" + "word " * 3_000_000 + "end</p>").encode()
    assert blocks_of(long, ())[0][0].text.endswith("word end"), "XML stops at a text of ten million letters"
    utf16 = page("<p>Gr\u00f6\u00dfe</p>").replace("utf-8", "utf-16").encode("utf-16")
    assert [block.text for block in blocks_of(utf16, ())[0]] == ["Größe"]


def changed(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(found) + 1)
        found[at : at + chance.randint(0, 8)] = chance.randbytes(chance.randint(0, 2))
    return bytes(found)


def test_whatever_is_changed_in_a_book_it_is_read_or_set_aside(tmp_path: Path) -> None:
    chance = random.Random(3)
    with zipfile.ZipFile(epub3(tmp_path / "whole.epub")) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    seen = {"read": 0, "set aside": 0}
    for number in range(300):
        name = chance.choice(list(whole))
        path = write(tmp_path / f"{number}.epub", {**whole, name: changed(whole[name], chance)})
        documents, skipped = read(path, document="chapter")
        assert documents or skipped.counts()
        seen["read" if documents else "set aside"] += 1
    assert min(seen.values()) > 30, seen


def test_entities_of_a_stranger_are_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    bomb = (
        f'<!DOCTYPE html [<!ENTITY a "lol"><!ENTITY b SYSTEM "file://{tmp_path}/secret">]>'
        "<html><body><p>before &a; &b; after</p></body></html>"
    )
    layers = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    laughs = f'<!DOCTYPE html [<!ENTITY e0 "lol">{layers}]><html><body><p title="&e9;">a &e9; b</p></body></html>'
    assert sum(len(block.text) for block in blocks_of(laughs.encode(), ())[0]) < 10_000
    (block,), _ = blocks_of(bomb.encode(), ())
    assert "before" in block.text
    assert "after" in block.text
    assert "secret" not in block.text
    assert "lol" not in block.text


GUTENBERG = f"""The Project Gutenberg eBook of The Quiet House

Title: The Quiet House
       A Story

Author: A. Writer

Language: English

*** START OF THE PROJECT GUTENBERG EBOOK THE QUIET HOUSE ***

THE QUIET HOUSE

by A. Writer

CONTENTS

CHAPTER I. The Gate

CHAPTER II. The Lamp

CHAPTER I. The Gate

{prose(1)}

{prose(2)}

CHAPTER II.
The Lamp

{prose(3)}

INDEX

lamp, 2

*** END OF THE PROJECT GUTENBERG EBOOK THE QUIET HOUSE ***

Updated editions will replace the previous one.
"""


def test_a_text_file_of_project_gutenberg_is_its_chapters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + GUTENBERG.replace("\n", "\r\n").encode())
    chapters, skipped = read(path, document="chapter")
    assert [document.text for document in chapters] == [
        f"CHAPTER I. The Gate\n\n{prose(1)}\n\n{prose(2)}",
        f"CHAPTER II.\nThe Lamp\n\n{prose(3)}",
    ]
    about = {"title": "The Quiet House A Story", "author": "A. Writer", "language": "en"}
    assert chapters[1].meta == {**about, "chapter": "CHAPTER II. The Lamp"}
    assert skipped.reasons["front_matter"] == 7
    (book,), _ = read(path)
    assert book.text == "\n\n".join(document.text for document in chapters)
    (everything,), skipped = read(path, front_matter=True)
    assert "Updated editions" in everything.text
    assert not skipped.counts()


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(prose(n) for n in range(5)),
        f"{prose(1, 20)}\n\nCHAPTER II\n\n{prose(2)}",
        "A short note.",
    ],
)
def test_a_text_without_the_marks_of_a_book_stays_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    (book,), skipped = read(path)
    assert book.text == text
    assert not skipped.counts()


def test_headings_count_only_when_they_are_the_whole_line() -> None:
    assert by_heading("TABLE OF CONTENTS.") == "toc"
    assert by_heading("_Contents_") == "toc"
    assert by_heading("Contents of the box") is None
    assert by_heading("Introduction") is None


def test_settings_that_do_not_go_together_are_refused() -> None:
    for settings in ({"kind": "book", "document": "line"}, {"kind": "text", "document": "chapter"}):
        with pytest.raises(ValidationError, match=r"document\n  Input should be .*input_value='(line|chapter)'"):
            SourceSettings.model_validate({"name": "x", "glob": "*", **settings})


def test_a_book_of_nothing_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.epub", {"OPS/book.opf": opf(["1.xhtml"]), "OPS/1.xhtml": page('<img src="a.png"/>')})
    documents, skipped = read(path)
    assert documents == []
    assert skipped.counts() == {"skipped_no_text": 1}


def test_a_member_with_a_password_is_a_locked_book(tmp_path: Path) -> None:
    path = write(tmp_path / "a.epub", {"OPS/book.opf": opf(["1.xhtml"]), "OPS/1.xhtml": chapter(1)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        header = archive.getinfo("OPS/1.xhtml").header_offset
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(b"OPS/1.xhtml"))
    data[header + 6] |= 1
    data[central + 8] |= 1
    path.write_bytes(bytes(data))
    assert read(path)[1].counts() == {"skipped_encrypted": 1}
