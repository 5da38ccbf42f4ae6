"""EPUB files: what a book says of itself, and its pages, read without being believed.

An EPUB is a zip archive of web pages with a list of them. zipfile and lxml do, 30 MB of text a second: ebooklib 0.20 is
as fast, but is under the AGPL, unpacks every picture into memory (0.6 GB for an archive of 0.3 MB), and takes a file
named ../../etc/passwd without a word.
"""

from __future__ import annotations

import contextlib
import posixpath
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from raylm.prep.readers.base import Reading, S
from raylm.prep.readers.books.front_matter import TYPES
from raylm.prep.readers.books.xhtml import TYPE, parsed
from raylm.rows.compressed import BrokenFile, is_damage, max_unpacked
from raylm.storage import StoragePath

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
# These only hide fonts from copying; the text beside them can be read.
_FONT_HIDING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_BODY = frozenset(("bodymatter", "text", "start", "chapter"))
_Chapter: TypeAlias = tuple[str, str, str]  # its page, its element's id or "", its title
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")


class Encrypted(Exception):
    """The text is locked for one reader's devices."""


class BrokenPage(zipfile.BadZipFile):
    """A file of the archive is missing or not what was packed; the others may be whole."""


class TooLarge(Exception):
    """A book holds more text than the source allows."""


@dataclass(frozen=True)
class Package:
    """What a book says of itself. pages: archive names in reading order; beside: of what stands beside that order.

    types: what a page is, such as toc. chapters: the entries of the table of contents, in its order.
    """

    title: str
    author: str
    language: str
    pages: tuple[str, ...]
    beside: tuple[str, ...]
    types: dict[str, str]
    chapters: tuple[_Chapter, ...]


class Book:
    """An open EPUB."""

    def __init__(self, archive: zipfile.ZipFile, path: StoragePath, max_bytes: int) -> None:
        self._archive = archive
        self._path = path
        self._max_bytes = max_bytes
        self._read_bytes = 0
        self._names = {_spelled(name): name for name in reversed(archive.namelist())}

    def holds(self, name: str) -> bool:
        """Whether a file is in the archive."""
        return name in self._names.values()

    def read(self, name: str) -> bytes:
        """A member's content; TooLarge when all that was read is more than allowed."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise BrokenPage(f"names {name}, which is not in it") from None
        if info.flag_bits & 1:
            raise Encrypted(f"{name} has a password")
        # zipfile gives no more bytes than the archive declares, and checks that they are those.
        self._read_bytes += info.file_size
        if self._read_bytes > self._max_bytes:
            raise TooLarge(f"more than {self._max_bytes} bytes of text")
        try:
            return self._archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BrokenPage(f"cannot be unpacked: {name}: {error}") from error

    def package(self) -> Package:
        """Its list of contents, checked."""
        if _CONTAINER not in self._archive.namelist():
            raise self.broken(f"is no EPUB: it has no {_CONTAINER}")
        self._refuse_encrypted()
        root = self._xml(_CONTAINER).find(".//{*}rootfile")
        if root is None:
            raise self.broken(f"is no EPUB: its {_CONTAINER} names no package")
        path = self._inside("", root.get("full-path") or "")
        content = self._xml(path)
        items = {item.get("id"): item for item in content.iterfind("{*}manifest/{*}item")}
        hrefs = {key: self._inside(path, item.get("href") or "") for key, item in items.items()}
        spine = [entry for entry in content.iterfind("{*}spine/{*}itemref") if entry.get("idref") in items]
        texts = [entry for entry in spine if _is_text(items[entry.get("idref")])]
        # Where nothing is said to be read in order, all of it is.
        texts = [entry for entry in texts if entry.get("linear") != "no"] or texts
        pages = dict.fromkeys(hrefs[entry.get("idref")] for entry in texts)
        pages = pages or dict.fromkeys(hrefs[key] for key, item in items.items() if _is_text(item))
        if not pages:
            raise self.broken("is no EPUB that can be read: it lists no page of text")
        guide = [
            (self._inside(path, entry.get("href") or ""), entry.get("type") or "")
            for entry in content.iterfind("{*}guide/{*}reference")
            if "#" not in (entry.get("href") or "")
        ]
        chapters, landmarks = self._contents(content, items, hrefs)
        return Package(
            title=_first(content, "title"),
            author="; ".join(_all(content, "creator")),
            language=_first(content, "language"),
            pages=tuple(pages),
            beside=tuple(hrefs[entry.get("idref")] for entry in spine if hrefs[entry.get("idref")] not in pages),
            types=_types([*guide, *landmarks]),
            chapters=tuple(_of_pages(chapters, tuple(pages))),
        )

    def _contents(
        self, content: Any, items: dict[str, Any], hrefs: dict[str, str]
    ) -> tuple[list[_Chapter], list[tuple[str, str]]]:
        """The chapters and landmarks of the book's navigation, an EPUB 3's or else an EPUB 2's."""
        nav = next((hrefs[key] for key, item in items.items() if "nav" in (item.get("properties") or "").split()), None)
        if nav is not None and self.holds(nav):
            chapters, landmarks = self._nav(nav)
            return chapters, [(nav, "toc"), *landmarks]
        ncx = hrefs.get((spine.get("toc") or "") if (spine := content.find("{*}spine")) is not None else "")
        return (list(self._ncx(ncx)) if ncx is not None and self.holds(ncx) else []), []

    def _nav(self, path: str) -> tuple[list[_Chapter], list[tuple[str, str]]]:
        """The chapters and the landmarks of an EPUB 3's navigation."""
        chapters: list[_Chapter] = []
        landmarks: list[tuple[str, str]] = []
        for nav in self._xml(path).iter("{*}nav"):
            for link in nav.iter("{*}a"):
                page, _, fragment = (link.get("href") or "").partition("#")
                target = self._inside(path, page) if page else path
                if nav.get(TYPE) == "toc":
                    chapters.append((target, fragment, " ".join("".join(link.itertext()).split())))
                elif nav.get(TYPE) == "landmarks" and not fragment:
                    landmarks.append((target, link.get(TYPE) or ""))
        return chapters, landmarks

    def _ncx(self, path: str) -> Iterator[_Chapter]:
        """The chapters of an EPUB 2's navigation."""
        for point in self._xml(path).iter("{*}navPoint"):
            content = point.find("{*}content")
            if content is not None:
                page, _, fragment = (content.get("src") or "").partition("#")
                title = " ".join((point.findtext("{*}navLabel/{*}text") or "").split())
                yield self._inside(path, page), fragment, title

    def _inside(self, base: str, href: str) -> str:
        """The archive's name of what a file in it refers to; BrokenFile when that is outside."""
        page = unquote(href.partition("#")[0]).replace("\\", "/")
        if "://" in page:
            return page  # on the web: never fetched, and no page of the archive
        name = posixpath.normpath(posixpath.join(posixpath.dirname(base), page))
        if _escapes(name) and _spelled(name.lstrip("/")) in self._names:  # from the archive's own root
            name = name.lstrip("/")
        if _escapes(name):
            raise self.broken(f"names a file outside of it: {href!r}")
        return self._names.get(_spelled(name), name)

    def _refuse_encrypted(self) -> None:
        if _ENCRYPTION not in self._archive.namelist():
            return
        for method in self._xml(_ENCRYPTION).iter("{*}EncryptionMethod"):
            if method.get("Algorithm") not in _FONT_HIDING:
                raise Encrypted("its content is encrypted (DRM)")

    def _xml(self, name: str) -> Any:
        try:
            root = parsed(self.read(name))
        except BrokenPage as error:
            raise self.broken(str(error)) from error
        if root is None:
            raise self.broken(f"is damaged: {name} is empty")
        return root

    def broken(self, why: str) -> BrokenFile:
        """The book cannot be read, and why."""
        return BrokenFile(f"{self._path.url} {why}", hint="fetch it again, or take it out of the glob")


