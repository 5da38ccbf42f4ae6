"""How much of a source may be broken: comes in what each unit set aside, leaves nothing, or an error."""

from __future__ import annotations

from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_FILE, BROKEN_RECORD, LeftOut
from raylm.prep.units import Plan
from raylm.prep.passes import UnitResult


class Quarantine:
    """Adds up what the units of a plan set aside; `most` is the share of files, or records, that may be broken."""

    def __init__(self, plan: Plan, most: float) -> None:
        self._most = most
        self._files: dict[str, set[str]] = {}
        for unit in plan.units:
            self._files.setdefault(unit.source, set()).update(piece.url for piece in unit.pieces)
        self._left_out = {source: LeftOut() for source in self._files}
        self.damaged_units: list[int] = []

    def add(self, result: UnitResult) -> None:
        """Take in what one more unit set aside."""
        self._left_out[result.source].add(result.log.left_out)
        if result.log.left_out.files or result.log.left_out.reasons[BROKEN_RECORD]:
            self.damaged_units.append(result.number)

    def check_files(self, source: str) -> None:
        """Raise a DataError when too many of the source's files are broken."""
        left_out = self._left_out[source]
        broken, files = len(set(left_out.files)), len(self._files[source])
        if broken > self._most * files:
            raise self._refusal(source, f"{broken} of {files} files", left_out.examples[BROKEN_FILE][0])

    def check_all(self) -> None:
        """The same for files and records of every source; only when all units are in are the records known."""
        for source, left_out in self._left_out.items():
            self.check_files(source)
            broken = left_out.reasons[BROKEN_RECORD]
            records = left_out.documents + broken
            if broken > self._most * records:
                raise self._refusal(source, f"{broken} of {records} records", left_out.examples[BROKEN_RECORD][0])

    def _refusal(self, source: str, what: str, example: str) -> DataError:
        allowed = f"{what} of source {source!r} are broken; prepare.quarantine allows {self._most:g}"
        return DataError(
            f"{example} ({allowed})",
            hint=f"{self._left_out[source].hint}; or raise prepare.quarantine to go on without what is broken",
        )
