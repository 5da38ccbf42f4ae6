"""What is in a book but not of it: covers, title pages, copyright, contents, dedications, indexes.

A book's own marks come first; by words alone only what is short and begins so counts: a lost chapter weighs more than a
title page that stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylm.prep.readers.books.xhtml import Block

# What EPUB calls them, in epub:type, landmarks and the older guide. Prefaces, forewords and introductions are prose.
TYPES = frozenset(
    (
        *("cover", "titlepage", "title-page", "halftitlepage", "halftitle", "seriespage", "copyright-page"),
        *("imprint", "imprimatur", "toc", "landmarks", "page-list", "loi", "lot", "loa", "lov", "index"),
        *("dedication", "colophon", "acknowledgments", "acknowledgements", "contributors", "other-credits"),
        *("errata", "boilerplate"),
    )
)
_LISTS = frozenset(("toc", "index", "landmarks", "page-list", "loi", "lot", "loa", "lov"))  # these may be long
_HEADINGS = {
    **dict.fromkeys(("contents", "table of contents", "inhalt", "inhaltsverzeichnis"), "toc"),
    **dict.fromkeys(("sommaire", "table des matières", "índice", "indice", "sommario", "目录", "目次"), "toc"),
    **dict.fromkeys(("copyright", "copyright page", "copyright notice", "copyright information"), "copyright-page"),
    **dict.fromkeys(("impressum", "mentions légales", "imprint"), "copyright-page"),
    **dict.fromkeys(("dedication", "dedicatoria", "dédicace", "widmung"), "dedication"),
    **dict.fromkeys(("title page", "titlepage", "titelseite", "page de titre"), "titlepage"),
    **dict.fromkeys(("cover", "front cover", "back cover"), "cover"),
    **dict.fromkeys(("list of illustrations", "illustrations", "list of figures", "list of maps"), "loi"),
    **dict.fromkeys(("list of tables",), "lot"),
    **dict.fromkeys(("index", "register"), "index"),
    **dict.fromkeys(("acknowledgments", "acknowledgements", "danksagung", "remerciements"), "acknowledgments"),
    **dict.fromkeys(("about the author", "about the authors", "about the publisher"), "colophon"),
    **dict.fromkeys(("colophon", "newsletter", "newsletter signup", "also by the author"), "colophon"),
}
_RIGHTS = re.compile(
    r"all rights reserved|\bisbn\b|©|\bcopyright\b|\bfirst published\b|no part of this|library of congress", re.I
)
_DEDICATED = re.compile(r"(for|to|in (loving )?memory of|dedicated to)\s", re.I)
_MAX_CHARACTERS = 20_000  # of what a heading or a guide calls front matter: some take the whole book for it
_MAX_RIGHTS = 3000
_MAX_TITLE = 300
_MAX_DEDICATION = 150


def front_matter(blocks: Sequence[Block], marked: str, title: str, *, first: bool) -> str | None:
    """What a page is, if no part of the text. marked: its type by the book's list. first: no text came before it."""
    characters = sum(len(block.text) for block in blocks)
    if marked in TYPES and (characters <= _MAX_CHARACTERS or marked in _LISTS):
        return marked
    if not blocks:
        return None
    if (kind := by_heading(blocks[0].text)) is not None and (characters <= _MAX_CHARACTERS or kind in _LISTS):
        return kind
    if sum(block.linked for block in blocks) > characters / 2:
        return "toc"
    whole = "\n".join(block.text for block in blocks) if characters <= _MAX_RIGHTS else ""
    if len(set(map(str.lower, (match[0] for match in _RIGHTS.finditer(whole))))) >= 2:
        return "copyright-page"
    if first and characters <= _MAX_TITLE and title and _plain(blocks[0].text) == _plain(title):
        return "titlepage"
    if first and characters <= _MAX_DEDICATION and not blocks[0].heading and _DEDICATED.match(whole):
        return "dedication"
    return None


def by_heading(text: str) -> str | None:
    """What a part under this heading is, if no part of the text."""
    return _HEADINGS.get(_plain(text)) if len(text) <= 60 else None


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text).split()).casefold()
