"""What the rules under prepare.require look at, measured on documents on their way into the shards.

A unit's measures add up with others'. Of a large unit only the documents with the smallest hashes are looked at
closely: by their text, so that equal texts are in the sample together, and the same ones in every attempt.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from raylm.config.job import Job
from raylm.prep.languages import language_of
from raylm.prep.operators.decontaminate.ngrams import NgramHasher
from raylm.prep.operators.decontaminate.operator import Decontaminate, contaminating, index_in
from raylm.prep.operators.personal.operator import PersonalData, find
from raylm.prep.passes import fitted_folder
from raylm.records import Document
from raylm.storage import StoragePath

# Different texts whose hashes a unit keeps, to find repeated ones: the share of those is exact below this number of
# texts, and above it known to about 1.6 % of itself.
SKETCH = 4096
SAMPLE = 500  # texts of a unit that are searched for what should not be there

Detector: TypeAlias = Callable[[str], int]


def detectors(job: Job) -> dict[str, Detector]:
    """What is searched for in the sample, by rule: personal data as the job's own step looks for it."""
    if "personal_data" not in wanted(job):
        return {}
    steps = [step.settings for step in job.prepare.steps if isinstance(step.settings, PersonalData)]
    settings = steps[-1] if steps else PersonalData()
    return {"personal_data": lambda text: len(find(text, settings))}


def wanted(job: Job) -> set[str]:
    """The measures that the job's rules need of every unit."""
    names = {rule.partition(".")[0] for rule in job.prepare.require.rules()}
    return names & {"contamination", "duplicates", "language", "personal_data"}


def contamination(job: Job, output: StoragePath) -> Callable[[str], bool]:
    """Whether a text shares runs with an evaluation set, as the job's decontaminate steps count it."""
    hasher = NgramHasher()
    steps = [
        (step.settings, index_in(fitted_folder(output, number, step)))
        for number, step in enumerate(job.prepare.steps)
        if isinstance(step.settings, Decontaminate)
    ]
    return lambda text: any(contaminating(index, hasher, text, settings.min_matches) for settings, index in steps)


class Measures:
    """Takes a unit's documents, and keeps what the job's rules need of them."""

    def __init__(self, job: Job, output: StoragePath) -> None:
        self._wanted = wanted(job)
        self._is_contaminated = contamination(job, output) if "contamination" in self._wanted else None
        self._contaminated = 0
        self._detectors = detectors(job)
        self._digests = _Smallest(SKETCH)
        self._texts = _Smallest(SAMPLE)
        self._held: dict[int, str] = {}
        self._languages: Counter[str] = Counter()
        self._documents = 0

    def add(self, document: Document) -> None:
        """Look at one more document."""
        if not self._wanted:
            return
        self._documents += 1
        self._languages[language_of(document.meta)] += 1
        if self._is_contaminated is not None:
            self._contaminated += self._is_contaminated(document.text)
        digest = int.from_bytes(hashlib.blake2b(document.text.encode(), digest_size=8).digest(), "big")
        self._digests.add(digest)
        if self._detectors:
            dropped = self._texts.add(digest)
            if digest in self._texts.counts:
                self._held[digest] = document.text
            if dropped is not None:
                self._held.pop(dropped, None)

    def to_dict(self) -> dict[str, Any]:
        """As the unit's marker holds it; empty when no rule needs anything."""
        measures: dict[str, Any] = {}
        if "language" in self._wanted:
            measures["language"] = dict(sorted(self._languages.items()))
        if "duplicates" in self._wanted:
            measures["duplicates"] = self._digests.to_dict()
        if self._is_contaminated is not None:
            measures["contamination"] = {"documents": self._documents, "found": self._contaminated}
        for name, detector in self._detectors.items():
            found = sum(detector(text) for _, text in sorted(self._held.items()))
            measures[name] = {"documents": len(self._held), "found": found}
        return measures


def summed(units: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """All units' measures as the values that rules look at."""
    parts = [unit for unit in units if unit]
    values: dict[str, float] = {}
    if any("language" in part for part in parts):
        languages: Counter[str] = Counter()
        for part in parts:
            languages.update(part["language"])
        values |= {f"language.{code}": count / languages.total() for code, count in sorted(languages.items())}
    if any("duplicates" in part for part in parts):
        values["duplicates"] = _repeated([part["duplicates"] for part in parts])
    for name in ("contamination", "personal_data"):
        if any(name in part for part in parts):
            searched = [part[name] for part in parts]
            found = sum(one["found"] for one in searched)
            values[name] = found / max(1, sum(one["documents"] for one in searched))
    return values


class _Smallest:
    """The `most` smallest of many numbers, and how often each came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[int] = []  # negated: the largest one first
        self.counts: dict[int, int] = {}
        self._whole = True

    def add(self, number: int) -> int | None:
        """Take in one more; the number that had to go for it, if any."""
        if number in self.counts:
            self.counts[number] += 1
            return None
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, -number)
            self.counts[number] = 1
            return None
        self._whole = False
        if number > -self._heap[0]:
            return None
        gone = -heapq.heapreplace(self._heap, -number)
        del self.counts[gone]
        self.counts[number] = 1
        return gone

    def to_dict(self) -> dict[str, Any]:
        """below: all numbers smaller than this are there; hexadecimal, as JSON numbers are too short."""
        below = 2**64 if self._whole else -self._heap[0] + 1
        return {"below": f"{below:x}", "counts": {f"{number:x}": self.counts[number] for number in sorted(self.counts)}}


def _repeated(sketches: Iterable[Mapping[str, Any]]) -> float:
    """The share of documents beyond the first of each text, from the hashes that every unit kept all of."""
    parts = list(sketches)
    below = min(int(part["below"], 16) for part in parts)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update({number: count for number, count in part["counts"].items() if int(number, 16) < below})
    return 1 - len(counts) / counts.total() if counts else 0.0
