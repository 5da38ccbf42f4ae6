"""A page's elements with how much text stands in each, how much of it is links, and how much of it prose.

In comes a parsed page, out goes a tree of parts, from which page_around.py tells what is no text of the page.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


def _tags(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


HEADINGS = _tags("h1 h2 h3 h4 h5 h6")
_INLINE = _tags(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q rb ruby s samp small span",
    "strike strong sub sup time tt u var wbr",
)
_SILENT = _tags(
    "script style noscript template head meta link title svg canvas iframe object embed audio video img input textarea",
    "select option map picture math rt rp",
)
_DEEPEST = 200  # elements within each other that are told apart; Python itself allows a thousand calls
_LEAST_PROSE = 40  # characters beside links of a run that ends as a sentence does
_LONG_PROSE = 140  # … of any run
_MOST_LINKED = 0.75  # of a run that is prose: encyclopedias link most of what they say
ONLY_LINKED = 0.9  # of a run that is nothing but links
_ENTRY_LINKED = 0.6  # of one of up to so many characters:
_ENTRY = 60
_SECTION = re.compile(r"\b(?:sub)*sect(?:ion)?\d?\b|\blevel-?\d\b")  # Sphinx, pandoc, DocBook
_STOPS = ".!?…。！？।؟۔"
_MARKS = re.compile(r"[\W_]*")  # what stands between links says nothing
_RIGHTS = re.compile(r"©|\(c\)\s*(?:19|20)\d\d|\bcopyright\W{1,3}(?:19|20)\d\d|\ball rights reserved\b", re.I)
_LONGEST_RIGHTS = 250  # characters of a run that says whose the page is, and nothing else
_END = re.compile(r"[.!?…:。！？।॥؟۔။]['\")\]”’»」』）\s\d\[\]]*$")
# Scripts that write twice as much in a character.
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(slots=True)
class Part:
    """An element that is no part of a line, or a run of text between two of those (which has no node).

    Counts are of characters, those of wide scripts twice. rights: of runs that say whose the page is; menu: of those
    that are next to nothing but links.
    """

    node: Any
    tag: str
    chars: int = 0
    linked: int = 0
    links: int = 0
    prose: int = 0
    rights: int = 0
    menu: int = 0
    gone: bool = False
    parts: list[Part] = field(default_factory=list)

    def name(self) -> str:
        """The element's classes, id and role, in small words with spaces between them.

        The id of a text's section is its heading, and says what it is about.
        """
        node = self.node
        if node is None:
            return ""
        classes = node.class_name or ""
        own = "" if self.tag == "section" or _SECTION.search(classes) else node.id or ""
        said = f"{classes} {own} {node.getattr('role') or ''}"
        return re.sub(r"[\W_]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", said)).lower().strip()

    def plain(self) -> int:
        """Characters beside links."""
        return self.chars - self.linked

    def add(self, part: Part) -> None:
        """Take a part of this one into account."""
        self.parts.append(part)
        self.chars += part.chars
        self.linked += part.linked
        self.links += part.links
        self.prose += part.prose
        self.rights += part.rights
        self.menu += part.menu

    def left_prose(self) -> int:
        """Characters of prose in what is not gone."""
        if self.gone:
            return 0
        return sum(part.left_prose() for part in self.parts) if self.parts else self.prose

    def runs(self) -> int:
        """How many runs of text it has."""
        return 1 if self.node is None else sum(part.runs() for part in self.parts)

    def holds(self, tags: Collection[str]) -> bool:
        """Whether an element of these stands in it."""
        return any(part.tag in tags or part.holds(tags) for part in self.parts)

    def first_run(self) -> tuple[Part | None, bool]:
        """The first run of text in this part, and whether it is a heading's."""
        heading = self.tag in HEADINGS
        for part in self.parts:
            if part.node is None:
                return part, heading
            found, within = part.first_run()
            if found is not None:
                return found, heading or within
        return None, heading


def measured(body: Any) -> Part:
    """The parts of a page's body."""
    page = Part(body, "body")
    reader = _Reader()
    reader.read(body, page, linked=False, depth=0)
    reader.end(page)
    return page


class _Reader:
    """Gathers the run that is being read."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._chars = self._linked = self._links = 0
        self._code = 0  # elements around, of those whose text is code
        self._stops = 0  # ends of sentences that stand between links
        self._opened = False  # a link, of which nothing has been read so far

    def read(self, node: Any, part: Part, *, linked: bool, depth: int) -> None:
        """Add what is in an element to a part."""
        # By their order: asking a list of children for each costs the square of their number.
        child = node.first_child
        while child is not None:
            tag = child.tag or "#"
            if tag == "#text":
                self._say(child.value or "", linked=linked)
            elif tag[0] in "#!" or tag in _SILENT:
                pass
            elif depth >= _DEEPEST:
                self._say(child.text or "", linked=linked)
            elif tag in _INLINE:
                is_link = tag == "a" and child.hasattr("href")
                self._opened = self._opened or is_link
                self.read(child, part, linked=linked or is_link, depth=depth + 1)
            else:
                self.end(part)
                if tag not in ("br", "hr"):
                    own = Part(child, tag)
                    # Code is a page's own, and its words lead to where they are explained.
                    self._code += tag == "pre"
                    self.read(child, own, linked=linked, depth=depth + 1)
                    self.end(own)
                    self._code -= tag == "pre"
                    part.add(own)
            child = child.next

    def end(self, part: Part) -> None:
        """The run ends here."""
        chars, linked, links, texts, stops = self._chars, self._linked, self._links, self._texts, self._stops
        self._chars = self._linked = self._links = self._stops = 0
        if not texts:
            return
        self._texts = []
        if stops and chars >= _ENTRY:
            linked = links = 0  # sentences, all of whose words are links
        run = Part(None, "#run", chars, linked, links)
        text = " ".join(texts)
        plain = chars - linked
        if chars <= _LONGEST_RIGHTS and _RIGHTS.search(text):
            run.rights = chars
        elif self._code or (linked <= _MOST_LINKED * chars and _is_prose(text, plain)):
            run.prose = plain
        if linked >= ONLY_LINKED * chars or (chars <= _ENTRY and linked >= _ENTRY_LINKED * chars):
            run.menu = chars
        part.add(run)

    def _say(self, text: str, *, linked: bool) -> None:
        if text.isspace():
            return
        words = " ".join(text.split())
        if not words:
            return
        size = len(words) if words.isascii() else len(words) + len(_WIDE.findall(words))
        self._texts.append(words)
        if not linked and _MARKS.fullmatch(words):
            # Behind a link without a gap: the end of a sentence, not what parts the entries of a menu.
            self._stops += text[0] in _STOPS
            return
        self._chars += size
        if linked and not self._code:
            self._linked += size
            self._links += self._opened
            self._opened = False


def _is_prose(text: str, plain: int) -> bool:
    return plain >= _LONG_PROSE or (plain >= _LEAST_PROSE and _END.search(text) is not None)
