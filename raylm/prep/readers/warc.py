"""Web archives become records: comes in an unpacked WARC, WET or WAT file, leave its records, parsed and checked.

Records are framed here because both FastWARC 2.0 and warcio 1.8 end in silence where an archive is cut off or a
Content-Length is wrong; FastWARC then parses each record and its HTTP message, twice as fast as warcio.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from raylm.errors import DataError
from raylm.prep.checks.skipped import BrokenFile, Skipped
from raylm.prep.extras import not_installed
from raylm.prep.readers.base import Raw, language_tag
from raylm.storage import StoragePath

_HEADER_LINE_BYTES = 1 << 16
_SKIPPED_AT_ONCE = 1 << 20
LANGUAGES = "languages-cld2"  # what Common Crawl calls the languages that it found in a page


def records(
    place: StoragePath, stream: BinaryIO, skipped: Skipped, *, wanted: Collection[str], max_bytes: int
) -> Iterator[tuple[int, Any]]:
    """(number, record) of each record of a wanted type; others and damaged ones are counted."""
    try:
        from fastwarc.warc import WarcRecord
    except ImportError as error:
        raise not_installed("reading web archives", error) from error
    for number, data in _frames(place, stream, max_bytes, skipped):
        try:
            record = WarcRecord.from_bytes(data)
            kind = str(record.record_type)
            if kind not in wanted:
                skipped.note("revisit" if kind == "revisit" else "other_record")
            elif "WARC-Block-Digest" in record.headers and not record.verify_block_digest():
                skipped.broken_record(broken(place, number, "its block digest differs"))
            else:
                yield number, record
        except OSError as error:
            skipped.broken_record(broken(place, number, str(error)))


@dataclass(frozen=True)
class FoundLanguage:
    """What a record behind a page says about it."""

    url: str | None
    language: str


def with_languages(found: Iterable[Raw | FoundLanguage]) -> Iterator[Raw]:
    """The pages, each with the language that Common Crawl found there, which it says in the record behind it."""
    waiting: Raw | None = None
    try:
        for item in found:
            if isinstance(item, Raw):
                if waiting is not None:
                    yield waiting
                waiting = item
            elif waiting is not None and waiting.meta.get("url") == item.url:
                waiting = replace(waiting, meta={**waiting.meta, "language": item.language})
    except BrokenFile:
        if waiting is not None:
            yield waiting
        raise
    if waiting is not None:
        yield waiting


def broken(place: StoragePath, number: int, why: str) -> DataError:
    """The error for one damaged record."""
    return DataError(f"{place.url} record {number} is damaged: {why}", hint="fetch the file again")


def main_language(found: str) -> str | None:
    """The first of the languages in Common Crawl's JSON, which orders them by their share; None where it has none."""
    try:
        languages = json.loads(found).get("languages") or [{}]
        return language_tag(languages[0].get("code"))
    except (ValueError, AttributeError, LookupError):
        return None


def _frames(place: StoragePath, stream: BinaryIO, max_bytes: int, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each record; one that is too large is counted and passed over without being held."""
    number = position = 0
    while line := stream.readline(_HEADER_LINE_BYTES):
        begins, position = position, position + len(line)
        if not line.strip():
            continue
        if line.startswith(b"filedesc:"):
            raise BrokenFile(f"{place.url} is an ARC file, not a WARC file", hint="convert it first: warcio recompress")
        if not line.startswith(b"WARC/"):
            raise BrokenFile(
                f"{place.url} is damaged or no WARC file: no record begins at byte {begins}, but {line[:40]!r}",
                hint="fetch it again",
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
        if length > max_bytes:
            skipped.note("too_large", place.url, number, f"{length} bytes")
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


def _cut_off(place: StoragePath, number: int, why: str) -> BrokenFile:
    return BrokenFile(f"{place.url} ends inside record {number}: {why}", hint="fetch it again; it is truncated")
