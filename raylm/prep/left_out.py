"""What preparation leaves out: how much for which reason, and a few examples of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EXAMPLES = 5  # kept of each reason


@dataclass
class LeftOut:
    """Counts by reason; readers note, and the unit's marker and the manifest keep them."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, url: str = "", position: int | str = "", why: str = "") -> None:
        """Count one more; with a place, it may be kept as an example."""
        self.reasons[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if url and len(kept) < EXAMPLES:
            kept.append(f"{url}#{position}" + (f": {why}" if why else ""))

    def counts(self) -> dict[str, int]:
        """`skipped_<reason>` → how many."""
        return {f"skipped_{reason}": count for reason, count in sorted(self.reasons.items())}
