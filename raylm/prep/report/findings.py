"""What was found out while a dataset was made, beside its counts; the card and the page show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylm.prep.checks.requirements import Verdict
from raylm.prep.checks.skipped import Skipped


@dataclass(frozen=True)
class Findings:
    """skipped: by source. verdicts: on the job's requirements. warnings: what was left out beyond what is plausible."""

    skipped: Mapping[str, Skipped]
    verdicts: Sequence[Verdict] = ()
    warnings: tuple[str, ...] = ()

    def left_out(self) -> Iterator[tuple[str, str, str, str]]:
        """Source, reason, how much, and examples, of all that reading left out."""
        for source, one in self.skipped.items():
            for reason, times in sorted(one.reasons.items()):
                yield source, reason.replace("_", " "), f"{times:,}", " | ".join(one.examples.get(reason, [])[:2])
            for reason, characters in sorted(one.removed.items()):
                share = characters / (one.characters + one.removed.total())
                much = f"{characters:,} characters ({share:.0%})"
                yield source, reason.replace("_", " "), much, " | ".join(one.examples.get(reason, [])[:2])
