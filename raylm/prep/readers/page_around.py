"""What stands around a page's text and is no part of it: menus, teasers, notices, forms and rights.

In comes a parsed page, which is left without them. An element goes for what it is (nav, a small form), for its name
(cookie-banner), or for what is in it: next to nothing but links, or entries of a link and a line each. None goes that
holds a good part of the page's prose, whatever it is called.
"""

from __future__ import annotations

import re
from typing import Any

from raylm.prep.readers.page_names import LIKELY, NOTES, NOTICES, SURE
from raylm.prep.readers.page_parts import HEADINGS, ONLY_LINKED, Part, measured

_GOOD_PART = 0.5  # of a page's prose; what holds more is no boilerplate
_MOST = 0.6  # of a page's text beside links; likewise
_HIDDEN = 0.15  # of a page's prose, in a hidden part that nobody misses
_SHORT = 600  # characters of a part that goes for what it may be called
_LINKED = 0.6  # of a part of several runs, in those that are links: a list of links
_LITTLE_PROSE = 0.15  # of a list of links, beside them
_TITLE = 15  # characters of a link that is a title; names of people are shorter
_NOTE = 40  # characters beside links of an aside that may be a note
_CARD_LINKS = 2
_CARD = 350  # characters beside its title in an entry that tells of another page
_CARDS = 3
_MOST_CARDS = 0.7  # of the entries of a list of cards
_BESIDE_HEADING = 0.5  # of a heading's characters, in the box that it stands in
_CELLS = frozenset(("td", "th", "li", "dt", "dd", "caption", "summary", "figcaption"))
_NAMED = frozenset(("th",))
_ROWS = frozenset(("tr", "tbody", "thead", "tfoot"))
_SHOWN = frozenset(("pre", "table", "blockquote", "p"))  # in a figure that is no picture
_TAGS = frozenset(("nav", "menu", "dialog", "form", "button", "footer"))
# In lines and headings: words for keyboards, and those that change a part.
_FURNITURE = (
    'a[class*="skip"], a[class*="screen-reader"], a[class*="sr-only"], a[class*="visually-hidden"], .mw-jump-link,'
    " .mw-editsection, .headerlink"
)
# Buttons whose words are a question's or a section's.
_UNFOLDING = ", ".join(f"{tag} button" for tag in (*sorted(HEADINGS), "dt", "summary"))
_WHOLE = frozenset(("article", "main"))
_TITLES = frozenset(("h1",))
_UNSEEN = re.compile(r"\b(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.I)


def without_around(tree: Any) -> float:
    """Leave a page without what stands around its text; the share of its prose that stays."""
    body = tree.body
    if body is None:
        return 1.0
    for found in tree.document.query_selector_all(_FURNITURE):
        found.remove()
    for button in tree.document.query_selector_all(_UNFOLDING):
        _make_plain(tree, button, "span")
    page = measured(body)
    _prune(page, page)
    for figure in tree.document.query_selector_all("figure"):
        _make_plain(tree, figure, "div")
    return sum(part.left_prose() for part in page.parts) / page.prose if page.prose else 1.0


def _make_plain(tree: Any, element: Any, tag: str) -> None:
    """Put a plain part in an element's place: Resiliparse writes nothing of what is in a figure."""
    plain = tree.create_element(tag)
    element.before(plain)
    while (child := element.first_child) is not None:
        plain.append_child(child)
    element.remove()


def _prune(part: Part, page: Part) -> bool:
    """Remove what is around the text from a part; whether anything is left of it."""
    left = False
    heading: Part | None = None  # one below which nothing has been left so far
    removed = False
    for own in part.parts:
        if own.node is not None and _is_heading(own):
            if heading is not None and removed:
                heading.node.remove()
            heading, removed = own, False
        elif own.node is not None and (_is_around(own, page) or not (own.chars == 0 or _prune(own, page))):
            own.node.remove()
            own.gone = removed = True
        elif own.chars:
            left, heading = True, None
    if heading is not None and removed:
        heading.node.remove()
        heading = None
    return left or heading is not None


def _is_heading(part: Part) -> bool:
    """Whether this is a heading, be it in a box and with an anchor or a word to change it."""
    if part.tag in HEADINGS:
        return True
    said = [own for own in part.parts if own.chars]
    largest = max(said, key=lambda own: own.chars, default=None)
    if largest is None or part.chars - largest.chars > _BESIDE_HEADING * largest.chars or not _is_heading(largest):
        return False
    return all(own is largest or own.node is None or own.linked >= ONLY_LINKED * own.chars for own in said)


def _is_around(part: Part, page: Part) -> bool:
    if part.chars == 0 or part.tag == "main":
        return False
    if part.prose > _GOOD_PART * page.prose or part.plain() > _MOST * page.plain():
        return _is_cards(part) and _is_called_so(part)
    if _is_kind_around(part) or (part.rights and part.rights >= part.plain()):
        return True
    if _is_hidden(part, page) or _is_called_so(part):
        return True
    return (_is_links(part) or _is_cards(part)) and not part.holds(_TITLES)


def _is_kind_around(part: Part) -> bool:
    """What is around the text by its element; notes of the text and figures of code or words are not."""
    if part.tag == "aside":
        return part.plain() < _NOTE or NOTES.search(part.name()) is None
    if part.tag == "header":
        return part.chars <= _SHORT and not part.holds(HEADINGS)
    if part.tag == "figure":
        return not part.holds(_SHOWN)
    return part.tag in _TAGS


def _is_hidden(part: Part, page: Part) -> bool:
    """What nobody sees; answers that unfold are hidden, too, so a good part of the prose is not."""
    if part.prose > _HIDDEN * page.prose:
        return False
    return part.node.hasattr("hidden") or _UNSEEN.search(part.node.getattr("style") or "") is not None


def _is_called_so(part: Part) -> bool:
    name = part.name()
    # An article's names say what it is about, not what it is.
    if not name or part.tag in _WHOLE:
        return False
    short = part.chars <= _SHORT
    linked = part.linked > 0 if short else part.linked >= _LINKED * part.chars
    named = SURE.search(name) or (short and NOTICES.search(name)) or (linked and LIKELY.search(name))
    return bool(named) and not part.holds(_TITLES)


def _is_links(part: Part) -> bool:
    """Next to nothing but links; a cell or an item only where it holds several."""
    if part.tag in _ROWS or part.prose > _LITTLE_PROSE * part.chars or part.links < (3 if part.tag in _CELLS else 1):
        return False
    if part.tag == "table" and part.holds(_NAMED):
        return part.linked >= ONLY_LINKED * part.chars  # its columns say what the links are
    if part.linked >= ONLY_LINKED * part.chars:
        return True
    return part.menu >= _LINKED * part.chars and part.runs() > 1


def _is_cards(part: Part) -> bool:
    """Entries that tell of other pages: a title that is a link, and at most a few lines."""
    if part.tag in _ROWS or (part.tag == "table" and part.holds(_NAMED)):
        return False
    own = [row for group in part.parts for row in group.parts] if part.tag == "table" else part.parts
    entries = [one for one in own if one.node is not None and one.chars and one.tag not in HEADINGS]
    cards = sum(map(_is_card, entries))
    return cards >= _CARDS and cards >= _MOST_CARDS * len(entries)


def _is_card(part: Part) -> bool:
    run, heading = part.first_run()
    if run is None or run.linked < ONLY_LINKED * run.chars or part.links > _CARD_LINKS:
        return False
    return (heading or run.chars >= _TITLE) and part.chars - run.chars <= _CARD
