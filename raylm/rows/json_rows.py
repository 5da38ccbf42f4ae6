"""JSON as rows: an object a line, or one file that holds an object or a list of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

from raylm.rows.base import Row, RowFile
from raylm.rows.compressed import BrokenFile
from raylm.rows.lines import lines, not_utf8

PEEKED = 4096  # bytes of a file's beginning
_MARK = b"\xef\xbb\xbf"  # a byte order mark
_DECODER = json.JSONDecoder()


def json_lines(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """The objects that begin in the file's range, one a line; blank lines are no rows.

    A file that is one list is read as such, whatever it is called.
    """
    if not file.start and _begins_list(stream):
        yield from json_file(replace(file, unit="item"), stream)
        return
    for position, line in lines(file, stream):
        line = line if position else line.removeprefix(_MARK)
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except UnicodeDecodeError as error:
            file.bad(position, "encoding", not_utf8(error), hint="convert the file to UTF-8", content=line)
        except (ValueError, RecursionError) as error:
            hint = "each line must be one JSON object; correct or remove this line"
            file.bad(position, "broken_record", f"is not JSON: {error}", hint=hint)
        else:
            if (row := _row(file, value, position)) is not None:
                yield row


def json_file(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """The items of a file that holds a list, or the one object it holds; positions count them from 0."""
    content = stream.read(file.max_bytes + 1)
    if len(content) > file.max_bytes:
        raise BrokenFile(
            f"{file.path.url} is JSON of more than {file.max_bytes} bytes", hint="write it as JSON lines, one a row"
        )
    try:
        value = json.loads(content.removeprefix(_MARK))
    except (ValueError, RecursionError) as error:
        raise BrokenFile(
            f"{file.path.url} is not JSON: {error}",
            hint="correct it; where it holds an object a line, its kind is jsonl",
        ) from error
    for position, item in enumerate(value if isinstance(value, list) else [value]):
        if (row := _row(file, item, position)) is not None:
            yield row


def _begins_list(stream: BinaryIO) -> bool:
    """Whether a file is one list; the stream stays where it stands."""
    return is_list(cast(io.BufferedReader, stream).peek(PEEKED)[:PEEKED])


def is_list(begins: bytes) -> bool:
    """Whether a file of JSON that begins so is one list, on one line or several.

    It is none where a list ends on the first line and other lines follow.
    """
    begins = begins.removeprefix(_MARK).lstrip()
    first, end, others = begins.partition(b"\n")
    return begins.startswith(b"[") and not (end and first.rstrip().endswith(b"]") and others.strip())


def _row(file: RowFile, value: Any, position: int) -> Row | None:
    """The row of a JSON value; None, and a report, where it is no object or lacks a column."""
    if not isinstance(value, dict):
        there = f"it has: {type(value).__name__}"
        why = f"is no JSON object; {there}" if not file.columns else f"has no key {file.columns[0]!r}; {there}"
        file.bad(position, "broken_record", why, column=file.columns[0] if file.columns else None)
        return None
    if file.columns is None:
        return Row(value, position, file.path)
    try:
        return Row({name: value[name] for name in file.columns}, position, file.path)
    except KeyError:
        missing = next((name for name in file.columns if name not in value and name not in file.optional), None)
        if missing is None:
            return Row({name: value.get(name) for name in file.columns}, position, file.path)
        why = f"has no key {missing!r}; it has: {', '.join(sorted(value))}"
        file.bad(position, "broken_record", why, hint="name a key that is there", column=missing)
        return None


def _parsed(line: bytes) -> Any:
    # json.loads first looks which Unicode it is, and which settings it was given: a third of its time on short lines.
    if line.startswith(b"{") and line[1:2] != b"\0":
        return _DECODER.decode(line.decode("utf-8", "surrogatepass"))
    return json.loads(line)
