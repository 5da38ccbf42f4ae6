"""What one operator did: how many documents came and went, why, and a few examples. Units' records add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raylm.prep.checks.skipped import EXAMPLES
from raylm.records import Document

_EXAMPLE_CHARACTERS = 200


@dataclass
class OperatorRecord:
    """What an operator notes; everything but `seconds` is the same however often, and wherever, a unit is done.

    documents, bytes: came in (UTF-8 bytes). kept, kept_bytes: went out. dropped: documents by reason. changed: edits by
    kind. tallies: for the report, name → value → documents, such as language → en → 12. seconds: its own time.
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

    def take_in(self, document: Document) -> None:
        """Count a document that came to the operator."""
        self.documents += 1
        self.bytes += len(document.text.encode())

    def let_out(self, document: Document) -> None:
        """Count a document that leaves the operator."""
        self.kept += 1
        self.kept_bytes += len(document.text.encode())

    def drop(self, reason: str, document: Document, why: str = "") -> None:
        """Count a dropped document, and keep its beginning while there are few examples."""
        self.dropped[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            text = " ".join(document.text[: 2 * _EXAMPLE_CHARACTERS].split())[:_EXAMPLE_CHARACTERS]
            kept.append(f"{document.id}{f' ({why})' if why else ''}: {text}")

    def change(self, kind: str, count: int = 1) -> None:
        """Count edits of a kind."""
        if count:
            self.changed[kind] += count

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
        for name, values in other.tallies.items():
            self.tallies.setdefault(name, Counter()).update(values)
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return vars(self) | {
            "dropped": dict(sorted(self.dropped.items())),
            "changed": dict(sorted(self.changed.items())),
            "tallies": {name: dict(sorted(values.items())) for name, values in sorted(self.tallies.items())},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OperatorRecord:
        """What to_dict gave."""
        counters: dict[str, Any] = {
            "dropped": Counter(content["dropped"]),
            "changed": Counter(content["changed"]),
            "tallies": {name: Counter(values) for name, values in content["tallies"].items()},
        }
        return cls(**content | counters)
