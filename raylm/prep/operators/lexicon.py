"""Words and phrases found in a text: lists of them in files, and where each stands in a run of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from raylm.errors import DataError
from raylm.prep.operators.words import words_of
from raylm.storage import Connection, NotFound, StoragePath

Found = TypeVar("Found")

_PACKAGED = Path(__file__).parent.parent / "word_lists"


class Lexicon(Generic[Found]):
    """What each of many phrases stands for, found in runs of words; the longest phrase at a place counts."""

    def __init__(self, phrases: Mapping[str, Found]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], Found]]] = {}
        for phrase, found in phrases.items():
            words = tuple(words_of(phrase))
            if words:
                self._by_first.setdefault(words[0], []).append((words, found))
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: -len(entry[0]))

    def find(self, words: Sequence[str]) -> list[Found]:
        """What stands for each phrase in these words, in order; places do not overlap."""
        if self._by_first.keys().isdisjoint(words):
            return []
        return list(self._scan(words))

    def _scan(self, words: Sequence[str]) -> Iterator[Found]:
        at = 0
        while at < len(words):
            for phrase, found in self._by_first.get(words[at], ()):
                if len(phrase) == 1 or tuple(words[at : at + len(phrase)]) == phrase:
                    yield found
                    at += len(phrase)
                    break
            else:
                at += 1


def lines_of(url: str | None, packaged: str, connection: Connection) -> Iterator[tuple[str, str]]:
    """(where for errors, line) of a list that the job names, or of the package's own; comments and blanks left out."""
    if url is None:
        name, text = packaged, (_PACKAGED / packaged).read_text(encoding="utf-8")
    else:
        name, text = url, _read(StoragePath(url, connection))
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{name}, line {number}", line.strip()


def named_terms(url: str | None, packaged: str, connection: Connection) -> dict[str, str]:
    """term → name, from lines `name: term, term`."""
    terms: dict[str, str] = {}
    for where, line in lines_of(url, packaged, connection):
        name, colon, listed = line.partition(":")
        found = [term.strip() for term in listed.split(",") if words_of(term)]
        if not colon or not name.strip() or not found:
            raise DataError(f"{where}: {line!r} names no terms", hint="write `name: term, term`")
        terms.update(dict.fromkeys(found, name.strip()))
    return terms


def word_pairs(url: str | None, packaged: str, connection: Connection) -> list[tuple[str, str]]:
    """Pairs of single words, from lines of two words."""
    pairs = []
    for where, line in lines_of(url, packaged, connection):
        words = line.lower().split()
        if len(words) != 2 or any(words_of(word) != [word] for word in words):
            raise DataError(f"{where}: {line!r} is no pair of words", hint="write two words with a tab between them")
        pairs.append((words[0], words[1]))
    return pairs


def _read(path: StoragePath) -> str:
    try:
        return path.read_text().removeprefix("\ufeff")  # a byte order mark
    except (NotFound, UnicodeDecodeError) as error:
        raise DataError(
            f"{path.url} is no list of words: {error}", hint="name a UTF-8 text file in the step's settings"
        ) from error
