"""WAT files become documents: what Common Crawl noted of each page, as JSON, without the page.

The text is the title and description of each page that answered; address, date, language and the number of its links
are metadata: enough to count sites and languages, or to train on titles, without fetching the pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.readers.base import Meta, Raw, Reading, known, language_tag
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.records import (
    LANGUAGES,
    FoundLanguage,
    bare_address,
    broken,
    main_language,
    records,
    with_languages,
)


class WatSource(FileSourceSettings):
    """Web archives with the metadata of pages."""

    kind: Literal["wat"] = Field("wat", description="How files are read.")


def read(reading: Reading[WatSource]) -> Iterator[Raw]:
    """The pages that the file describes, in its order; other records of the crawl are counted."""
    yield from with_languages(_opened(reading))


def _opened(reading: Reading[WatSource]) -> Iterator[Raw | FoundLanguage]:
    with reading.open() as stream:
        yield from _envelopes(reading, stream)


def _envelopes(reading: Reading[WatSource], stream: BinaryIO) -> Iterator[Raw | FoundLanguage]:
    for number, record in records(reading, stream, wanted=("metadata",)):
        try:
            envelope = _Envelope.parsed(record.reader.read())
        except (ValueError, RecursionError) as error:
            reading.skipped.broken_record(broken(reading, number, f"it holds no JSON envelope: {error}"))
            continue
        if envelope.kind == "metadata":
            reading.skip("other_record")
            if language := envelope.found_language:
                yield FoundLanguage(envelope.url, language)
        elif (reason := _no_document(envelope)) is not None:
            reading.skip(reason, number, envelope.url or "")
        else:
            yield Raw(number, envelope.text, envelope.about())


def _no_document(envelope: _Envelope) -> str | None:
    """Why the envelope gives no document; None where it gives one."""
    if envelope.kind != "response":
        return "revisit" if envelope.kind == "revisit" else "other_record"
    if envelope.status != "200":
        return "http_status"
    if envelope.html is None:
        return "no_page"
    return None if envelope.text else "no_text"


class _Envelope:
    """A view of one envelope's JSON, in which any part may be missing."""

    def __init__(self, content: dict[str, Any]) -> None:
        envelope = _part(content, "Envelope")
        header = _part(envelope, "WARC-Header-Metadata")
        payload = _part(envelope, "Payload-Metadata")
        response = _part(payload, "HTTP-Response-Metadata")
        self.kind = header.get("WARC-Type")
        self.url = bare_address(header.get("WARC-Target-URI"))
        self._date = header.get("WARC-Date")
        self.status = str(_part(response, "Response-Message").get("Status"))
        self.html = response.get("HTML-Metadata")
        self._headers = _part(response, "Headers")
        head = _part(_part(response, "HTML-Metadata"), "Head")
        self._title = _words(head.get("Title"))
        self._metas = _parts(head, "Metas")
        self._found = _parts(_part(payload, "WARC-Metadata-Metadata"), "Metadata-Records")

    @classmethod
    def parsed(cls, data: bytes) -> _Envelope:
        """Of a record's bytes; a ValueError where that is no envelope."""
        content = json.loads(data)
        if not isinstance(content, dict) or "Envelope" not in content:
            raise ValueError("no key 'Envelope'")
        return cls(content)

    @property
    def text(self) -> str:
        """The page's title, and what it says it is about."""
        description = self._meta("name", "description") or self._meta("property", "og:description")
        return "\n\n".join(filter(None, (self._title, description)))

    def about(self) -> Meta:
        """The page's metadata."""
        links = self.html.get("Links") if isinstance(self.html, dict) else None
        return known(
            url=self.url,
            date=self._date,
            title=self._title,
            language=self._claimed_language(),
            links=len(links) if isinstance(links, list) else 0,
        )

    @property
    def found_language(self) -> str | None:
        """The language that Common Crawl found."""
        found = (main_language(str(record.get("Value"))) for record in self._found if record.get("Name") == LANGUAGES)
        return next(found, None)

    def _claimed_language(self) -> str | None:
        """The language that the page, or else its server, says it is in."""
        claims = (
            self._meta("name", "HTML@/lang"),
            self._meta("name", "HTML@/xml:lang"),
            self._meta("http-equiv", "content-language"),
            next((str(value) for name, value in self._headers.items() if name.lower() == "content-language"), ""),
        )
        return next(filter(None, map(language_tag, claims)), None)

    def _meta(self, key: str, value: str) -> str:
        wanted = (meta for meta in self._metas if str(meta.get(key, "")).lower() == value.lower())
        return next((_words(meta.get("content")) for meta in wanted), "")


def _part(content: Any, name: str) -> dict[str, Any]:
    part = content.get(name) if isinstance(content, dict) else None
    return part if isinstance(part, dict) else {}


def _parts(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    parts = content.get(name)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _words(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


SOURCE = SourceKind("wat", WatSource, read, "WAT archives of a crawl, titles and descriptions of its pages")
