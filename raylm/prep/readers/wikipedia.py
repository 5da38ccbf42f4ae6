"""Wikipedia's XML dumps become documents: articles with their titles, without templates, tables and references.

A dump is read whole, or a run of the streams of a multistream dump. An article's id is its page's; title, language and
the day of its last change are metadata.
lxml reads the XML four times as fast as mwxml. What markup says is known to `wikitext`.
"""

from __future__ import annotations

import bz2
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.errors import DataError
from raylm.prep.extras import not_installed
from raylm.prep.ranges import Part, joined
from raylm.prep.readers.base import Raw, Reading, known, language_tag
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.wikitext import Site, renderer
from raylm.rows import BrokenFile, opened
from raylm.storage import NotFound, StoragePath

_READ_BYTES = 1 << 18
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_LANGUAGE = re.compile(rb'<mediawiki[^>]*? xml:lang="([A-Za-z-]+)"')
_NAMESPACES = re.compile(rb"<namespaces>.*?</namespaces>", re.S)
_REDIRECT = re.compile(r"\s*#([^\W\d_]{2,})\s*:?\s*\[\[[^\]\n]+\]\]")
_REDIRECT_WORDS = ("redirect", "weiterleitung", "перенаправление", "перенаправлення", "redirección", "redirection")
_MULTISTREAM = "-multistream.xml.bz2"


class WikipediaSource(FileSourceSettings):
    """Wikipedia's XML dumps."""

    kind: Literal["wikipedia"] = Field("wikipedia", description="How files are read.")


def read(reading: Reading[WikipediaSource]) -> Iterator[Raw]:
    """The articles of a dump, or of the streams in the range."""
    to_text: Callable[[str], str] | None = None
    names: dict[str, str] = {}
    identity = 0

    def left_out(kind: str, markup: str) -> None:
        reading.take_out(kind, len(markup), identity, markup)

    for page in _pages(reading, _parts(reading)):
        if to_text is None:  # the head is dropped with the first page
            names = _namespaces(page)
            to_text = renderer(Site.of(names), left_out)
        title, number = page.findtext("{*}title", ""), page.findtext("{*}id", "")
        identity = int(number) if number.isdecimal() else 0
        revision = max(page.iterfind("{*}revision"), key=_written, default=page)  # a dump may hold the whole history
        markup = revision.findtext("{*}text") or ""
        if page.findtext("{*}ns", _by_title(title, names)) != "0":
            reading.skip("namespace")
        elif page.find("{*}redirect") is not None or _redirects(markup):
            reading.skip("redirect")
        elif revision.findtext("{*}model", "wikitext") != "wikitext":
            reading.skip("no_wikitext", identity, title)  # data, styles and modules
        else:
            language = language_tag(page.getroottree().getroot().get(_XML_LANG))
            body = to_text(markup)
            if body:
                about = known(title=title, date=revision.findtext("{*}timestamp"), language=language)
                yield Raw(identity, f"{title}\n\n{body}", about)
            else:
                reading.skip("no_text", identity, title)


def _written(revision: Any) -> str:
    """When a revision was written, as text that can be compared."""
    return str(revision.findtext("{*}timestamp") or "")


def _by_title(title: str, names: Mapping[str, str]) -> str:
    """The namespace of a page of an old dump, which does not say it: the one whose name its title begins with."""
    prefix, colon, _ = title.partition(":")
    wanted = prefix.strip().casefold()
    return next((key for key, name in names.items() if colon and name and name.casefold() == wanted), "0")


def _redirects(markup: str) -> bool:
    """Whether a page only names another one, as old dumps and those of other programs leave it to its text."""
    found = _REDIRECT.match(markup)
    return found is not None and (found[1] == found[1].upper() or found[1].lower() in _REDIRECT_WORDS)


def _namespaces(page: Any) -> dict[str, str]:
    """The names of the dump's namespaces by their key, as its head says."""
    found = page.getroottree().getroot().iterfind(".//{*}namespaces/{*}namespace")
    return {str(one.get("key")): str(one.text or "") for one in found}


