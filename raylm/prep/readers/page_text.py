"""The text of a web page: its main content, with the lists, formulas and code that belong to it.

Resiliparse finds it: 40 times as fast as trafilatura on the same pages, and without turning layout tables into text. It
leaves out every list without numbers, as most are menus, and the main content of some pages altogether. So lists of
prose become paragraphs before it looks, and where it keeps a sliver of a page whose text is prose, all of that is taken
but for menus, heads and feet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from raylm.prep.extras import not_installed
from raylm.prep.readers.books.prose import prose_share
from raylm.prep.readers.page_around import without_around

_MENUS = ("nav", "menu", "header", "footer", "aside", "button", "select", "template")
_MENU_ROLES = ("navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar")
_BESIDE = ["form", *_MENUS, *(f'[role="{role}"]' for role in _MENU_ROLES)]
_SLIVER = 0.3  # of a page's text beside menus; less than this is not its main content
_LONG = 400  # characters of a page for which that is asked
_PROSE = 0.5  # of such a page's characters, in paragraphs of prose
_MAX_LINKED = 0.6  # of a list's characters, in links, where it is prose
_MUCH_LINKED = 0.4  # … unless its items say so much beside their links:
_PLAIN_ITEM = 15  # characters
_LEAST_ITEM = 25  # characters of its items, on average, unless it stands in an article
_HARDLY_LINKED = 0.1  # of the characters of a list whose items may be as short as they like
_BEFORE_LISTS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "table", "ol", "ul", "dl")
_TWINS = ".katex-html, .MathJax_Preview, .MathJax_SVG, .mwe-math-fallback-image"  # formulas once more, for the eye
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
        _show_formulas(tree)
        if whole:
            return PageText(extract_plain_text(tree, alt_texts=False).strip(), tree.title, language)
        beside = extract_plain_text(tree, alt_texts=False, skip_elements=_BESIDE).strip()
        left = without_around(tree)
        _show_lists(tree)
        text = extract_plain_text(tree, main_content=True, alt_texts=False).strip()
        rest = extract_plain_text(tree, alt_texts=False, skip_elements=_BESIDE).strip()
        if left < _SLIVER and _is_prose_page(beside, least=_LONG):
            text = beside
        elif len(text) < _SLIVER * len(rest) and _is_prose_page(rest, least=0 if not text else _LONG):
            text = rest
        return PageText(
            text, tree.title, language, bare=bool(beside) and not text, beside=max(0, len(beside) - len(text))
        )

    return to_page


def _is_prose_page(text: str, *, least: int) -> bool:
    return len(text) >= least and prose_share(text.split("\n\n")) >= _PROSE


def decoded(body: bytes, charset: str | None) -> str:
    """The characters of a page.

    What a server says is often wrong, and nearly every byte is valid where it says Latin-1. What is valid UTF-8 hardly
    ever is anything else, but for encodings made of zeros (UTF-16) or escapes (ISO-2022); where most of what is no
    ASCII is valid UTF-8, so is the page, with a few broken bytes.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    if b"\0" not in body and b"\x1b" not in body and (text := mostly_utf8(body)) is not None:
        return text
    encoding = map_encoding_to_html5(charset) if charset else None
    if encoding is None or not _decodes(body, encoding):
        encoding = detect_encoding(body, from_html_meta=True)
    return str(bytes_to_str(body, encoding or "utf-8"))


def mostly_utf8(body: bytes) -> str | None:
    """The text of what is UTF-8 but for some bytes, with a mark in place of those; None for what is none."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        text = body.decode(errors="replace")
        broken = text.count("\ufffd")
        whole = sum(character > "\x7f" for character in text) - broken
        return text if whole > broken else None


def _decodes(body: bytes, encoding: str) -> bool:
    try:
        body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


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


def _show_lists(tree: Any) -> None:
    """Lists of prose as paragraphs, the innermost first."""
    for found in reversed(list(tree.document.query_selector_all("ul, dl"))):
        if found.parent is None or not _is_prose_list(found):
            continue
        shown = tree.create_element("div")
        shown.html = "".join(_items(found))
        found.parent.replace_child(shown, found)


def _is_prose_list(found: Any) -> bool:
    text = found.text or ""
    items = [child for child in found.child_nodes if child.tag in ("li", "dd", "dt")]
    linked = sum(len(link.text or "") for link in found.query_selector_all("a"))
    if not items or not text.strip() or linked > _MAX_LINKED * len(text):
        return False
    if linked > _MUCH_LINKED * len(text) and len(text) - linked < _PLAIN_ITEM * len(items):
        return False
    in_article = False
    above = found.parent
    while above is not None and above.tag not in ("body", "html", "#document"):
        if above.tag in _MENUS or (above.getattr("role") or "") in _MENU_ROLES:
            return False
        in_article = in_article or above.tag in ("article", "main") or above.getattr("role") == "main"
        above = above.parent
    return in_article or len(text) >= _LEAST_ITEM * len(items) or (linked <= _HARDLY_LINKED * len(text) and _follows(found))


def _follows(found: Any) -> bool:
    """Whether a list stands behind words of the same text: a paragraph, a heading, an entry that it is part of."""
    before = found.prev
    while before is not None and (before.tag == "#text" and not (before.text or "").strip() or before.tag == "#comment"):
        before = before.prev
    if before is None:
        return found.parent is not None and found.parent.tag in ("li", "dd")
    return before.tag == "#text" or before.tag in _BEFORE_LISTS or len(before.text or "") >= _LEAST_ITEM


def _items(found: Any) -> Iterator[str]:
    """Each item as the HTML of a paragraph, or of a part where it holds paragraphs."""
    for item in found.child_nodes:
        if item.tag in ("li", "dd", "dt"):
            mark = "• " if item.tag == "li" else ""
            inner = "".join(escape(one.text or "") if one.tag == "#text" else one.html for one in item.child_nodes)
            block = any(one.tag in ("p", "div", "pre", "table", "blockquote") for one in item.child_nodes)
            yield f"<div>{mark}{inner}</div>" if block else f"<p>{mark}{inner}</p>"
