"""What one operator did: how many documents came and went, why, and a few examples. Units' records add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raylm.prep.checks.skipped import EXAMPLES
from raylm.prep.languages import language_of
from raylm.records import Document

NOT_JUDGED = "not judged, for want of words"  # a tally, by language
_EXAMPLE_CHARACTERS = 200
_EXAMPLE_LINES = 3
_COUNTERS = ("dropped", "changed", "languages", "kept_languages")


def cut_out(before: str, after: str) -> str:
    """Some lines of a text that are not in what is left of it, as an example of what was taken out of them."""
    left = set(after.split("\n"))
    return "\n".join([line for line in before.split("\n") if line not in left][:_EXAMPLE_LINES])


@dataclass
class OperatorRecord:
    """What an operator notes; everything but `seconds` is the same however often, and wherever, a unit is done.

    documents, bytes: came in (UTF-8 bytes). kept, kept_bytes: went out. dropped: documents by reason. changed: edits by
    kind. tallies: for the report, name → value → documents, such as language → en → 12. seconds: its own time.
    languages, kept_languages: documents that came in and went out, by the language that their metadata name.
    """

    name: str
    documents: int = 0
    bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    tallies: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    kept_languages: Counter[str] = field(default_factory=Counter)

    def take_in(self, document: Document) -> None:
        """Count a document that came to the operator."""
        self.documents += 1
        self.bytes += len(document.text.encode())
        self.languages[language_of(document.meta)] += 1

    def let_out(self, document: Document) -> None:
        """Count a document that leaves the operator."""
        self.kept += 1
        self.kept_bytes += len(document.text.encode())
        self.kept_languages[language_of(document.meta)] += 1

    def drop(self, reason: str, document: Document, why: str = "") -> None:
        """Count a dropped document, and keep its beginning while there are few examples."""
        self.dropped[reason] += 1
        self._keep(reason, document, document.text, why)

    def cut(self, kind: str, document: Document, text: str, count: int = 1) -> None:
        """Count edits that took text out, and keep some of that text while there are few examples."""
        if count:
            self.changed[kind] += count
            if text:
                self._keep(kind, document, text)

    def change(self, kind: str, count: int = 1) -> None:
        """Count edits of a kind."""
        if count:
            self.changed[kind] += count

    def wants_example(self, kind: str) -> bool:
        """Whether there are few examples of this kind yet: to find one may take time."""
        return len(self.examples.get(kind, ())) < EXAMPLES

    def tally(self, name: str, value: str, count: int = 1) -> None:
        """Count documents by a property that the report shows."""
        self.tallies.setdefault(name, Counter())[value] += count

    def add(self, other: OperatorRecord) -> None:
        """Take in what the same operator did to another unit."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.kept += other.kept
        self.kept_bytes += other.kept_bytes
        self.seconds += other.seconds
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)
        self.languages.update(other.languages)
        self.kept_languages.update(other.kept_languages)
        for name, values in other.tallies.items():
            self.tallies.setdefault(name, Counter()).update(values)
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return vars(self) | {
            **{name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS},
            "tallies": {name: dict(sorted(values.items())) for name, values in sorted(self.tallies.items())},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OperatorRecord:
        """What to_dict gave."""
        counters: dict[str, Any] = {
            **{name: Counter(content[name]) for name in _COUNTERS},
            "tallies": {name: Counter(values) for name, values in content["tallies"].items()},
        }
        return cls(**content | counters)

    def _keep(self, kind: str, document: Document, text: str, why: str = "") -> None:
        if self.wants_example(kind):
            text = " ".join(text[: 2 * _EXAMPLE_CHARACTERS].split())[:_EXAMPLE_CHARACTERS]
            self.examples.setdefault(kind, []).append(f"{document.id}{f' ({why})' if why else ''}: {text}")
