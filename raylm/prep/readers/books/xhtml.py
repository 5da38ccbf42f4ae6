"""The paragraphs of a book's pages: one XHTML file of an EPUB as blocks of text in order."""

from __future__ import annotations

import html.entities
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from raylm.prep.extras import not_installed
from raylm.prep.readers.books.prose import may_be
from raylm.prep.readers.decoding import mostly

TYPE = "{http://www.idpf.org/2007/ops}type"
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "div", "dl"),
        *("dt", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header"),
        *("hr", "html", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul"),
    )
)
_SKIPPED = frozenset(["head", "iframe", "noscript", "object", "rp", "rt", "rtc", "script", "style", "svg", "template"])
_AS_IT_STANDS = frozenset(["pre", "listing", "xmp"])  # lines and indentation are the text's own
_STANDS = re.compile(r"white-space\s*:\s*(?:pre|break-spaces)", re.I)
_SKIPPED_TYPES = frozenset(("pagebreak", "noteref"))  # a number in the middle of a sentence
_WIDE_GAP = re.compile(r"\n{3,}")
_BREAK = "\0"  # a line's end that the page asks for; XML cannot hold it
_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]{0,31});")
_BARE = re.compile(rb"&(?!#?\w+;)")
_NAMED = re.compile(rb"(?:encoding|charset)\s*=\s*[\"']?([\w.:-]+)[\"']?", re.I)
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252", "utf-16": "utf-16"}
_HTML = re.compile(rb"<(?:html|body|p|div)[\s>]", re.I)
_OF_XML = (b"amp", b"lt", b"gt", b"quot", b"apos")


@dataclass(frozen=True)
class Block:
    """A paragraph or heading. heading: 1 to 6, 0 for none. anchors: ids that stand in it or before it.

    linked: characters of the text inside links.
    """

    text: str
    heading: int
    anchors: frozenset[str]
    linked: int


def parsed(data: bytes) -> Any:
    """The root element of XML, or of what was meant to be; None when there is none."""
    try:
        from lxml import etree
    except ImportError as error:
        raise not_installed("reading EPUBs", error) from error

    settings = {"remove_comments": True, "remove_pis": True, "no_network": True}
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = _in_utf8(data, "utf-16")
    # Pages use HTML's names for characters, which XML only knows from a DTD that nobody loads.
    data = _ENTITY.sub(_numbered, data)
    xml = {"resolve_entities": False, "load_dtd": False, **settings}
    try:
        root = etree.fromstring(data, etree.XMLParser(**xml))
    except etree.XMLSyntaxError:
        root = None
        if data.strip() and _HTML.search(data) is None:  # a list of contents, say, with a bare & in a title
            root = etree.fromstring(_BARE.sub(b"&amp;", data), etree.XMLParser(recover=True, **xml))
        elif data.strip():
            # A browser would show it all the same. HTML has no entities to expand, so its size is what was unpacked.
            named = _NAMED.search(data[:2000])
            data = data if _is_utf8(data) else _in_utf8(data, named[1].decode() if named else "utf-8")
            parser = etree.HTMLParser(encoding="utf-8" if _is_utf8(data) else None, huge_tree=True, **settings)
            root = etree.fromstring(data, parser)
    if root is not None:
        etree.strip_tags(root, etree.Entity)
    return root


def blocks_of(data: bytes, unwanted: Collection[str]) -> tuple[list[Block], list[tuple[str, int]]]:
    """A page's blocks, without elements whose epub:type (or role) is unwanted; and their types and characters."""
    root = parsed(data)
    walk = _Walk(unwanted)
    if root is not None:
        walk.through(root)
    return walk.blocks, walk.skipped


