"""The text of a web page: its main content, with the lists, formulas and code that belong to it.

Resiliparse parses pages and writes them as text. Its own main content leaves out figures of code, admonitions, lists
without numbers and paragraphs of links, and keeps menus, teasers and notices of unknown names; so page_around.py takes
out what is around the text, and all that is left is the text. Where hardly any of a page's prose is left, all of it is
taken but for menus, heads and feet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raylm.prep.extras import not_installed
from raylm.prep.readers.books.prose import prose_share
from raylm.prep.readers.decoding import mostly
from raylm.prep.readers.page_around import without_around

_SILENT = ["button", "select", "textarea", "template", "noscript"]
_MENUS = ("nav", "menu", "header", "footer", "aside", "form", "button", "select", "template")
_MENU_ROLES = ("navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar")
_BESIDE = [*_MENUS, *(f'[role="{role}"]' for role in _MENU_ROLES)]
_SLIVER = 0.3  # of a page's prose; a page that would be left with less keeps all of it
_LONG = 400  # characters of a page for which that is asked
_PROSE = 0.5  # of such a page's characters, in paragraphs of prose
_TWINS = ".katex-html, .MathJax_Preview, .MathJax_SVG, .mwe-math-fallback-image"  # formulas once more, for the eye
_PARTS = 8
_LATIN = ("windows-1252", "iso-8859-1", "iso-8859-15", "ascii", "us-ascii")
_HIGH = bytes(range(0x80, 0x100))
_RUN = re.compile(rb"[\x80-\xff]{4,}")
_TEX = re.compile(r"\bmath/(?:tex|asciimath)\b", re.I)


@dataclass(frozen=True)
class PageText:
    """A page's text, and what the page says about it. bare: the page has text, of which none is main content.

    beside: characters that are no main content, without menus, heads and feet.
    """

    text: str
    title: str | None = None
    language: str | None = None
    bare: bool = False
    beside: int = 0


def page_reader(*, whole: bool) -> Callable[[bytes, str | None], PageText]:
    """A function from a page's bytes and the charset that its server names to its text. whole: with menus and feet."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise not_installed("reading web archives", error) from error

    def to_page(body: bytes, charset: str | None) -> PageText:
        tree = HTMLTree.parse(decoded(body, charset))
        root: Any = tree.document.query_selector("html") if tree.document is not None else None
        language = root.getattr("lang") or root.getattr("xml:lang") if root is not None else None
        if tree.document is None:
            return PageText("")
        for reading in tree.document.query_selector_all("rt, rp, rtc"):  # of the characters that stand below them
            if reading.parent is not None:
                reading.parent.remove_child(reading)
        _show_formulas(tree)
        if whole:
            return PageText(extract_plain_text(tree, alt_texts=False).strip(), tree.title, language)
        beside = extract_plain_text(tree, alt_texts=False, skip_elements=_BESIDE).strip()
        left = without_around(tree)
        text = extract_plain_text(tree, alt_texts=False, skip_elements=_SILENT).strip()
        if left < _SLIVER and len(beside) >= _LONG and prose_share(beside.split("\n\n")) >= _PROSE:
            text = beside
        return PageText(
            text, tree.title, language, bare=bool(beside) and not text, beside=max(0, len(beside) - len(text))
        )

    return to_page


def decoded(body: bytes, charset: str | None) -> str:
    """The characters of a page.

    What a server says is often wrong, and nearly every byte is valid where it says Latin-1. What is valid UTF-8 hardly
    ever is anything else, but for encodings made of zeros (UTF-16) or escapes (ISO-2022); where most of what is no
    ASCII is valid UTF-8, so is the page, with a few broken bytes. So it is with any other encoding: a broken byte has a
    mark, and takes no other character with it.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    if b"\0" not in body and b"\x1b" not in body and (text := mostly_utf8(body)) is not None:
        return text
    encoding = map_encoding_to_html5(charset) if charset else None
    text = mostly(body, encoding) if encoding is not None else None
    if text is None:
        found = detect_encoding(body, from_html_meta=True) or "utf-8"
        text = mostly(body, found)
        if text is None or (found in _LATIN and _is_wide(body)):
            text = _by_its_parts(body) or text
    return (text if text is not None else body.decode("cp1252", "replace")).removeprefix("\ufeff")


def mostly_utf8(body: bytes) -> str | None:
    """The text of what is UTF-8 but for some bytes, with a mark in place of those; None for what is none."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        text = body.decode(errors="replace")
        broken = text.count("\ufffd")
        whole = sum(character > "\x7f" for character in text) - broken
        return text if whole > broken else None


def _is_wide(body: bytes) -> bool:
    """Whether most bytes beyond ASCII stand in runs, as no language in Latin letters has them."""
    high = len(body) - len(body.translate(None, _HIGH))
    return high > 0 and sum(map(len, _RUN.findall(body))) > high / 2


def _by_its_parts(body: bytes) -> str | None:
    """The text in the encoding that most parts of a page are found to be in, where a broken byte hides it in one."""
    from resiliparse.parse.encoding import detect_encoding

    size = len(body) // _PARTS + 1
    found = Counter(detect_encoding(body[at : at + size]) for at in range(0, len(body), size))
    likely = (name for name, _ in found.most_common() if name and name not in (*_LATIN, "utf-8"))
    return next((text for name in likely if (text := mostly(body, name)) is not None), None)


def _show_formulas(tree: Any) -> None:
    """Formulas as their authors spell them, once: not as their letters without lines and roots."""
    for twin in tree.document.query_selector_all(_TWINS):
        twin.parent.remove_child(twin)
    for script in tree.document.query_selector_all("script"):
        if _TEX.search(script.getattr("type") or ""):
            script.parent.replace_child(tree.create_text_node(script.text), script)
    for formula in tree.document.query_selector_all("math"):
        if formula.parent is not None:
            formula.parent.replace_child(tree.create_text_node(_spelled(formula)), formula)


def _spelled(formula: Any) -> str:
    """A formula of MathML in TeX or words, as far as it says so; else its letters apart from each other."""
    for note in formula.query_selector_all("annotation"):
        if "tex" in (note.getattr("encoding") or "").lower() and note.text.strip():
            return " ".join(note.text.split())
    words = " ".join((formula.getattr("alttext") or "").split())
    return words or _in_line(formula)


def _in_line(element: Any) -> str:
    """MathML in a line: fractions with a stroke, powers with a caret."""
    children = [child for child in element.child_nodes if child.tag != "#text" or (child.text or "").strip()]
    parts = [child.text.strip() if child.tag == "#text" else _in_line(child) for child in children]
    parts = [part for part in parts if part]
    between = {"mfrac": "/", "msup": "^", "msub": "_"}.get(element.tag, "")
    if element.tag == "msqrt":
        return f"√({''.join(parts)})"
    return between.join(f"({part})" if between and len(part) > 1 else part for part in parts)
