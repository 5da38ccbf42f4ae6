"""How much of a source may be broken: what units set aside is summed, and too much of it is an error."""

from __future__ import annotations

from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_FILE, BROKEN_RECORD, Skipped
from raylm.prep.passes import UnitResult
from raylm.prep.units import WorkList


class Quarantine:
    """Sums what units set aside; `max_share` is the share of files, or records, that may be broken."""

    def __init__(self, worklist: WorkList, max_share: float) -> None:
        self._max_share = max_share
        self._files: dict[str, set[str]] = {}
        for unit in worklist.units:
            self._files.setdefault(unit.source, set()).update(part.url for part in unit.ranges)
        self._skipped = {source: Skipped() for source in self._files}
        self.damaged_units: list[int] = []

    def add(self, result: UnitResult) -> None:
        """Take in what one more unit set aside."""
        self._skipped[result.source].add(result.log.skipped)
        if result.log.skipped.files or result.log.skipped.reasons[BROKEN_RECORD]:
            self.damaged_units.append(result.number)

    def check_files(self, source: str) -> None:
        """Raise a DataError when too many of the source's files are broken."""
        skipped = self._skipped[source]
        broken, files = len(set(skipped.files)), len(self._files[source])
        if broken > self._max_share * files:
            raise self._refusal(source, f"{broken} of {files} files", skipped.examples[BROKEN_FILE][0])

    def check_all(self) -> None:
        """The same for files and records of every source; only when all units are in are the records known."""
        for source, skipped in self._skipped.items():
            self.check_files(source)
            broken = skipped.reasons[BROKEN_RECORD]
            records = skipped.records
            if broken > self._max_share * records:
                raise self._refusal(source, f"{broken} of {records} records", skipped.examples[BROKEN_RECORD][0])

    def _refusal(self, source: str, what: str, example: str) -> DataError:
        allowed = f"{what} of source {source!r} are broken; prepare.max_broken_share allows {self._max_share:g}"
        return DataError(
            f"{example} ({allowed})",
            hint=f"{self._skipped[source].hint}; or raise prepare.max_broken_share to go on without what is broken",
        )