@contextlib.contextmanager
def opened_book(reading: Reading[S]) -> Iterator[Book]:
    """The EPUB; BrokenFile where the archive is damaged, escapes itself or unpacks to too much."""
    url = reading.path.url
    try:
        with reading.path.open_read() as stored, zipfile.ZipFile(stored) as archive:
            infos = archive.infolist()
            escaping = next((info.filename for info in infos if _escapes(info.filename)), None)
            if escaping is not None:
                raise BrokenFile(
                    f"{url} holds a path that escapes the archive: {escaping!r}",
                    hint="take it out of the glob; it was made to overwrite files",
                )
            max_bytes = max_unpacked(reading.path, reading.source.max_compression_ratio)
            if sum(info.file_size for info in infos) > max_bytes:
                raise BrokenFile(
                    f"{url} unpacks to more than {max_bytes} bytes: a bomb, or damaged",
                    hint="raise max_compression_ratio of this source if that is right",
                )
            yield Book(archive, reading.path, reading.source.max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if not is_damage(error):
            raise
        raise BrokenFile(
            f"{url} cannot be unpacked: {error}", hint="fetch it again; it is truncated or no EPUB"
        ) from error


def _of_pages(chapters: list[_Chapter], pages: tuple[str, ...]) -> Iterator[_Chapter]:
    """The chapters that are on the book's pages; by the page's own name where the table gives other folders."""
    known = set(pages)
    ends = [posixpath.basename(page) for page in pages]
    by_end = {end: page for end, page in zip(ends, pages, strict=True) if ends.count(end) == 1}
    elsewhere = not any(page in known for page, _, _ in chapters)
    for page, anchor, title in chapters:
        there = by_end.get(posixpath.basename(page), page) if elsewhere else page
        if there in known:
            yield there, anchor, title


def _is_text(item: Any) -> bool:
    """Whether a file of the book is a page, by its type or, where that is no type of pages, by its name."""
    kind = (item.get("media-type") or "").partition(";")[0].strip().lower()
    named = (item.get("href") or "").partition("#")[0].lower().endswith((".xhtml", ".html", ".htm", ".xht"))
    return kind in _PAGES or (named and not kind.startswith(("image/", "audio/", "video/", "font/")))


def _types(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What each page is, by all that the book says about it: where the book's text begins is no front matter."""
    found: dict[str, list[str]] = {}
    for page, words in named:
        found.setdefault(page, []).extend(words.lower().split())
    front = {page: next((word for word in words if word in TYPES), "") for page, words in found.items()}
    return {page: kind for page, kind in front.items() if kind and _BODY.isdisjoint(found[page])}


def _spelled(name: str) -> str:
    """A name without what one book's writers spell in two ways: case, forms of letters, the stroke between folders."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _escapes(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")


def _all(content: Any, name: str) -> list[str]:
    found = (
        " ".join("".join(element.itertext()).split()) for element in content.iterfind(f"{{*}}metadata//{{*}}{name}")
    )
    return [text for text in found if text]


def _first(content: Any, name: str) -> str:
    return next(iter(_all(content, name)), "")
