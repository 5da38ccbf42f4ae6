"""Web archives become documents: the pages of WARC files through HTML extraction, WET conversions as they are.

Comes in: an unpacked archive. Leaves: (record number, text) for every page that has some; what is left out is counted
by its reason. Records are framed here because both FastWARC 2.0 and warcio 1.8 end in silence where an archive is cut
off or a Content-Length is wrong; FastWARC then parses each record and its HTTP message, twice as fast as warcio.
Resiliparse finds a page's text: 40 times as fast as trafilatura on the same pages, and without turning layout tables
into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from raylm.config.schema import TextSource
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.left_out import BrokenFile, LeftOut
from raylm.storage import Place

_HTML = ("text/html", "application/xhtml+xml")
_HEADER_LINE_BYTES = 1 << 16
_SKIPPED_AT_ONCE = 1 << 20


def pages(source: TextSource, place: Place, stream: BinaryIO, left_out: LeftOut) -> Iterator[tuple[int, str]]:
    """The texts of an archive's pages, in its order."""
    record_class, to_text = _tools()
    wanted = {"response": _response, "resource": _resource, "conversion": _conversion}
    for number, data in _frames(place, stream, source.most_bytes, left_out):
        try:
            record = record_class.from_bytes(data)
            kind = str(record.record_type)
            if kind not in wanted:
                left_out.note("revisit" if kind == "revisit" else "other_record")
                continue
            if "WARC-Block-Digest" in record.headers and not record.verify_block_digest():
                left_out.broken_record(_broken(place, number, "its block digest differs"))
                continue
            text = wanted[kind](record, to_text, left_out, whole_page=source.extract == "all")
        except OSError as error:
            left_out.broken_record(_broken(place, number, str(error)))
            continue
        if text is not None:
            yield number, text


def _tools() -> tuple[Any, Callable[[bytes, str | None, bool], str]]:
    try:
        from fastwarc.warc import WarcRecord
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
    except ImportError as error:
        raise not_installed("reading web archives", error) from error

    def to_text(body: bytes, charset: str | None, whole: bool) -> str:
        # What the server says is often wrong, and nearly every byte is valid where it says Latin-1. What is valid
        # UTF-8 hardly ever is anything else, but for encodings made of zeros (UTF-16) or escapes (ISO-2022).
        encoding = map_encoding_to_html5(charset) if charset else None
        if b"\0" not in body and b"\x1b" not in body and _decodes(body, "utf-8"):
            encoding = "utf-8"
        elif encoding is None or not _decodes(body, encoding):
            encoding = detect_encoding(body, from_html_meta=True)
        html = bytes_to_str(body, encoding or "utf-8")
        text: str = extract_plain_text(html, main_content=not whole, alt_texts=False)
        return text

    return WarcRecord, to_text


def _decodes(body: bytes, encoding: str) -> bool:
    try:
        body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _response(record: Any, to_text: Any, left_out: LeftOut, *, whole_page: bool) -> str | None:
    if not record.is_http:
        left_out.note("no_page")
        return None
    record.parse_http(auto_decode="all", quirks_mode=True)
    status = record.http_headers.status_code if record.http_headers is not None else None
    if status != 200:
        left_out.note("http_status")
        return None
    return _page(record.http_content_type, record.http_charset, record, to_text, left_out, whole_page)


def _resource(record: Any, to_text: Any, left_out: LeftOut, *, whole_page: bool) -> str | None:
    content_type, _, parameters = (record.headers.get("Content-Type") or "").partition(";")
    charset = parameters.partition("charset=")[2].strip(' "') or None
    return _page(content_type.strip().lower(), charset, record, to_text, left_out, whole_page)


def _page(
    content_type: str | None, charset: str | None, record: Any, to_text: Any, left_out: LeftOut, whole_page: bool
) -> str | None:
    if content_type not in _HTML:
        left_out.note("no_page")  # pictures, scripts and feeds
        return None
    text: str = to_text(record.reader.read(), charset, whole_page).strip()
    if not text:
        left_out.note("no_text")
        return None
    return text


def _conversion(record: Any, to_text: Any, left_out: LeftOut, *, whole_page: bool) -> str | None:
    """Text that a crawler made of a page, in UTF-8 by the format's definition."""
    body: bytes = record.reader.read()
    try:
        return body.decode()
    except UnicodeDecodeError:
        left_out.note("encoding")
        return None


def _frames(place: Place, stream: BinaryIO, most_bytes: int, left_out: LeftOut) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each record; one that is too large is counted and passed over without being held."""
    number = position = 0
    while line := stream.readline(_HEADER_LINE_BYTES):
        begins, position = position, position + len(line)
        if not line.strip():
            continue
        if not line.startswith(b"WARC/"):
            raise BrokenFile(
                f"{place.url} is damaged or no WARC file: no record begins at byte {begins}, but {line[:40]!r}",
                hint="fetch it again; an ARC file has to be converted first (warcio recompress)",
            )
        head = [line]
        length = None
        while (line := stream.readline(_HEADER_LINE_BYTES)).strip():
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                length = int(value)
            head.append(line)
        position += sum(map(len, head[1:])) + len(line)
        if not line or length is None:
            raise _cut_off(place, number, "its header is not whole" if not line else "its header has no Content-Length")
        if length > most_bytes:
            left_out.note("too_large", place.url, number, f"{length} bytes")
            left = length
            while left and (part := stream.read(min(left, _SKIPPED_AT_ONCE))):
                left -= len(part)
            if left:
                raise _cut_off(place, number, f"{left} of {length} bytes are missing")
        else:
            body = stream.read(length)
            if len(body) < length:
                raise _cut_off(place, number, f"{length - len(body)} of {length} bytes are missing")
            yield number, b"".join([*head, b"\r\n", body, b"\r\n\r\n"])
        position += length
        number += 1


def _broken(place: Place, number: int, why: str) -> DataError:
    return DataError(f"{place.url} record {number} is damaged: {why}", hint="fetch the file again")


def _cut_off(place: Place, number: int, why: str) -> BrokenFile:
    return BrokenFile(f"{place.url} ends inside record {number}: {why}", hint="fetch it again; it is truncated")
