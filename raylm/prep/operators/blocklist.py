"""Lists of what is not wanted: domains, words in URLs, words in texts; read once, when the operator is made.

Words are looked for by one automaton (Aho and Corasick, 1975; the library ahocorasick_rs): with 10,000 entries the step
reads web text and Wikipedia at 34 MB/s, with 10 at 52 (docs/facts.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from raylm.config.base import Settings, Share
from raylm.config.paths import PathOrUrl
from raylm.errors import ConfigError, DataError
from raylm.prep.extras import not_installed
from raylm.prep.operators.base import Operator, per_document
from raylm.prep.operators.kind import OperatorContext, OperatorKind
from raylm.prep.operators.lexicon import Lexicon, lines_of
from raylm.prep.operators.record import OperatorRecord
from raylm.prep.operators.words import words_of
from raylm.records import Document
from raylm.storage import Connection

_DOMAIN = re.compile(r"[^\s/:@?#.*]+(?:\.[^\s/:@?#.*]+)*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# The entries that stand in a text, in order.
Finder: TypeAlias = Callable[[str], list[str]]


class Blocklist(Settings):
    """Drop documents from unwanted sites, or with unwanted words. Files hold one entry per line; # begins a comment."""

    domains: list[str] = Field(default_factory=list, description="Domains; each blocks its subdomains too.")
    domain_files: list[PathOrUrl] = Field(default_factory=list, description="Files of domains, on any fsspec URL.")
    url_words: list[str] = Field(default_factory=list, description="Words between the punctuation of a URL.")
    url_word_files: list[PathOrUrl] = Field(default_factory=list, description="Files of such words.")
    words: list[str] = Field(default_factory=list, description="Words and phrases in the text, in any case.")
    word_files: list[PathOrUrl] = Field(default_factory=list, description="Files of such words and phrases.")
    min_matches: int = Field(1, ge=1, description="Drop a text in which listed words come this often, or more.")
    min_share: Share = Field(0.0, description="And only if they come at least this often for each of its words.")
    whole_words: bool = Field(
        True, description="An entry inside a longer word does not count; false for scripts without spaces."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        lists = ("domains", "domain_files", "url_words", "url_word_files", "words", "word_files")
        if not any(getattr(self, name) for name in lists):
            raise ValueError(f"a blocklist needs an entry in one of {', '.join(lists)}")
        return self


def blocklist_operator(settings: Blocklist, context: OperatorContext) -> Operator:
    """The operator that drops what is on a list; a document without a URL passes the lists for URLs."""
    connection = context.connection
    domains = frozenset(
        _domain(*entry) for entry in _entries(settings.domains, settings.domain_files, "domains", connection)
    )
    url_words = Lexicon(
        {entry: entry for _, entry in _wordy(settings.url_words, settings.url_word_files, "url_words", connection)}
    )
    words = [entry for _, entry in _wordy(settings.words, settings.word_files, "words", connection)]
    find = finder(words, whole_words=settings.whole_words) if words else None
    asks_for_url = bool(settings.domains or settings.domain_files or settings.url_words or settings.url_word_files)

    def look(document: Document, record: OperatorRecord) -> tuple[Document, ...]:
        url = str(document.meta.get("url", ""))
        if asks_for_url:
            record.tally("blocklist_url", "given" if url else "none")
        reason, why = _why_url(url, domains, url_words) or ("", "")
        if not reason and find is not None:
            reason, why = _why_text(document.text, find(document.text), settings) or ("", "")
        if reason:
            record.drop(reason, document, why)
            return ()
        return (document,)

    return per_document(look)


def host_of(url: str) -> str:
    """The URL's host in small letters, as names are sent (IDNA); "" where there is none."""
    try:
        host = urlsplit(url if _SCHEME.match(url) else f"//{url.removeprefix('//')}").hostname or ""
    except ValueError:  # brackets that are no address
        return ""
    return _as_sent(host)


def listed_domain(host: str, domains: frozenset[str]) -> str | None:
    """The listed domain that the host is, or is below of."""
    rest = host
    while rest:
        if rest in domains:
            return rest
        rest = rest.partition(".")[2]
    return None


def finder(entries: Sequence[str], *, whole_words: bool) -> Finder:
    """Finds entries in any case, with any white space between their words; of those that overlap, the longest one."""
    try:
        from ahocorasick_rs import AhoCorasick
    except ImportError as error:
        raise not_installed("a blocklist of words", error) from error
    automaton = AhoCorasick(sorted({_even(entry) for entry in entries}))

    def find(text: str) -> list[str]:
        even = _even(text)
        found = automaton.find_matches_as_indexes(even, overlapping=True)
        if whole_words:
            found = [one for one in found if _stands_alone(even, one[1], one[2])]
        return [even[start:stop] for start, stop in _longest((one[1], one[2]) for one in found)]

    return find


def _why_url(url: str, domains: frozenset[str], words: Lexicon[str]) -> tuple[str, str] | None:
    if not url:
        return None
    domain = listed_domain(host_of(url), domains) if domains else None
    if domain is not None:
        return "blocked_domain", domain
    found = words.find(words_of(unquote(url)))
    return ("blocked_url_word", found[0]) if found else None


def _why_text(text: str, found: Sequence[str], settings: Blocklist) -> tuple[str, str] | None:
    if len(found) < settings.min_matches:
        return None
    if settings.min_share and len(found) < settings.min_share * len(text.split()):
        return None
    return "blocked_words", ", ".join(dict.fromkeys(found[:5]))


def _even(text: str) -> str:
    return " ".join(text.lower().split())


def _stands_alone(text: str, start: int, stop: int) -> bool:
    return not (text[start - 1 : start].isalnum() or text[stop : stop + 1].isalnum())


def _longest(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Of spans that overlap the one that begins first, and of those the longest."""
    end = 0
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= end:
            yield start, stop
            end = stop


def _entries(given: Iterable[str], files: Iterable[str], key: str, connection: Connection) -> Iterator[tuple[str, str]]:
    """(where it stands, entry) of those in the settings and of those in files."""
    for number, entry in enumerate(given):
        yield f"blocklist.{key}[{number}]", entry.strip()
    for url in files:
        yield from lines_of(url, "", connection)


def _wordy(given: Iterable[str], files: Iterable[str], key: str, connection: Connection) -> Iterator[tuple[str, str]]:
    for where, entry in _entries(given, files, key, connection):
        if not words_of(entry):
            raise _wrong(where, f"{where}: {entry!r} holds no letter or digit", "write words or phrases, one per line")
        yield where, entry


def _domain(where: str, entry: str) -> str:
    name = entry.removeprefix("*.").strip(".")
    if not _DOMAIN.fullmatch(name):
        raise _wrong(where, f"{where}: {entry!r} is no domain", "write it as example.com, without https:// and path")
    return _as_sent(name)


def _wrong(where: str, message: str, hint: str) -> Exception:
    return (ConfigError if where.startswith("blocklist.") else DataError)(message, hint=hint)


def _as_sent(host: str) -> str:
    host = host.strip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:  # a part that is empty or too long
        return host


OPERATOR = OperatorKind(
    name="blocklist",
    settings=Blocklist,
    summary="drops what comes from listed domains, or has listed words in its URL or text",
    make=blocklist_operator,
)
