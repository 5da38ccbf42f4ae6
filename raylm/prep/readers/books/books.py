"""Books become documents, whole or by chapter: EPUBs, and text files as Project Gutenberg writes them.

A document is a book's text without front matter, or each of its chapters, with title, author and language where the
book names them. What is skipped of a book is counted.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.checks.skipped import Skipped
from raylm.prep.readers.base import Meta, Raw, Reading, known, language_tag
from raylm.prep.readers.books.epub import Book, BrokenPage, Encrypted, Package, TooLarge, opened_book
from raylm.prep.readers.books.front_matter import TYPES, by_heading, front_matter
from raylm.prep.readers.books.prose import LISTS, is_prose, list_length, may_be
from raylm.prep.readers.books.xhtml import blocks_of
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.text import whole_file
from raylm.rows.binary import refuse_binary

_MIN_CHAPTER = 200  # characters; what is shorter is the title of a part, and goes with the chapter behind it
_MAX_LEADING = 0.2  # share of a text file that may come before its first chapter and count as front matter
_FEW = 5000  # characters of front matter, which a short book may have more of than of text
_MUCH = 0.2  # share of a book; more than this is told
_TOO_MUCH = 0.5  # more than this, beside lists, is no front matter, whatever it looks like
_START = re.compile(r"^\s*\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*$", re.I | re.M)
_END = re.compile(
    r"^\s*(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg)", re.I | re.M
)
_FIELD = r"^{name}:[ \t]*(.+(?:\n[ \t]+\S.*)*)"
_NUMBER = r"(?:\d{1,3}|[ivxlcdm]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|the \w+)"
_PREFACES = (
    r"preface|introduction|foreword|prologue|epilogue|afterword|conclusion|to the reader|author['’]s (?:note|preface)"
    r"|vorwort|vorrede|einleitung|nachwort|préface|avant-propos|introducción|introdução|prólogo|prefacio|prefácio"
    r"|prefazione|introduzione|предисловие|введение|послесловие|przedmowa|wstęp|voorwoord|förord|前言|序言?|自序|跋"
    r"|后记|後記|まえがき|はじめに|あとがき|서문|머리말|مقدمة"
)
_CHAPTER = re.compile(
    rf"(?:(?:chapter|book|part|volume|canto|act|stave|letter|kapitel|chapitre|capítulo|capitolo|hoofdstuk"
    rf"|rozdział|kapitola|глава|часть|книга|κεφάλαιο)\s+(?:{_NUMBER}|\w+ая)\b.*"
    r"|第[一二三四五六七八九十百千零〇0-9０-９]{1,8}[章回節节卷部篇話话](?:[\s：:、.　].{0,40})?"
    rf"|(?:{_PREFACES})[.:]?)",
    re.I,
)

_ROMAN = re.compile(r"(m{0,3}(?:cm|cd|d?c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3}))(?<=[ivxlcdm])\.?\Z", re.I)
_DIGITS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}


class BookSource(FileSourceSettings):
    """EPUBs, and text files as Project Gutenberg writes them."""

    kind: Literal["book"] = Field("book", description="How files are read.")
    document: Literal["file", "chapter"] = Field("file", description="A document is a book, or a chapter.")
    front_matter: bool = Field(
        False, description="Keep the cover, title page, copyright, contents, dedication and index as well."
    )


@dataclass
class _Part:
    """A chapter as it is put together."""

    title: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def read(reading: Reading[BookSource]) -> Iterator[Raw]:
    """The texts of one book; its chapters where the source asks for them."""
    if reading.path.name.lower().endswith(".epub"):
        yield from _epub(reading)
        return
    with reading.open() as stream:
        refuse_binary(reading.path, stream)
        for raw in whole_file(reading, stream):
            yield from _text(reading, raw)


def _epub(reading: Reading[BookSource]) -> Iterator[Raw]:
    packages: list[Package] = []

    def parts_of(reading: Reading[BookSource]) -> list[_Part]:
        with opened_book(reading) as book:
            packages.append(book.package())
            return list(_parts(reading, book, packages[-1]))

    try:
        parts = _bounded(reading, parts_of)
    except Encrypted as error:
        reading.skip("encrypted", 0, str(error))
    except TooLarge as error:
        reading.skip("too_large", 0, str(error))
    else:
        package = packages[-1]
        about = known(title=package.title, author=package.author, language=language_tag(package.language))
        yield from _documents(reading, parts, about)


def _bounded(reading: Reading[BookSource], parts_of: Callable[[Reading[BookSource]], list[_Part]]) -> list[_Part]:
    """The parts of a book; where more of it looks like front matter than any book has, all of them.

    An index goes however long: it looks like one, line by line.
    """
    trial = replace(reading, skipped=Skipped())
    parts = parts_of(trial)
    contents, index, others = (trial.skipped.removed[kind] for kind in ("contents", "index", "front_matter"))
    lists = contents + index
    whole = lists + others + sum(part.characters for part in parts) or 1
    too_much = others >= _FEW and others > _TOO_MUCH * whole
    # Verses look like a list of contents, line by line; of a book there are more.
    if too_much or (contents > _MUCH * whole and (contents >= _FEW or not parts)):
        kept = others if too_much else contents
        reading.skip("kept_front_matter", 0, f"{kept / whole:.0%} of the book, {kept:,} characters")
        return parts_of(replace(reading, source=reading.source.model_copy(update={"front_matter": True})))
    reading.skipped.add(trial.skipped)
    if lists + others >= _FEW and lists + others > _MUCH * whole:
        what = f"{(lists + others) / whole:.0%} of the book, {lists + others:,} characters"
        reading.skip("much_front_matter", 0, what)
    return parts


def _reason(kind: str) -> str:
    """Under which name the characters of such a part are counted."""
    if kind in ("index", "boilerplate"):
        return kind
    return "contents" if kind in LISTS else "front_matter"


def _parts(reading: Reading[BookSource], book: Book, package: Package) -> Iterator[_Part]:
    """The book's chapters by its table of contents; by its files where it has none."""
    titles = {(page, anchor): title for page, anchor, title in package.chapters}
    keeps_front_matter = reading.source.front_matter
    unwanted = () if keeps_front_matter else TYPES
    part: _Part | None = None
    broken: dict[str, str] = {}
    for page in package.beside:
        reading.skip("beside_the_text", page)
    for page in package.pages:
        try:
            blocks, dropped = blocks_of(book.read(page), unwanted)
        except BrokenPage as error:
            broken[page] = str(error)
            continue
        if not keeps_front_matter:
            what = front_matter(blocks, package.types.get(page, ""), package.title, first=part is None)
            if what is not None:
                reading.skip("front_matter", page, what)
                reading.take_out(_reason(what), sum(len(block.text) for block in blocks))
                continue
        for kind, characters in dropped:
            reading.skip("front_matter", page, kind)
            reading.take_out(_reason(kind), characters)
        begins = (page, "") in titles or not titles
        for block in blocks:
            anchor = next((name for name in sorted(block.anchors) if (page, name) in titles), None)
            if begins or anchor is not None or part is None:
                if part is not None:
                    yield part
                part = _Part(titles.get((page, anchor or ""), block.text if block.heading else ""))
                begins = False
            part.texts.append(block.text)
    if len(broken) == len(package.pages):
        raise book.broken(next(iter(broken.values())))
    for page, why in broken.items():
        reading.skip("broken_page", page, why)
    if part is not None:
        yield part


