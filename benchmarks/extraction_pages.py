"""Pages with the words that are wanted of them: made ones, a folder's, and those of sites whose pages are labelled.

Labels are paths to what is wanted on a site's pages, written by hand after looking at them; what they call neutral
counts neither way. Pages of those archives that are lists of links, forms or the fronts of sites have none, and are
left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.extraction_frames import FRAMES, Site
from benchmarks.extraction_kinds import KINDS, Writer
from benchmarks.extraction_words import LANGUAGES
from raylm.prep.readers.http_body import body_of, media_type
from raylm.prep.readers.page_text import decoded


@dataclass(frozen=True)
class Page:
    """A page, and what is wanted of it. neutral: what may be kept or not. group: where it is from."""

    group: str
    kind: str
    frame: str
    html: str
    wanted: str
    neutral: str = ""


@dataclass(frozen=True)
class Label:
    """Pages of a site by their address, and XPaths: what is wanted, what within it is not, what counts neither way."""

    name: str
    address: str
    wanted: str
    without: str = ""
    neutral: str = ""


_ITEM = "//div[@id='main']//p[contains(@class,'content')]"
_DETAILS = r"^http://www\.archive\.org/details/(?!(?:movies|texts|audio|GratefulDead|etree)$)"
LABELS = (
    Label(
        "forum post",
        r"^http://www\.archive\.org/iathreads/post-view",
        "//td[@colspan='4' and @bgcolor='#FFFFFF']",
        neutral="//tr[@bgcolor='#CCCC99']",
    ),
    Label("answer", r"/about/faq\.php", "//div[@class='box']/p[not(contains(@style,'right'))]", neutral="//h1"),
    Label("answers", r"/about/faqs\.php", "//td[@width='75%']"),
    Label(
        "item and reviews",
        _DETAILS,
        _ITEM,
        ".//span[@class='key' or @class='value' or @class='rightmost']|.//small|.//noscript",
        "//div[@id='main']//span|//div[@id='main']//small|//div[@id='main']/h1|//div[@id='main']//table",
    ),
    Label("set list", r"^http://deadlists\.com/deadlists/showresults", "//table[1]"),
    Label(
        "front with news",
        r"^http://www\.iana\.org/$",
        "//div[@id='home-news']|//div[@class='home-panel']/p",
        neutral="//h1|//h2|//div[@id='intro']|//div[@class='home-panel']/ul",
    ),
    Label("example", r"^http://example\.com/$", "//body//p[not(a)]", neutral="//h1|//p/a"),
    Label(
        "encyclopedia",
        r"^https://an\.wikipedia\.org/wiki/",
        "//div[contains(@class,'mw-parser-output')]",
        ".//span[contains(@class,'mw-editsection')]|.//table|.//style|.//ol[@class='references']",
        "//h1|//div[contains(@class,'mw-parser-output')]//table|//ol[@class='references']|//div[@id='siteSub']",
    ),
)
_BLOCKS = frozenset(
    (
        "br",
        "p",
        "div",
        "td",
        "th",
        "tr",
        "li",
        "dt",
        "dd",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "ul",
        "ol",
        "pre",
        "blockquote",
        "hr",
    )
)


def made(count: int, seed: int) -> Iterator[Page]:
    """Pages of every kind in every frame, in languages that take turns; the same ones for the same seed."""
    dice = random.Random(seed)
    places = [(kind, frame) for kind in KINDS for frame in FRAMES]
    dice.shuffle(places)
    for number in range(count):
        kind, frame = places[number % len(places)]
        # English half of the time, as on the web.
        language = LANGUAGES[0] if number % 2 else LANGUAGES[1 + number // 2 % (len(LANGUAGES) - 1)]
        writer = Writer(language, dice)
        headline = writer.either(language.title(dice))
        byline = f'<p class="byline">{writer.person()} {writer.date()}</p>' if dice.random() < 0.5 else ""
        body = FRAMES[frame](Site(language, dice), f"<h1>{headline}</h1>{byline}", KINDS[kind](writer))
        head = (
            f'<meta charset="utf-8"><title>{headline}</title><style>p {{margin: 0}}</style><script>var a = 1;</script>'
        )
        way = ' dir="rtl"' if language.code == "ar" else ""
        html = f'<!DOCTYPE html><html lang="{language.code}"{way}><head>{head}</head><body>{body}</body></html>'
        yield Page("made", kind, frame, html, "\n".join(writer.wanted), "\n".join(writer.neutral))


def beside(folder: Path) -> Iterator[Page]:
    """Pages whose wanted text lies beside them: NAME.html and NAME.txt, in this folder and those in it."""
    for path in sorted(folder.rglob("*.html")):
        text = path.with_suffix(".txt")
        if text.exists():
            page = decoded(path.read_bytes(), None)
            yield Page("folder", path.parent.name, "real", page, text.read_text(errors="replace"))


def archived(folder: Path, *, without_label: list[str]) -> Iterator[Page]:
    """Pages of the WARC files in a folder that have a label; addresses of the others go to without_label."""
    seen: set[tuple[str, bytes]] = set()
    for path in sorted(folder.rglob("*.warc*")):
        for address, body, charset in _responses(path):
            if not body or (address, body) in seen:
                continue
            seen.add((address, body))
            html = decoded(body, charset)
            label = next((one for one in LABELS if re.search(one.address, address)), None)
            page = labelled(html, label) if label is not None else None
            if page is None:
                without_label.append(address)
            else:
                yield page


def labelled(html: str, label: Label) -> Page | None:
    """The page with what its label says is wanted; None where it finds nothing."""
    from lxml import html as parser

    tree = parser.document_fromstring(re.sub(r"<\?xml[^>]*>", "", html))
    neutral = [_text(found, "") for found in tree.xpath(label.neutral)] if label.neutral else []
    wanted = [_text(found, label.without) for found in tree.xpath(label.wanted)]
    if not "".join(wanted).strip():
        return None
    return Page("archives", label.name, "real", html, "\n".join(wanted), "\n".join(neutral))


def _text(found: Any, without: str) -> str:
    """An element's text, its blocks apart from each other."""
    dropped = set(found.xpath(without)) if without else set()
    parts = []

    def walk(element: Any) -> None:
        if isinstance(element.tag, str) and element.tag not in ("script", "style") and element not in dropped:
            between = " " if element.tag in _BLOCKS else ""
            parts.append(between + (element.text or ""))
            for child in element:
                walk(child)
                parts.append(child.tail or "")
            parts.append(between)

    walk(found)
    return "".join(parts)


def _responses(path: Path) -> Iterator[tuple[str, bytes, str | None]]:
    """Address, body and charset of an archive's pages."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with path.open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            if not record.is_http:
                continue
            record.parse_http(auto_decode="none", quirks_mode=True)
            headers = record.http_headers
            if headers is None or headers.status_code != 200:
                continue
            given = {name.lower(): value for name, value in headers}
            body = body_of(record.reader.read(), given)
            kind, charset = media_type(given.get("content-type"), body)
            if kind == "text/html":
                yield record.headers.get("WARC-Target-URI") or "", body, charset