class _Walk:
    """One pass over a page's elements in their order."""

    def __init__(self, unwanted: Collection[str]) -> None:
        self.blocks: list[Block] = []
        self.skipped: list[tuple[str, int]] = []
        self._unwanted = unwanted
        self._words: list[str] = []
        self._anchors: set[str] = set()
        self._heading = self._links = self._linked = 0
        self._stands = 0  # how many elements around here keep their lines

    def through(self, root: Any) -> None:
        from lxml import etree

        walker = etree.iterwalk(root, events=("start", "end"))
        skipped = None
        for event, element in walker:
            name = str(element.tag).rpartition("}")[2].lower()  # QName refuses names that broken pages have
            if event == "start":
                if self._is_skipped(element, name):
                    skipped = element
                    walker.skip_subtree()
                elif name == "math":
                    self._add_text(formula(element))
                    skipped = element
                    walker.skip_subtree()
                else:
                    self._begin(element, name)
            else:
                if element is skipped:
                    skipped = None
                else:
                    self._end(element, name)
                if element is not root:
                    self._add_text(element.tail)
        self._flush()

    def _is_skipped(self, element: Any, name: str) -> bool:
        types = _types(element)
        unwanted = next((kind for kind in types if kind in self._unwanted), None)
        if unwanted is not None and not may_be(unwanted, _paragraphs(element)):
            unwanted = None
        if unwanted is not None:
            self.skipped.append((unwanted, len(" ".join("".join(element.itertext()).split()))))
        return unwanted is not None or name in _SKIPPED or not _SKIPPED_TYPES.isdisjoint(types)

    def _begin(self, element: Any, name: str) -> None:
        if self._stands:
            self._words += [_BREAK] if name in _BLOCKS and self._words and self._words[-1] != _BREAK else []
        elif name in _BLOCKS:
            self._flush()
        self._stands += _stands(element, name)
        if anchor := element.get("id") or element.get("name"):
            self._anchors.add(anchor)
        if len(name) == 2 and name[0] == "h" and name[1].isdigit():
            self._heading = int(name[1])
        if name == "br":
            self._words.append(_BREAK)
        elif name in ("td", "th"):
            self._words.append(" ")
        elif name == "a" and element.get("href"):
            self._links += 1
        self._add_text(element.text)

    def _end(self, element: Any, name: str) -> None:
        if name == "a" and element.get("href"):
            self._links -= 1
        stood, self._stands = self._stands, self._stands - _stands(element, name)
        if self._stands:
            self._words += [_BREAK] if name in _BLOCKS and self._words and self._words[-1] != _BREAK else []
        elif name in _BLOCKS:
            self._flush(as_it_stands=bool(stood))

    def _add_text(self, text: str | None) -> None:
        if text:
            self._words.append(text.replace("\n", _BREAK) if self._stands else text)
            self._linked += len(text.strip()) if self._links else 0

    def _flush(self, *, as_it_stands: bool = False) -> None:
        lines = "".join(self._words).split(_BREAK)
        if as_it_stands:
            text = _WIDE_GAP.sub("\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")
        else:
            text = "\n".join(filter(None, (" ".join(line.split()) for line in lines)))
        if text:
            self.blocks.append(Block(text, self._heading, frozenset(self._anchors), self._linked))
            self._anchors.clear()
        self._words.clear()
        self._heading = self._linked = 0


def formula(element: Any) -> str:
    """A formula of MathML as its author spells it for those who do not see it, in TeX or words; else its letters."""
    for note in element.iter("{*}annotation"):
        if "tex" in (note.get("encoding") or "").lower() and (note.text or "").strip():
            return " ".join(str(note.text).split())
    if alternative := " ".join((element.get("alttext") or "").split()):
        return alternative
    inner = (text for text in element.itertext() if text.strip())
    return " ".join(" ".join(inner).split())


def _stands(element: Any, name: str) -> bool:
    """Whether an element keeps the lines of its text."""
    preserves = element.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"
    return name in _AS_IT_STANDS or preserves or _STANDS.search(element.get("style") or "") is not None


def _paragraphs(element: Any) -> list[str]:
    """The text of an element, by its innermost blocks or lines, as far as is needed to tell prose from a list."""
    inner = element.iter("{*}p", "{*}li", "{*}td", "{*}dd")
    texts = ["".join(one.itertext()) for one in inner if not any(child is not one for child in one.iter("{*}p"))]
    return [text for text in texts if text.strip()] or ["".join(element.itertext())]


def _types(element: Any) -> list[str]:
    """What the page says an element is: epub:type, ARIA's roles for books, and Project Gutenberg's classes."""
    given = f"{element.get(TYPE) or element.get('epub:type') or ''} {element.get('role') or ''}".replace("doc-", "")
    boilerplate = ["boilerplate"] if "pg-boilerplate" in (element.get("class") or "").split() else []
    return given.split() + boilerplate


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _in_utf8(data: bytes, encoding: str) -> bytes:
    """A page in UTF-8, with a mark in place of a few broken bytes; as it is where most are broken."""
    for name in dict.fromkeys(("utf-8" if encoding != "utf-16" else encoding, _WIDER.get(encoding.lower(), encoding))):
        if (text := mostly(data, name, broken=0.5)) is not None:
            return _NAMED.sub(b'encoding="utf-8"', text.encode(), count=1)
    return data


def _numbered(match: re.Match[bytes]) -> bytes:
    if match[1] in _OF_XML:
        return match[0]
    text = html.entities.html5.get(f"{match[1].decode()};")
    if text is None:  # no name of a character: the text's own
        return b"&amp;" + match[0][1:]
    return b"".join(b"&#%d;" % ord(character) for character in text)
