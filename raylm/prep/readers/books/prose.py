"""Prose or a list: what a paragraph of a book looks like, whatever stands above it."""

from __future__ import annotations

import re
from collections.abc import Sequence

LISTS = frozenset(("toc", "index", "landmarks", "page-list", "loi", "lot", "loa", "lov"))  # these may be long
_MAX_CHARACTERS = 20_000  # of what a heading or a guide calls front matter: some take the whole book for it
# Of those that nobody makes long: a chapter may have their name.
_SHORTER = {
    **dict.fromkeys(("cover", "titlepage", "title-page", "halftitlepage", "halftitle", "imprimatur"), 2000),
    **dict.fromkeys(("dedication", "seriespage"), 3000),
    **dict.fromkeys(("copyright-page", "imprint"), 10_000),
}
_MAX_SAID = 0.5  # of a list's characters, in short sentences
_MAX_PROSE = 0.2  # of what is called a list
_LEAST = 160  # characters of a paragraph that is prose
_LINE = 40  # characters of its lines, where it has several
# Scripts that write twice as much in a character.
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_SENTENCE = re.compile(r"[.!?…。！？।॥؟۔።]['\")\]”’»」』）]*(?:\s|$)|[。！？।॥]")
# A sentence, as people talk: no entry, which a number begins or ends.
_SAID = re.compile(
    r"(?!(?:chapter|kapitel|chapitre|part|book|[0-9]+|[ivxlc]+)\b).{11,}[^\W\d][^\w\s]*[.!?…。！？।॥؟۔።][^\w\s]*"
    r"|.{5,}[。！？」』]",
    re.I | re.S,
)
_ENTRY_END = re.compile(r"(?:\.{3,}|(?:\. ){3,}|…{2,}|[\s,–-])\s*(?:\d{1,4}|[ivxlc]{1,6})\s*$", re.I)


def is_prose(text: str) -> bool:
    """Whether a paragraph is running text: long, of sentences, in long lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    flat = " ".join(lines)
    if len(flat) + len(_WIDE.findall(flat)) < _LEAST or _SENTENCE.search(flat) is None:
        return False
    entries = sum(_ENTRY_END.search(line) is not None for line in lines)
    return entries <= len(lines) / 2 and len(flat) + len(_WIDE.findall(flat)) >= _LINE * len(lines)


def prose_share(texts: Sequence[str]) -> float:
    """Of the characters of some paragraphs, those in prose."""
    return sum(len(text) for text in texts if is_prose(text)) / (sum(map(len, texts)) or 1)


def may_be(kind: str, texts: Sequence[str]) -> bool:
    """Whether what is called so can be that: a list holds little prose, anything else is short."""
    if kind in LISTS:
        said = sum(len(text) for text in texts if _SAID.fullmatch(" ".join(text.split())))
        return prose_share(texts) <= _MAX_PROSE and said <= _MAX_SAID * sum(map(len, texts))
    return sum(map(len, texts)) <= _SHORTER.get(kind, _MAX_CHARACTERS)


def list_length(paragraphs: Sequence[str]) -> int:
    """How many paragraphs under a heading such as Contents are the list that it names.

    It ends before prose, and where one of its entries stands again, alone: that is the heading of a chapter.
    """
    entries: set[str] = set()
    for number, paragraph in enumerate(paragraphs):
        lines = [plain(line) for line in paragraph.splitlines() if plain(line)]
        if is_prose(paragraph) or (len(lines) == 1 and lines[0] in entries):
            return number
        entries |= {name for line in lines for name in (line, plain(_ENTRY_END.sub("", line)))}
    return len(paragraphs)


def plain(text: str) -> str:
    """A heading without marks and case, to compare it with another one."""
    return " ".join(re.sub(r"[\W_]+", " ", text).split()).casefold()
