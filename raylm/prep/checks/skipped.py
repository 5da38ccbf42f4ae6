"""What reading skips: how much for which reason, and a few examples of each.

Some of it is meant (a redirect, an empty page), some is broken. What is broken is set aside and the run goes on, as
long as it stays below a share that the job allows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raylm.errors import DataError

EXAMPLES = 5  # kept of each reason
ALL_BROKEN = 1000  # this many broken records and no document: what is wrong is the job, not the records
BROKEN_FILE = "broken_file"
EMPTY_FILE = "empty_file"  # it holds no record at all
OF_FILES = (BROKEN_FILE, EMPTY_FILE)  # reasons that count files; all others count records
BROKEN_RECORD = "broken_record"
SKIPPED = "skipped_"  # before a reason, among the counts of a source in a manifest


@dataclass
class Skipped:
    """Counts by reason, of what readers skipped; the unit's marker keeps them."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # the URLs of those that are broken
    hint: str | None = None  # what to do about the first that was broken
    documents: int = 0  # taken, beside what was skipped
    characters: int = 0  # of those documents
    removed: Counter[str] = field(default_factory=Counter)  # characters by reason, of what documents held beside them

    def skip(self, reason: str, url: str = "", position: int | str = "", why: str = "") -> None:
        """Count one more; with a URL, it may be kept as an example."""
        self._count(reason, f"{url}#{position}" + (f": {why}" if why else "") if url else "")

    def broken_file(self, url: str, error: DataError) -> None:
        """Set a file aside, from here to its end."""
        self.files.append(url)
        self._broken(BROKEN_FILE, error)

    def broken_record(self, error: DataError) -> None:
        """Set a record aside; the error itself, where nothing but broken records came so far."""
        self._broken(BROKEN_RECORD, error)
        if self.reasons[BROKEN_RECORD] >= ALL_BROKEN and not self.documents:
            raise error

    def wants_example(self, reason: str) -> bool:
        """Whether there are few examples of this reason yet."""
        return len(self.examples.get(reason, ())) < EXAMPLES

    def take_out(self, reason: str, characters: int, example: str = "") -> None:
        """Count text that goes although its document stays; the example is kept while there are few."""
        if characters > 0:
            self.removed[reason] += characters
            if example:
                self._keep(reason, example)

    def add(self, other: Skipped) -> None:
        """Take in what another unit skipped."""
        self.reasons.update(other.reasons)
        self.removed.update(other.removed)
        self.characters += other.characters
        self.files += other.files
        self.hint = self.hint or other.hint
        self.documents += other.documents
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]

    def counts(self) -> dict[str, int]:
        """Prefixed reason → how many, as manifests hold it."""
        return {f"{SKIPPED}{reason}": count for reason, count in sorted(self.reasons.items())}

    @property
    def records(self) -> int:
        """All that were read: taken, broken, or left out for another reason."""
        return self.documents + self.reasons.total() - sum(self.reasons[reason] for reason in OF_FILES)

    def to_dict(self) -> dict[str, Any]:
        """As a unit's marker holds it."""
        return vars(self) | {"reasons": dict(self.reasons), "removed": dict(self.removed)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Skipped:
        """What to_dict gave."""
        return cls(**content | {name: Counter(content[name]) for name in ("reasons", "removed")})

    def _broken(self, reason: str, error: DataError) -> None:
        self.hint = self.hint or error.hint
        self._count(reason, error.message)

    def _count(self, reason: str, example: str) -> None:
        self.reasons[reason] += 1
        self._keep(reason, example)

    def _keep(self, reason: str, example: str) -> None:
        kept = self.examples.setdefault(reason, [])
        if example and self.wants_example(reason):
            kept.append(example)
