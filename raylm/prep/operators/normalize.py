"""One Unicode form, one kind of space, nothing invisible: the same words in fewer ways to write them.

Done again, it changes nothing: one pass can bring about what the next one clears away, such as a letter and an accent
that meet when what was between them goes, so passes go on until one changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pydantic import Field

from raylm.config.base import Settings
from raylm.prep.extras import not_installed
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document

_MOST_PASSES = 8  # three were the most that random texts needed
_LINE_ENDS = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters but tab and line feed; soft hyphen; zero-width space; marks of direction are kept, as Hebrew and
# Arabic text needs them; word joiner and byte order mark; what stands for objects and annotations.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufff9-\ufffc]")
# Persian, Indic scripts and emoji need these two between their own letters; beside ASCII nobody does. Runs are taken
# whole, from their beginning: a million spaces must not cost the square of that.
_JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]++|(?<![\u200c\u200d])[\u200c\u200d]++(?![^\x00-\x7f])")
_OTHER_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INNER_SPACES = re.compile(r"(?<=\S)(?:[ \t]{2,}+|\t)")
_LINE_BEGINS = re.compile(r"^[ \t]+", re.MULTILINE)
_LINE_TRAILS = re.compile(r"(?<![ \t])[ \t]++$", re.MULTILINE)

Change = tuple[str, Callable[[str], str]]


class Normalize(Settings):
    """Bring texts to one Unicode form and one kind of space, and clear out what nobody sees."""

    form: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="Unicode form; NFKC also unfolds ligatures, full-width letters and superscripts."
    )
    invisible: bool = Field(
        True, description="Remove control characters, soft hyphens, and zero-width characters that no script needs."
    )
    spaces: bool = Field(
        True, description="One kind of line end and space; runs of spaces in a line become one, ends are trimmed."
    )
    indentation: bool = Field(True, description="Keep the spaces and tabs that lines begin with, as code has them.")
    blank_lines: int = Field(1, ge=0, description="Most blank lines in a row.")
    mojibake: bool = Field(False, description="Repair text that was decoded with the wrong encoding, by ftfy.")


def normalize_operator(settings: Normalize, context: OperatorContext) -> Operator:
    """The operator that brings each text to its normal form; the record says how many texts changed in which way."""
    once = [("mojibake", _mojibake_repair())] if settings.mojibake else []
    passes = _changes(settings)

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        text, changed = _until_stable(document.text, once, passes)
        for kind in changed:
            record.change(kind)
        if not text.strip():
            record.drop("nothing_visible", document)
            return ()
        return (replace(document, text=text) if changed else document,)

    return per_document(look)


def _until_stable(text: str, once: list[Change], passes: list[Change]) -> tuple[str, list[str]]:
    """The normal form, and the kinds of changes that it took."""
    changed: dict[str, None] = {}
    for name, change in once:
        after = change(text)
        if after != text:
            text = after
            changed[name] = None
    for _ in range(_MOST_PASSES):
        before = text
        for name, change in passes:
            after = change(text)
            if after != text:
                text = after
                changed[name] = None
        if text == before:
            break
    return text, list(changed)


def _changes(settings: Normalize) -> list[Change]:
    changes: list[Change] = []
    if settings.spaces:
        changes.append(("line_ends", lambda text: _LINE_ENDS.sub("\n", text)))
    if settings.invisible:
        changes.append(("invisible", lambda text: _INVISIBLE.sub("", text)))
    if settings.form != "none":
        form = settings.form
        changes.append(("unicode", lambda text: unicodedata.normalize(form, text)))
    if settings.invisible:
        changes.append(("invisible", lambda text: _JOINERS.sub("", text)))
    if settings.spaces:
        changes.append(
            ("spaces", _spaced if settings.indentation else lambda text: _LINE_BEGINS.sub("", _spaced(text)))
        )
    most = "\n" * (settings.blank_lines + 1)
    blank = re.compile(f"{most}\n+")
    changes.append(("blank_lines", lambda text: blank.sub(most, text).strip("\n")))
    return changes


def _spaced(text: str) -> str:
    """One space where there are several, or another kind of space; none at the ends of lines."""
    return _LINE_TRAILS.sub("", _INNER_SPACES.sub(" ", _OTHER_SPACE.sub(" ", text)))


def _mojibake_repair() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise not_installed("normalize with mojibake", error) from error

    def repaired(text: str) -> str:
        # It guesses from the whole, and long texts hold lines of different making.
        return "".join(str(ftfy.fix_encoding(line)) for line in text.splitlines(keepends=True))

    return repaired


OPERATOR = OperatorKind(
    name="normalize",
    settings=Normalize,
    summary="one Unicode form, one kind of space, nothing invisible",
    make=normalize_operator,
)
