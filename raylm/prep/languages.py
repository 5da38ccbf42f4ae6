"""What is known of a document's language: the metadata's key `language`, which a source or the step language fills."""

from __future__ import annotations

import re
from collections.abc import Mapping

UNKNOWN_LANGUAGE = "unknown"  # no source and no step has said what it is
ENGLISH_CODES = ("en", "eng")
_ENGLISH = (*ENGLISH_CODES, "english")
_UNSAID = ("und", UNKNOWN_LANGUAGE, "")


def language_of(meta: Mapping[str, str | int | float]) -> str:
    """The language as it was said, or UNKNOWN_LANGUAGE."""
    return str(meta.get("language", UNKNOWN_LANGUAGE))


def may_be_english(meta: Mapping[str, str | int | float]) -> bool:
    """Whether nobody said that a document is in another language than English; en-GB and en_US are English.

    Operators whose lists are English look at such documents only. Those that choose rules by language (quality) go by
    what was said, and take their own default where nothing was.
    """
    language = re.split("[-_]", language_of(meta).lower())[0]
    return language in _ENGLISH or language in _UNSAID
