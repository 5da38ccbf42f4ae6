"""The records of web archives (WARC, WET, WAT), parsed and checked.

Records are framed here because both FastWARC 2.0 and warcio 1.8 end in silence where an archive is cut off or a
Content-Length is wrong; FastWARC then parses each record and its HTTP message, twice as fast as warcio.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.readers.base import Raw, Reading, S, language_tag
from raylm.rows import BrokenFile

_HEADER_LINE_BYTES = 1 << 16
_SKIPPED_AT_ONCE = 1 << 20
LANGUAGES = "languages-cld2"  # what Common Crawl calls the languages that it found in a page


def records(reading: Reading[S], stream: BinaryIO, *, wanted: Collection[str]) -> Iterator[tuple[int, Any]]:
    """(number, record) of each record of a wanted type; others and damaged ones are counted."""
    try:
        from fastwarc.warc import WarcRecord
    except ImportError as error:
        raise not_installed("reading web archives", error) from error
    for number, data in _frames(reading, stream):
        try:
            record = WarcRecord.from_bytes(data)
            kind = kind_of(record)
            if not kind:
                reading.skipped.broken_record(broken(reading, number, "it has no WARC-Type"))
            elif kind not in wanted:
                reading.skip("revisit" if kind == "revisit" else "other_record")
            elif "WARC-Block-Digest" in record.headers and not record.verify_block_digest() and _differs(record, data):
                reading.skipped.broken_record(broken(reading, number, "its block digest differs"))
            else:
                yield number, record
        except OSError as error:
            reading.skipped.broken_record(broken(reading, number, str(error)))


def _differs(record: Any, data: bytes) -> bool:
    """Whether a record's digest is that of other bytes; one in letters that nobody can read says nothing."""
    name, _, given = str(record.headers.get("WARC-Block-Digest")).strip().partition(":")
    try:
        made = hashlib.new(name.strip().lower().replace("-", ""))
    except ValueError:
        return False
    made.update(data.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n"))
    digest, given = made.digest(), given.strip()
    spelled = (base64.b32encode(digest).decode(), digest.hex(), base64.b64encode(digest).decode())
    same_length = any(len(given.rstrip("=")) == len(one.rstrip("=")) for one in spelled)
    return same_length and all(given.rstrip("=").lower() != one.rstrip("=").lower() for one in spelled)


def kind_of(record: Any) -> str:
    """A record's type in small letters."""
    return str(record.headers.get("WARC-Type") or "").strip().lower()


def bare_address(named: object) -> str | None:
    """A page's address without the brackets that wget puts around it."""
    return named.strip().removeprefix("<").removesuffix(">") if isinstance(named, str) else None


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


def broken(reading: Reading[S], number: int, why: str) -> DataError:
    """The error for one damaged record."""
    return DataError(f"{reading.path.url} record {number} is damaged: {why}", hint="fetch the file again")


def main_language(found: str) -> str | None:
    """The first of the languages in Common Crawl's JSON, which orders them by their share; None where it has none."""
    try:
        languages = json.loads(found).get("languages") or [{}]
        return language_tag(languages[0].get("code"))
    except (ValueError, AttributeError, LookupError):
        return None


def _frames(reading: Reading[S], stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each record; one that is too large is counted and passed over without being held."""
    url, max_bytes = reading.path.url, reading.source.max_bytes
    number = position = 0
    while line := stream.readline(_HEADER_LINE_BYTES):
        begins, position = position, position + len(line)
        if not line.strip():
            continue
        if line.startswith(b"filedesc:"):
            raise BrokenFile(f"{url} is an ARC file, not a WARC file", hint="convert it first: warcio recompress")
        if not line.startswith(b"WARC/"):
            raise BrokenFile(
                f"{url} is damaged or no WARC file: no record begins at byte {begins}, but {line[:40]!r}",
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
            raise _cut_off(url, number, "its header is not whole" if not line else "its header has no Content-Length")
        if length > max_bytes:
            reading.skip("too_large", number, f"{length} bytes")
            left = length
            while left and (part := stream.read(min(left, _SKIPPED_AT_ONCE))):
                left -= len(part)
            if left:
                raise _cut_off(url, number, f"{left} of {length} bytes are missing")
        else:
            body = stream.read(length)
            if len(body) < length:
                raise _cut_off(url, number, f"{length - len(body)} of {length} bytes are missing")
            yield number, b"".join([*head, b"\r\n", body, b"\r\n\r\n"])
        position += length
        number += 1


def _cut_off(url: str, number: int, why: str) -> BrokenFile:
    return BrokenFile(f"{url} ends inside record {number}: {why}", hint="fetch it again; it is truncated")
