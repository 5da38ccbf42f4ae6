"""The log of a run: metrics, events and audit lines as they happen in, the run folder's files out, and back.

Each optimizer step appears once: when steps are trained again, their first lines are cut off. On a local disk lines are
appended as they come; on an object store they are written by `flush`, which the trainer calls before every checkpoint
commits and every `flush_seconds`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from raylm.errors import DataError, StorageError
from raylm.run.events import Evaluated, Event, parse_event
from raylm.run.folder import RunFolder
from raylm.run.lines import LineFile, line_file, read_lines
from raylm.run.metrics import AuditLine, Line, StepMetrics, utc_now
from raylm.run.tensorboard import Scalars
from raylm.storage import StoragePath

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", StepMetrics, AuditLine)


class RunLog:
    """The only writer of a run folder's lines."""

    def __init__(
        self,
        run: RunFolder,
        *,
        audit: bool = False,
        flush_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._audited, self._flush_seconds, self._clock = audit, flush_seconds, clock
        self._lock = threading.RLock()
        self._metrics, self._events, self._audit = (line_file(path) for path in (run.metrics, run.events, run.audit))
        self._scalars = Scalars(run.tensorboard)
        self._last_step = _last_step(self._metrics)
        self._last_audited = _last_step(self._audit)
        self.last_attempt = _last(self._metrics, "attempt")  # of all drivers before this one
        self._muted = self._chart_failed = False
        self._flushed_at = clock()

    def mute(self) -> None:
        """Write nothing from now on: the run folder is another driver's."""
        self._muted = True

    @property
    def last_step(self) -> int:
        """The last step that metrics know of, 0 when none."""
        return self._last_step

    def metric(self, metrics: StepMetrics) -> StepMetrics:
        """Record one optimizer step and return it with its time; the last word on a step counts."""
        stamped = replace(metrics, time=metrics.time or utc_now())
        with self._lock:
            if self._muted:
                return stamped
            if stamped.step <= self._last_step:
                self._metrics.cut_after(stamped.step - 1)
                self._scalars.rewind(stamped.step)
            self._metrics.append(stamped.to_line())
            self._last_step = stamped.step
            self._charted(lambda: self._scalars.add(stamped))
        return stamped

    def event(self, event: Event) -> Event:
        """Record one event and return it with its time."""
        stamped = replace(event, time=event.time or utc_now())
        with self._lock:
            if not self._muted:
                self._events.append(stamped.to_line())
                if isinstance(stamped, Evaluated) and stamped.step is not None:
                    step, loss, each = stamped.step, stamped.held_out_loss, stamped.by_source
                    self._charted(lambda: self._scalars.add_held_out(step, loss, each))
        return stamped

    def _charted(self, write: Callable[[], None]) -> None:
        """Write to TensorBoard's files, which never end a run: they repeat what the run's own lines say."""
        try:
            write()
        except (OSError, StorageError) as error:
            if not self._chart_failed:
                log.warning("TensorBoard's files cannot be written, and lack what comes now: %s", error)
            self._chart_failed = True
            self._scalars.start_anew()

    def audit(self, line: AuditLine) -> None:
        """Record what one step trained on; the last word on a step counts."""
        with self._lock:
            if self._muted or not self._audited:
                return
            if line.step <= self._last_audited:
                self._audit.cut_after(line.step - 1)
            self._audit.append(replace(line, time=line.time or utc_now()).to_line())
            self._last_audited = line.step

    def rewind(self, step: int) -> None:
        """Forget metrics and audit lines after `step`: they are about to be trained again."""
        with self._lock:
            if self._muted:
                return
            if self._last_step > step:
                self._metrics.cut_after(step)
                self._scalars.rewind(step + 1)
                self._last_step = step
            if self._last_audited > step:
                self._audit.cut_after(step)
                self._last_audited = step

    def flush(self) -> None:
        """Make everything recorded so far readable in the run folder."""
        with self._lock:
            if self._muted:
                return
            for file in (self._audit, self._metrics, self._events):
                file.flush()
            self._charted(self._scalars.flush)
            self._flushed_at = self._clock()

    def flush_if_due(self) -> None:
        """Flush when the last flush is older than `flush_seconds`, or much waits for the next."""
        late = self._clock() - self._flushed_at >= self._flush_seconds
        if late or self._metrics.is_due or self._events.is_due or self._audit.is_due:
            self.flush()

    def close(self) -> None:
        """Flush and let go of temporary files."""
        self.flush()
        self._scalars.close()


def read_metrics(run: RunFolder) -> list[StepMetrics]:
    """Every optimizer step that counts, in order."""
    return _by_step(_typed(run.metrics, StepMetrics.parse))


def read_events(run: RunFolder) -> list[Event]:
    """Every event, in the order it was recorded."""
    return _typed(run.events, parse_event)


def read_audit(run: RunFolder) -> list[AuditLine]:
    """What each audited step trained on, in order."""
    return _by_step(_typed(run.audit, AuditLine.parse))


def _typed(path: StoragePath, parse: Callable[[Line], T]) -> list[T]:
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(parse(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path.url}: line {number} is not what raylm writes: {error}", hint="remove that line"
            ) from error
    return records


def _by_step(records: list[R]) -> list[R]:
    # A step stands once; where two drivers wrote for a moment, the later line counts.
    found = {record.step: record for record in records}
    return [found[step] for step in sorted(found)]


def _last_step(file: LineFile) -> int:
    return _last(file, "step")


def _last(file: LineFile, field: str) -> int:
    """A whole number of the last line, 0 where there is none."""
    line = file.last()
    return 0 if line is None or not isinstance(line.get(field), int) else int(line[field])
