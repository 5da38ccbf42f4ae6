"""Files of JSON lines that grow for as long as a run goes on, with a bounded part of them in memory.

On a file system a `LineFile` is one file that lines are appended to, so that `tail -f` follows it. An object store
cannot append: there it is a folder of numbered parts, of which only the last is ever written again. Lines that carry a
step stand in its order, and those after a step can be cut off again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from raylm.errors import StorageError
from raylm.run.metrics import Line
from raylm.storage import NotFound, StoragePath

log = logging.getLogger(__name__)

# A part that holds this much is finished. A flush writes at most so much again of what an earlier one wrote.
PART_BYTES = 1 << 20
# More than this is not kept for the next flush to come.
PENDING_BYTES = 8 << 20
_BLOCK_BYTES = 64 << 10
_THREADS = 8


class LineFile(Protocol):
    """Lines that are appended, and cut off at the end."""

    @property
    def is_due(self) -> bool:
        """Whether so much waits for a flush that it should not wait for its time."""

    def append(self, line: Line) -> None:
        """Add one line."""

    def cut_after(self, step: int) -> None:
        """Remove the lines of later steps, which are the last ones."""

    def flush(self) -> None:
        """Make every line readable."""

    def last(self) -> Line | None:
        """The last line that is whole, None when there is none."""


def line_file(path: StoragePath) -> LineFile:
    """The lines at a path: one file on a file system, a folder of parts elsewhere."""
    local = path.local_path()
    return PartedLines(path) if local is None else AppendedLines(local)


def read_lines(path: StoragePath) -> list[Line]:
    """Every line at a path, in order; none when nothing is there.

    A last line that a kill cut short is left out, and so is any other that is damaged, which a warning names.
    """
    if path.is_local:
        return _parsed(path, path.read_bytes()) if path.exists() else []
    parts = _parts(path)
    if not parts:
        return []
    with ThreadPoolExecutor(min(_THREADS, len(parts))) as pool:
        return [line for lines in pool.map(_read_part, parts) for line in lines]


class AppendedLines:
    """One local file. Half a last line, which a killed writer leaves, is removed when it is opened.

    What cannot be written now, because the disk is full, is kept in memory and written with what comes next.
    """

    is_due = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[int, bytes]] = []  # (step, line) that are not in the file yet
        if path.exists():
            self._truncate(_whole_bytes(path))

    def append(self, line: Line) -> None:
        """Add one line; it can be read at once, unless the disk is full, which is said once."""
        self._waiting.append((line.get("step", 0), _encoded(line)))
        try:
            self._write()
        except OSError as error:
            if len(self._waiting) == 1:
                log.warning("cannot write %s: %s; its lines are kept and written later", self._path, error.strerror)

    def cut_after(self, step: int) -> None:
        """Remove the lines of later steps."""
        self._waiting = [(at, text) for at, text in self._waiting if at <= step]
        if not self._path.exists():
            return
        keep = self._path.stat().st_size
        for start, text in _backwards(self._path):
            line = _line(text)
            if line is not None and line.get("step", 0) <= step:
                break
            keep = start
        self._truncate(keep)

    def flush(self) -> None:
        """Write what waits, if anything does; StorageError when that is still not possible."""
        try:
            self._write()
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}; {len(self._waiting)} of its lines wait in memory",
                hint="make room on that disk",
            ) from error

    def last(self) -> Line | None:
        """The last line that is whole."""
        for _, text in reversed(self._waiting):
            return _line(text)
        if not self._path.exists():
            return None
        return next((line for _, text in _backwards(self._path) if (line := _line(text)) is not None), None)

    def _write(self) -> None:
        """Write what waits: all of it, or none of a line."""
        if not self._waiting:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as out:
            while self._waiting:
                whole, text = out.tell(), self._waiting[0][1]
                try:
                    if out.write(text) < len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(out.fileno(), whole)
                    raise
                self._waiting.pop(0)

    def _truncate(self, length: int) -> None:
        if length == self._path.stat().st_size:
            return
        try:
            os.truncate(self._path, length)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


class PartedLines:
    """Numbered parts on an object store.

    Each writer begins a part of its own: one that was cut off and comes late overwrites no line of its successor.
    """

    def __init__(self, folder: StoragePath) -> None:
        self._folder = folder
        parts = _parts(folder)
        self._number = _number(parts[-1]) if parts else 0
        self._finished: list[tuple[int, bytes]] = []
        self._open = bytearray()
        self._is_new = False
        self._begin()

    @property
    def is_due(self) -> bool:
        """Whether so much waits for a flush that it should not wait for its time."""
        return sum(len(text) for _, text in self._finished) >= PENDING_BYTES

    def append(self, line: Line) -> None:
        """Add one line; it can be read after the next flush."""
        self._open += _encoded(line)
        self._is_new = True
        if len(self._open) >= PART_BYTES:
            self._finished.append((self._number, bytes(self._open)))
            self._begin()

    def cut_after(self, step: int) -> None:
        """Remove the lines of later steps: whole parts from the last one back, and the end of one."""
        own = self._number
        while not (kept := _up_to(bytes(self._open), step)) and self._number > 1:
            self._part(self._number).remove()
            if self._finished:
                self._number, text = self._finished.pop()
                self._open, self._is_new = bytearray(text), True
            else:
                self._number -= 1
                self._open, self._is_new = bytearray(self._read(self._number)), False
        is_new = self._is_new or len(kept) < len(self._open)
        if self._number == own:
            self._open, self._is_new = bytearray(kept), is_new
            return
        # An earlier part, perhaps another writer's: it is written again without its end, and this writer's is begun.
        if is_new and kept:
            self._finished.append((self._number, kept))
        elif is_new:
            self._part(self._number).remove()
        self._number, self._open, self._is_new = own, bytearray(), False

    def flush(self) -> None:
        """Write the parts that were finished, once each, and the one that is being filled."""
        while self._finished:
            number, text = self._finished[0]
            self._part(number).write_bytes(text)
            self._finished.pop(0)
        if self._is_new:
            self._part(self._number).write_bytes(bytes(self._open))
            self._is_new = False

    def last(self) -> Line | None:
        """The last line that is whole."""
        texts = [bytes(self._open), *(text for _, text in reversed(self._finished))]
        stored = (self._read(number) for number in range(self._number - 1, 0, -1))
        for text in (*texts, *stored):
            for one in reversed(text.splitlines()):
                if (line := _line(one)) is not None:
                    return line
        return None

    def _begin(self) -> None:
        self._number += 1
        self._open = bytearray()
        self._is_new = False

    def _part(self, number: int) -> StoragePath:
        return self._folder / f"{number:06d}.jsonl"

    def _read(self, number: int) -> bytes:
        try:
            return self._part(number).read_bytes()
        except NotFound:
            return b""


def _parts(folder: StoragePath) -> list[StoragePath]:
    found = [path for path in folder.list() if path.name.removesuffix(".jsonl").isdigit()]
    return sorted(found, key=_number)


def _number(part: StoragePath) -> int:
    return int(part.name.removesuffix(".jsonl"))


def _read_part(part: StoragePath) -> list[Line]:
    try:
        return _parsed(part, part.read_bytes())
    except NotFound:
        return []  # cut off since the folder was listed


def _parsed(path: StoragePath, data: bytes) -> list[Line]:
    texts = data.splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        line = _line(text)
        if line is not None:
            lines.append(line)
        elif text.strip() and number < len(texts):
            log.warning("%s:%d is damaged and left out: not a JSON line", path.url, number)
    return lines


def _encoded(line: Line) -> bytes:
    return json.dumps(_with_names(line), allow_nan=False).encode() + b"\n"


def _line(text: bytes) -> Line | None:
    try:
        line = _with_numbers(json.loads(text))
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


# JSON has no such numbers: other programs refuse a whole line for one. Older lines hold them bare, as Python reads
# them.
_NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _with_names(value: Any) -> Any:
    """The value with the names of numbers that are not finite in their place."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _with_names(one) for key, one in value.items()}
    return [_with_names(one) for one in value] if isinstance(value, list | tuple) else value