def _documents(reading: Reading[BookSource], parts: Iterable[_Part], about: Meta) -> Iterator[Raw]:
    chapters = _joined(parts)
    if not chapters:
        reading.skip("no_text", 0, str(about.get("title", "")))
    elif reading.source.document == "chapter":
        for number, part in enumerate(chapters):
            yield Raw(number, "\n\n".join(part.texts), {**about, **known(chapter=part.title)})
    else:
        yield Raw(0, "\n\n".join(text for part in chapters for text in part.texts), about)


def _joined(parts: Iterable[_Part]) -> list[_Part]:
    """The parts, those that are too short for a chapter with the one behind them."""
    joined: list[_Part] = []
    waiting: list[str] = []
    for part in parts:
        part = _Part(part.title, [*waiting, *part.texts])
        waiting = []
        if part.characters < _MIN_CHAPTER:
            waiting = part.texts
        else:
            joined.append(part)
    if waiting and joined:
        joined[-1].texts.extend(waiting)
    elif waiting:
        joined.append(_Part(texts=waiting))
    return joined


def _text(reading: Reading[BookSource], raw: Raw) -> Iterator[Raw]:
    """A text file's chapters, or all of it; what is no UTF-8 passes on as it is, for the caller to say where."""
    assert isinstance(raw.content, bytes)  # whole_file reads, and does not decode
    try:
        text = raw.content.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        yield raw
        return
    start = _START.search(text)
    about: Meta = {}
    if start is not None:
        head = text[: start.start()]
        language = language_tag(_field(head, "Language"))
        about = known(title=_field(head, "Title"), author=_field(head, "Author"), language=language)
    if not reading.source.front_matter:
        text = _body(reading, text, start)
    paragraphs = [paragraph.strip("\n") for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    parts = _by_headings(paragraphs)
    if not reading.source.front_matter:
        parts = _bounded(reading, functools.partial(_without_front_matter, parts))
    yield from _documents(reading, parts, about)


def _body(reading: Reading[BookSource], text: str, start: re.Match[str] | None) -> str:
    """The text between Project Gutenberg's header and its license; of a file of several books, all of theirs."""
    starts = list(_START.finditer(text, start.start())) if start is not None else []
    bodies = []
    for begin, stop in itertools.pairwise([*(one.end() for one in starts), len(text)] if starts else [0, len(text)]):
        end = _END.search(text, begin if starts else len(text) // 2, stop)
        bodies.append((begin, end.start() if end is not None else stop))
        if end is not None:
            reading.skip("front_matter", end.start(), "boilerplate")
    for one in starts:
        reading.skip("front_matter", one.start(), "boilerplate")
    reading.take_out("boilerplate", len(text) - sum(end - begin for begin, end in bodies))
    return "\n\n".join(text[begin:end] for begin, end in bodies)


def _by_headings(paragraphs: Iterable[str]) -> list[_Part]:
    """Paragraphs cut at chapter headings; the first part is what comes before them."""
    given = list(paragraphs)
    numerals = _numerals(given)
    parts = [_Part()]
    for number, paragraph in enumerate(given):
        first, *more = paragraph.strip().split("\n")
        heading = len(more) <= 1 and len(paragraph) <= 100
        chapter = number in numerals or _CHAPTER.fullmatch(first.strip())
        if heading and (chapter or (not more and by_heading(first) is not None)):
            parts.append(_Part(" ".join(paragraph.split())))
        parts[-1].texts.append(paragraph)
    return [piece for part in parts for piece in _behind_its_list(part)]


def _behind_its_list(part: _Part) -> Iterator[_Part]:
    """A part under a heading such as Contents, cut where the list ends that it names."""
    kind = by_heading(part.title)
    if kind not in LISTS:
        yield part
        return
    end = 1 + list_length(part.texts[1:])
    yield _Part(part.title, part.texts[:end])
    if part.texts[end:]:
        first, *more = part.texts[end].strip().split("\n")
        yield _Part("" if more or is_prose(first) else " ".join(first.split()), part.texts[end:])


def _numerals(paragraphs: Sequence[str]) -> set[int]:
    """Which paragraphs are headings of nothing but a Roman numeral: those of a row I, II, … of two or more.

    A dictionary's letters C, D and M are no chapters.
    """
    found: set[int] = set()
    row: list[int] = []
    for number, paragraph in enumerate(paragraphs):
        numeral = _ROMAN.match(paragraph.strip().split("\n")[0].strip()) if len(paragraph) <= 100 else None
        if numeral is None:
            continue
        value = _value(numeral[1])
        if value == 1:
            row = [number]
        elif row and value == len(row) + 1:
            row.append(number)
            found.update(row)
    return found


def _value(numeral: str) -> int:
    digits = [_DIGITS[letter] for letter in numeral.lower()]
    return sum(-one if one < following else one for one, following in zip(digits, [*digits[1:], 0], strict=True))


def _without_front_matter(parts: Sequence[_Part], reading: Reading[BookSource]) -> list[_Part]:
    """The parts without what is no part of the text, unless the source wants it."""
    return list(parts if reading.source.front_matter else _text_alone(reading, parts))


def _text_alone(reading: Reading[BookSource], parts: Sequence[_Part]) -> Iterator[_Part]:
    """Without what comes before the first chapter and looks like front matter, and without contents, index and such."""
    first = next((n for n, part in enumerate(parts) if part.characters >= 2 * _MIN_CHAPTER and _is_chapter(part)), 0)
    leading = sum(part.characters for part in parts[:first])
    if leading > _MAX_LEADING * sum(part.characters for part in parts):
        first = 0
    for number, part in enumerate(parts):
        kind = by_heading(part.title)
        if kind is not None and may_be(kind, part.texts):
            reading.skip("front_matter", number, kind)
            reading.take_out(_reason(kind), part.characters)
            continue
        if number < first:
            prose = next((n for n, text in enumerate(part.texts) if is_prose(text)), len(part.texts))
            if prose:
                reading.skip("front_matter", number, " ".join(part.texts[0].split())[:60])
                reading.take_out("front_matter", sum(map(len, part.texts[:prose])))
                part, first = _Part(part.title, part.texts[prose:]), first if prose == len(part.texts) else number
        if part.texts:
            yield part


def _is_chapter(part: _Part) -> bool:
    return bool(part.title) and by_heading(part.title) is None


def _field(head: str, name: str) -> str | None:
    found = re.search(_FIELD.format(name=name), head, re.M)
    return found[1] if found is not None else None


SOURCE = SourceKind("book", BookSource, read, "EPUBs and text files of books, whole or by chapter")
