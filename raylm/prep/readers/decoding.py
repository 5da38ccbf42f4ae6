"""Texts of documents: bytes that are not UTF-8, half characters, and what is no text at all."""

from __future__ import annotations

import re

from raylm.errors import DataError
from raylm.prep.readers.base import Reading, S
from raylm.rows import COMPRESSED

_EXAMINED = 512  # characters of a text
_MAX_CONTROLS = 0.1  # share of a text; logs with terminal colours have less
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")


def decode(reading: Reading[S], position: int, content: bytes, unit: str = "byte") -> str | None:
    """The text of UTF-8; None, and a count, where it is none and the source skips such documents."""
    try:
        text = content.decode()
        return text.removeprefix("\ufeff") if position == 0 else text  # a byte order mark
    except UnicodeDecodeError as error:
        wrong = f"0x{content[error.start]:02x}"
        if reading.source.encoding_errors == "skip":
            reading.skip("encoding", position, f"{wrong} is not UTF-8")
            return None
        unpacked = " of the unpacked text" if reading.path.name.endswith(COMPRESSED) else ""
        where = f"byte {position + error.start}" if unit == "byte" else f"{unit} {position}, byte {error.start}"
        raise DataError(
            f"{reading.path.url} is not UTF-8: {wrong} at {where}{unpacked}",
            hint="convert the file to UTF-8, or set encoding_errors: skip on this source to leave such documents out",
        ) from error


def mostly(body: bytes, encoding: str, *, broken: float = 0.1) -> str | None:
    """The text in an encoding, with a mark in place of a few broken bytes.

    None where there is no such encoding, or where of the characters beyond ASCII more than a share `broken` are marks:
    then it is in another one.
    """
    try:
        text = body.decode(encoding, "replace")
    except LookupError:
        return None
    return text if text.count("\ufffd") <= broken * sum(character > "\x7f" for character in text) else None


def checked(reading: Reading[S], position: int, text: str) -> str | None:
    """The text, unless it holds a lone surrogate: JSON can spell half a pair, which no UTF-8 can hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if reading.source.encoding_errors == "skip":
            reading.skip("encoding", position, "a lone surrogate")
            return None
        raise DataError(
            f"{reading.path.url} at {position}: character {error.start} of the text is a lone surrogate, not UTF-8",
            hint="correct the text, or set encoding_errors: skip on this source to leave such documents out",
        ) from error
    return text


def is_binary(text: str) -> bool:
    """Whether a text holds a zero, or begins with more control characters than any writing does."""
    # Looking for them in all of it would halve the speed of reading.
    begins = text[:_EXAMINED]
    return "\0" in text or not (begins.isprintable() or _control_share(begins) <= _MAX_CONTROLS)


def _control_share(text: str) -> float:
    return len(_CONTROL.findall(text)) / len(text)


def binary_text(reading: Reading[S], position: int) -> DataError:
    """The error for a text that is_binary."""
    return DataError(
        f"{reading.path.url} at {position}: the text is binary, of zeros or control characters",
        hint="take the file out of the glob, or correct the record",
    )