def _with_numbers(value: Any) -> Any:
    """What `_with_names` was given."""
    if isinstance(value, str):
        return _NO_NUMBERS.get(value, value)
    if isinstance(value, dict):
        return {key: _with_numbers(one) for key, one in value.items()}
    return [_with_numbers(one) for one in value] if isinstance(value, list) else value


def _up_to(text: bytes, step: int) -> bytes:
    """The lines before the first one of a later step."""
    length = 0
    for one in text.splitlines(keepends=True):
        line = _line(one)
        if line is not None and line.get("step", 0) > step:
            break
        length += len(one)
    return text[:length]


def _whole_bytes(path: Path) -> int:
    """The length of a file up to the end of its last whole line."""
    size = path.stat().st_size
    for start, text in _backwards(path):
        return size if text.endswith(b"\n") else start
    return 0


def _backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from the last to the first, each with the byte at which it starts."""
    with path.open("rb") as stream:
        at = stream.seek(0, os.SEEK_END)
        rest = b""
        while at > 0:
            length = min(_BLOCK_BYTES, at)
            at = stream.seek(at - length)
            rest = stream.read(length) + rest
            first, *whole = rest.splitlines(keepends=True)
            end = at + len(rest)
            for text in reversed(whole):
                end -= len(text)
                yield end, text
            rest = first
        if rest:
            yield 0, rest
