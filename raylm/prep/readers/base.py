"""What the readers of all kinds are given, and what they give, before it counts as a document."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.extras import not_installed
from raylm.prep.ranges import FileRange
from raylm.rows import opened
from raylm.storage import StoragePath

S = TypeVar("S", bound=SourceSettings)
Meta: TypeAlias = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Raw:
    """A text, perhaps bytes of UTF-8 that are not decoded yet, and what the source says about it.

    position: the byte, row, record, page or chapter, whatever the kind of file counts in.
    """

    position: int
    content: bytes | str
    meta: Meta = field(default_factory=dict)


@dataclass(frozen=True)
class Reading(Generic[S]):
    """A range of a source's file that is being read, and the account of what is skipped of it."""

    source: S
    path: StoragePath
    range: FileRange
    skipped: Skipped

    def open(self) -> AbstractContextManager[BinaryIO]:
        """The file's content, unpacked by the ending of its name."""
        return opened(self.path, max_compression_ratio=self.source.max_compression_ratio)

    def skip(self, reason: str, position: int | str | None = None, why: str = "") -> None:
        """Count something that becomes no document; with its position, it may be kept as an example."""
        if position is None:
            self.skipped.skip(reason)
        else:
            self.skipped.skip(reason, self.path.url, position, why)

    def take_out(self, reason: str, characters: int, position: int | str = 0, what: str = "") -> None:
        """Count text that goes although its document stays; what it is, or its beginning, may be kept as an example."""
        wanted = what and self.skipped.wants_example(reason)
        example = f"{self.path.url}#{position}: {' '.join(what[:200].split())[:120]}" if wanted else ""
        self.skipped.take_out(reason, characters, example)


def known(**values: str | int | None) -> Meta:
    """The metadata of these that there is any of; runs of white space are one blank."""
    tidied = {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in values.items()}
    return {key: value for key, value in tidied.items() if value or value == 0}


def metadata_of(values: Mapping[str, Any]) -> Meta:
    """A row's values as metadata: text, numbers and dates, without what is null or no number."""
    found: dict[str, str | int | float] = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif hasattr(value, "isoformat"):
            value = value.isoformat()
        elif isinstance(value, bool):
            value = int(value)
        if value is None or value != value:
            continue
        if not isinstance(value, str | int | float):
            raise DataError(
                f"has {type(value).__name__} as {name!r}, which `meta` names; only text and numbers can be metadata",
                hint="take it out of `meta` of this source",
            )
        found[name] = value
    return found


@functools.lru_cache(maxsize=4096)  # a crawl names few, a million times: a fifth of the time that a WET file took
def language_tag(name: str | None) -> str | None:
    """The language as ISO 639-1 writes it (en, de, an), or 639-3 where that has none; None for what is no language.

    Common Crawl writes three letters, servers and pages write en-US, and some tables English: one spelling lets a job
    count and choose by it.
    """
    try:
        import langcodes
    except ImportError as error:
        raise not_installed("naming languages", error) from error

    first = _FIRST.split((name or "").strip().strip("[]()'\"").removeprefix("b'"))[0].strip(" '\"").lower()
    first = _OTHER_CODES.get(first) or _ENGLISH_NAMES.get(first) or _OWN_NAMES.get(first) or first
    if first in NO_LANGUAGE:
        return None
    try:
        code = langcodes.Language.get(first).language if first else None
    except ValueError:
        return None
    return _OTHER_CODES.get(code or "", code)


_FIRST = re.compile(r"[,;.(/|'\"]")  # behind it stands another language, a country or an encoding
NO_LANGUAGE = frozenset(("none", "null", "nil", "na", "xx", "und", "unk", "mul", "zxx", "code", "unknown", "other"))
# Codes of countries that people take for languages, and 639-3's for what 639-1 has one code for.
_OTHER_CODES = {
    **{"jp": "ja", "cz": "cs", "gr": "el", "ua": "uk", "kr": "ko", "sp": "es", "cn": "zh", "dk": "da", "cmn": "zh"},
    **{"arb": "ar", "pes": "fa", "ekk": "et", "lvs": "lv", "zsm": "ms", "swh": "sw", "npi": "ne", "ory": "or"},
    **{"khk": "mn", "uzn": "uz", "azj": "az", "plt": "mg", "ydd": "yi", "pbt": "ps", "zh_classical": "lzh"},
}
_OWN_NAMES = {
    **{"deutsch": "de", "français": "fr", "español": "es", "castellano": "es", "italiano": "it", "português": "pt"},
    **{"русский": "ru", "українська": "uk", "polski": "pl", "nederlands": "nl", "svenska": "sv", "dansk": "da"},
    **{"norsk": "no", "suomi": "fi", "čeština": "cs", "magyar": "hu", "română": "ro", "türkçe": "tr", "ελληνικά": "el"},
    **{"中文": "zh", "汉语": "zh", "漢語": "zh", "简体中文": "zh", "繁體中文": "zh", "日本語": "ja", "한국어": "ko"},
    **{"العربية": "ar", "עברית": "he", "فارسی": "fa", "हिन्दी": "hi", "ไทย": "th", "tiếng việt": "vi"},
    **{"bahasa indonesia": "id", "simplified chinese": "zh", "traditional chinese": "zh", "mandarin": "zh"},
    **{"mandarin chinese": "zh", "brazilian portuguese": "pt", "american english": "en", "british english": "en"},
}
_ENGLISH_NAMES = {
    **{"afrikaans": "af", "albanian": "sq", "arabic": "ar", "armenian": "hy", "basque": "eu", "bengali": "bn"},
    **{"bulgarian": "bg", "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da"},
    **{"dutch": "nl", "english": "en", "esperanto": "eo", "estonian": "et", "finnish": "fi", "french": "fr"},
    **{"galician": "gl", "georgian": "ka", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi"},
    **{"hungarian": "hu", "icelandic": "is", "indonesian": "id", "irish": "ga", "italian": "it", "japanese": "ja"},
    **{"korean": "ko", "latin": "la", "latvian": "lv", "lithuanian": "lt", "malay": "ms", "norwegian": "no"},
    **{"persian": "fa", "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "serbian": "sr"},
    **{"slovak": "sk", "slovenian": "sl", "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl"},
    **{"tamil": "ta", "telugu": "te", "thai": "th", "turkish": "tr", "ukrainian": "uk", "urdu": "ur"},
    **{"vietnamese": "vi", "welsh": "cy", "yiddish": "yi"},
}
