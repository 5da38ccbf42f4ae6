"""WARC files become documents: pages through HTML extraction, conversions as they are.

Address, date, title and language of a page are metadata; what is skipped is counted by its reason. `page_text` finds a
page's text, `http_body` what a server meant to send.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Literal, TypeAlias

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.readers.base import Raw, Reading, S, known, language_tag
from raylm.prep.readers.decoding import mostly
from raylm.prep.readers.http_body import body_of, media_type
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.page_text import PageText, mostly_utf8, page_reader
from raylm.prep.readers.records import (
    LANGUAGES,
    FoundLanguage,
    bare_address,
    broken,
    kind_of,
    main_language,
    records,
    with_languages,
)

_Extractor: TypeAlias = Callable[[bytes, str | None], PageText]
_Skip: TypeAlias = Callable[[str], None]
_SLIVER = 9  # times as much beside a page's main content as in it
_HTML = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")


class WarcSource(FileSourceSettings):
    """Web archives with the pages as they were sent."""

    kind: Literal["warc"] = Field("warc", description="How files are read.")
    extract: Literal["main", "all"] = Field(
        "main", description="A page's main content, or all of its text with menus and footers."
    )


def read(reading: Reading[WarcSource]) -> Iterator[Raw]:
    """The archive's pages in its order."""
    return pages(reading, whole=reading.source.extract == "all")


def pages(reading: Reading[S], *, whole: bool) -> Iterator[Raw]:
    """The pages of a WARC or WET file. whole: with menus and footers."""
    to_page = page_reader(whole=whole)

    def found() -> Iterator[Raw | FoundLanguage]:
        with reading.open() as stream:
            yield from _pages(reading, stream, to_page)

    yield from with_languages(found())  # outside, where damage has its name: the page before it is kept


def _pages(reading: Reading[S], stream: BinaryIO, to_page: _Extractor) -> Iterator[Raw | FoundLanguage]:
    readers: dict[str, Callable[[Any, _Extractor, _Skip], PageText | None]] = {
        "response": _response,
        "resource": _resource,
        "conversion": _conversion,
    }
    wanted = (*readers, "metadata")
    for number, record in records(reading, stream, wanted=wanted):
        kind, url = kind_of(record), bare_address(record.headers.get("WARC-Target-URI"))
        if kind == "metadata":
            reading.skip("other_record")
            if language := _found_language(record):
                yield FoundLanguage(url, language)
            continue
        skip = functools.partial(reading.skip, position=number, why=url or "")
        try:
            page = readers[kind](record, to_page, skip)
        except (OSError, ValueError) as error:
            reading.skipped.broken_record(broken(reading, number, str(error)))
            continue
        if page is not None:
            _count_beside(reading, number, url, page)
            identified = language_tag(record.headers.get("WARC-Identified-Content-Language"))
            language = identified or language_tag(page.language)
            date = record.headers.get("WARC-Date")
            yield Raw(number, page.text, known(url=url, date=date, title=page.title, language=language))


def _count_beside(reading: Reading[S], number: int, url: str | None, page: PageText) -> None:
    """Count what a page holds beside its main content; where that is a sliver, the page is an example."""
    kept = len(page.text)
    sliver = f"{kept:,} of {kept + page.beside:,} characters of {url} are main content"
    reading.take_out("beside_main_text", page.beside, number, sliver if page.beside > _SLIVER * kept else "")


def _response(record: Any, to_page: _Extractor, skip: _Skip) -> PageText | None:
    if not record.is_http:
        return _resource(record, to_page, skip)  # a page without its head
    record.parse_http(auto_decode="none", quirks_mode=True)
    headers = record.http_headers
    if headers is None or headers.status_code != 200:
        skip("http_status")
        return None
    given = {name.lower(): value for name, value in headers}
    body = body_of(record.reader.read(), given)
    kind, charset = media_type(given.get("content-type"), body)
    page = _page(kind, charset, body, to_page, skip)
    return replace(page, language=page.language or headers.get("Content-Language")) if page is not None else None


def _resource(record: Any, to_page: _Extractor, skip: _Skip) -> PageText | None:
    body = record.reader.read()
    kind, charset = media_type(record.headers.get("Content-Type"), body)
    return _page(kind, charset, body, to_page, skip)


def _page(kind: str, charset: str | None, body: bytes, to_page: _Extractor, skip: _Skip) -> PageText | None:
    if kind not in _HTML:
        skip("no_page")  # pictures, scripts and feeds
        return None
    page: PageText = to_page(body, charset)
    if not page.text:
        skip("no_main_text" if page.bare else "no_text")
        return None
    return page


def _conversion(record: Any, to_page: _Extractor, skip: _Skip) -> PageText | None:
    """Text that a crawler made of a page, in UTF-8 by the format's definition, or as it says."""
    body: bytes = record.reader.read()
    text = mostly_utf8(body)
    if text is None:
        _, charset = media_type(record.headers.get("Content-Type"), body)
        text = mostly(body, charset) if charset else None
    if text is None:
        skip("encoding")
        return None
    return PageText(text.removeprefix("\ufeff"))


def _found_language(record: Any) -> str | None:
    lines = record.reader.read().decode(errors="replace").splitlines()
    named = (line.partition(": ") for line in lines)
    return next((main_language(value) for name, _, value in named if name == LANGUAGES), None)


SOURCE = SourceKind("warc", WarcSource, read, "WARC archives of a crawl, pages through HTML extraction")
