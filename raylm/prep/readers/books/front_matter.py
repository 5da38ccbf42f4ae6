"""What is in a book but not of it: covers, title pages, copyright, contents, dedications, indexes.

A book's own marks come first; by words alone only what is short and begins so counts: a lost chapter weighs more than a
title page that stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylm.prep.readers.books.prose import may_be, plain
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
_HEADINGS = {
    **dict.fromkeys(("contents", "table of contents", "inhalt", "inhaltsverzeichnis"), "toc"),
    **dict.fromkeys(("sommaire", "table des matières", "índice", "indice", "sommario", "目录", "目次"), "toc"),
    **dict.fromkeys(("目錄", "차례", "목차", "содержание", "оглавление", "зміст", "spis treści", "inhoud"), "toc"),
    **dict.fromkeys(("inhoudsopgave", "innehåll", "indhold", "innhold", "obsah", "tartalom", "cuprins"), "toc"),
    **dict.fromkeys(("içindekiler", "mục lục", "สารบัญ", "المحتويات", "فهرس", "sumário", "περιεχόμενα"), "toc"),
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
# Each is one proof of a copyright page, however often it stands there.
_RIGHTS = tuple(
    re.compile(words, re.I)
    for words in (
        r"©|\(c\)\s*\d{4}|\bcopyright\b|droits d'auteur|urheberrecht|版权|著作権",
        r"all rights reserved|tous droits réservés|alle rechte vorbehalten|todos los derechos|版权所有|無断",
        r"\bisbn\b",
        r"\bfirst (?:published|edition|printing)\b|\bpublished by\b",
        r"no part of this|\blibrary of congress\b|\bcataloguing\b|\bcataloging\b|dépôt légal",
    )
)
_DEDICATED = re.compile(r"(for|to|in (loving )?memory of|dedicated to)\s", re.I)
_MAX_RIGHTS = 3000
_RIGHTS_SHARE = 1 / 3  # of a copyright page, what stands in paragraphs that speak of rights
_MAX_TITLE = 300
_MAX_DEDICATION = 150


def front_matter(blocks: Sequence[Block], marked: str, title: str, *, first: bool) -> str | None:
    """What a page is, if no part of the text. marked: its type by the book's list. first: no text came before it."""
    texts = [block.text for block in blocks]
    characters = sum(map(len, texts))
    if marked in TYPES and may_be(marked, texts):
        return marked
    if not blocks:
        return None
    if (kind := by_heading(texts[0])) is not None and may_be(kind, texts):
        return kind
    if sum(block.linked for block in blocks) > characters / 2 and may_be("toc", texts):
        return "toc"
    if characters <= _MAX_RIGHTS and _speaks_of_rights(texts):
        return "copyright-page"
    if first and characters <= _MAX_TITLE and title and plain(texts[0]) == plain(title):
        return "titlepage"
    if first and characters <= _MAX_DEDICATION and not blocks[0].heading and _DEDICATED.match("\n".join(texts)):
        return "dedication"
    return None


def _speaks_of_rights(texts: Sequence[str]) -> bool:
    """Whether several proofs stand in a good part of these paragraphs, and not in a line at the foot of a page."""
    proofs = {number for text in texts for number, proof in enumerate(_RIGHTS) if proof.search(text)}
    of_rights = sum(len(text) for text in texts if any(proof.search(text) for proof in _RIGHTS))
    return len(proofs) >= 2 and of_rights >= _RIGHTS_SHARE * sum(map(len, texts))


def by_heading(text: str) -> str | None:
    """What a part under this heading is, if no part of the text."""
    if len(text) > 60:
        return None
    name = plain(text)
    return _HEADINGS.get(name) or (None if name.isascii() else _HEADINGS.get(name.replace(" ", "")))  # 目　次