def stream_begins(path: StoragePath) -> list[int] | None:
    """The byte at which each stream of pages of a multistream dump begins; None for a dump without an index beside."""
    if not path.name.endswith(_MULTISTREAM):
        return None
    folder, _, name = path.url.rpartition("/")
    index = StoragePath(f"{folder}/{name.removesuffix('.xml.bz2')}-index.txt.bz2", path.connection)
    try:
        with opened(index) as lines:
            # What comes before the first of them names the site and holds no page.
            begins = sorted({int(line.split(b":", 1)[0]) for line in lines})
    except NotFound:
        return None
    except ValueError as error:
        raise DataError(
            f"{index.url} is no index of a multistream dump: {error}", hint="fetch it again, or remove it"
        ) from error
    if begins and begins[0] < 0:
        raise DataError(
            f"{index.url} is no index of a multistream dump: a stream begins at byte {begins[0]}",
            hint="fetch it again, or remove it",
        )
    return begins


def _parts(reading: Reading[WikipediaSource]) -> Iterator[bytes]:
    """The unpacked XML, a part after the other."""
    if reading.range.stop is not None:
        with reading.path.open_read() as stored:
            yield from _streams(reading.path, stored, reading.range.start, reading.range.stop)
        return
    with reading.open() as stream:
        while part := stream.read(_READ_BYTES):
            yield part


def _streams(path: StoragePath, stream: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Unpacked streams that lie between two bytes, as one XML document."""
    # The dump's head, its first stream, says the language and the namespaces.
    head = _unpacked(path, bz2.BZ2Decompressor(), stream.read(_READ_BYTES))
    language, namespaces = _LANGUAGE.search(head), _NAMESPACES.search(head)
    stream.seek(start)
    left = stop - start
    unpacker = bz2.BZ2Decompressor()
    held = b'<pages xml:lang="%s">' % language[1] if language else b"<pages>"
    held += namespaces[0] if namespaces else b""
    while left:
        data = stream.read(min(left, _READ_BYTES))
        if not data:
            raise BrokenFile(f"{path.url} ends {left} bytes before its index says", hint="fetch it again")
        left -= len(data)
        while data:
            held += _unpacked(path, unpacker, data)
            data = unpacker.unused_data
            if unpacker.eof:
                unpacker = bz2.BZ2Decompressor()
        # The last stream ends the dump's own document: hold back what its closing tag could be.
        yield held[:-64]
        held = held[-64:]
    yield held.rstrip().removesuffix(b"</mediawiki>") + b"</pages>"


def _unpacked(path: StoragePath, unpacker: bz2.BZ2Decompressor, data: bytes) -> bytes:
    try:
        return unpacker.decompress(data)
    except OSError as error:
        raise BrokenFile(f"{path.url} cannot be unpacked: {error}", hint="fetch it again") from error


def _pages(reading: Reading[WikipediaSource], parts: Iterable[bytes]) -> Iterator[Any]:
    """Each page's element as soon as it is whole; at most one is held."""
    try:
        from lxml import etree
    except ImportError as error:
        raise not_installed("reading Wikipedia dumps", error) from error

    # No entity is looked up and none is expanded beyond XML's own five.
    parser = etree.XMLPullParser(
        events=("end",), tag="{*}page", resolve_entities=False, no_network=True, huge_tree=True
    )
    held, max_bytes, path = 0, reading.source.max_bytes, reading.path
    try:
        for part in itertools.chain(parts, [None]):
            if part is None:
                parser.close()
            else:
                parser.feed(part)
                held += len(part)
            for _, page in parser.read_events():
                held = 0
                yield page
                page.clear()
                while page.getprevious() is not None:
                    del page.getparent()[0]
            if held > max_bytes:
                raise BrokenFile(
                    f"{path.url} holds a page of more than {max_bytes} bytes",
                    hint="raise max_bytes of this source if that is right",
                )
    except etree.XMLSyntaxError as error:
        raise BrokenFile(
            f"{path.url} is broken XML: {error}", hint="fetch it again; it is truncated or damaged"
        ) from error


def _cut(source: WikipediaSource, path: StoragePath, size: int, unit_bytes: int) -> list[Part] | None:
    """A multistream dump is cut between its streams."""
    begins = stream_begins(path)
    there = [begin for begin in begins or () if begin < size]
    if begins is None or not there:
        return None
    # Where the index knows of more than there is, the last stream is cut: its reader finds how much is missing.
    end = next(iter(begins[len(there) :]), size)
    return joined((Part(start, stop, stop - start) for start, stop in itertools.pairwise([*there, end])), unit_bytes)


SOURCE = SourceKind("wikipedia", WikipediaSource, read, "Wikipedia's XML dumps, one article a document", cut=_cut)
