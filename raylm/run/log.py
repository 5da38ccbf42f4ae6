"""Metrics, events and audit rows in, the run folder's files out.

One `RunLog` owns a run's `metrics.jsonl`, `events.jsonl`, `audit/` and `tensorboard/`. On a local disk lines are
appended as they come; an object store cannot append, so there the files are written whole at `flush`, which the
trainer calls before every checkpoint commits and every `flush_seconds`. A replayed step replaces its first line.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raylm.errors import StorageError
from raylm.storage import StoragePath

Line = dict[str, Any]
# What TensorBoard shows of a metrics line.
CHARTED = ("loss", "lr", "grad_norm", "tokens_per_second", "step_seconds", "workers", "held_out_loss", "mfu")


def utc_now() -> str:
    """The time as ISO 8601 with milliseconds, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RunLog:
    """The only writer of a run folder's line files."""

    def __init__(
        self,
        run: StoragePath,
        *,
        audit: bool = False,
        flush_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._audited, self._flush_seconds, self._clock = run, audit, flush_seconds, clock
        self._lock = threading.RLock()
        self._metrics = {line["step"]: line for line in read_lines(run / "metrics.jsonl") if "step" in line}
        self._events = list(read_lines(run / "events.jsonl"))
        self._audit = {line["step"]: line for line in read_lines(run / "audit" / "audit.jsonl")} if audit else {}
        self._dirty = False
        self._muted = False
        self._flushed_at = clock()
        self._scalars: Any = None
        self._scalars_folder: Path | None = None
        if run.is_local and self._metrics:
            # A killed writer may have left half a line, which the next append would run into.
            self._write("metrics.jsonl", [self._metrics[step] for step in sorted(self._metrics)])
            self._write("events.jsonl", self._events)

    def mute(self) -> None:
        """Write nothing from now on: the run folder is another driver's."""
        self._muted = True

    @property
    def last_step(self) -> int:
        """The last step that metrics know of, 0 when none."""
        return max(self._metrics, default=0)

    @property
    def events(self) -> list[Line]:
        """Every event so far."""
        return list(self._events)

    def metric(self, line: Line) -> None:
        """Record one optimizer step; the last word on a step wins."""
        with self._lock:
            line = {"step": line["step"], "time": utc_now(), **line}
            replayed = line["step"] in self._metrics
            self._metrics[line["step"]] = line
            self._append("metrics.jsonl", line, rewrite=replayed)
            self._scalar(line)

    def event(self, kind: str, **fields: Any) -> Line:
        """Record one event and return its line."""
        with self._lock:
            line = {"event": kind, "time": utc_now(), **{k: v for k, v in fields.items() if v is not None}}
            self._events.append(line)
            self._append("events.jsonl", line, rewrite=False)
            return line

    def audit(self, step: int, rows: Iterable[tuple[int, int, int]], *, attempt: int) -> None:
        """Record (lane, slot-ordered sequence id, epoch) rows of one rank; a newer attempt replaces an older one's."""
        with self._lock:
            known = self._audit.get(step)
            if known is None or known["attempt"] < attempt:
                known = {"step": step, "attempt": attempt, "rows": []}
            if known["attempt"] == attempt:
                known["rows"].extend([list(row) for row in rows])
                self._audit[step] = known
            self._dirty = True

    def rewind(self, step: int) -> None:
        """Forget metrics and audit rows after `step`: they are about to be trained again."""
        with self._lock:
            gone = [known for known in self._metrics if known > step]
            for known in gone:
                del self._metrics[known]
            for known in [known for known in self._audit if known > step]:
                del self._audit[known]
            if gone:
                self._append("metrics.jsonl", None, rewrite=True)

    def flush(self) -> None:
        """Make everything recorded so far readable in the run folder."""
        with self._lock:
            if self._muted:
                return
            if self._scalars is not None:
                self._scalars.flush()
            if self._audited and self._dirty:
                self._write("audit/audit.jsonl", [self._audit[step] for step in sorted(self._audit)])
            if not self._run.is_local and self._dirty:
                self._write("metrics.jsonl", [self._metrics[step] for step in sorted(self._metrics)])
                self._write("events.jsonl", self._events)
                self._upload_scalars()
            self._dirty = False
            self._flushed_at = self._clock()

    def flush_if_due(self) -> None:
        """Flush when the last flush is older than `flush_seconds`."""
        if self._clock() - self._flushed_at >= self._flush_seconds:
            self.flush()

    def _append(self, name: str, line: Line | None, *, rewrite: bool) -> None:
        self._dirty = True
        folder = self._run.local_path()
        if folder is None or self._muted:
            return
        if rewrite:
            self._write(name, [self._metrics[step] for step in sorted(self._metrics)])
        elif line is not None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with (folder / name).open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")
            except OSError as error:
                raise StorageError(f"cannot write {folder / name}: {error.strerror}") from error

    def _write(self, name: str, lines: list[Line]) -> None:
        place = self._run
        for part in name.split("/"):
            place = place / part
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def _scalar(self, line: Line) -> None:
        # tensorboard's own writer: torch's wrapper would load torch into the driver's side.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._scalars is None:
            local = self._run.local_path()
            self._scalars_folder = (
                Path(tempfile.mkdtemp(prefix="raylm-tb-")) if local is None else local / "tensorboard"
            )
            self._scalars = EventFileWriter(str(self._scalars_folder), flush_secs=30)
        values = [
            Summary.Value(tag=key, simple_value=float(line[key]))
            for key in CHARTED
            if isinstance(line.get(key), int | float)
        ]
        self._scalars.add_event(Event(step=line["step"], wall_time=time.time(), summary=Summary(value=values)))

    def _upload_scalars(self) -> None:
        if self._scalars_folder is not None:
            for file in sorted(self._scalars_folder.iterdir()):
                (self._run / "tensorboard" / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Flush and let go of temporary files."""
        self.flush()
        if self._scalars_folder is not None and not self._run.is_local:
            shutil.rmtree(self._scalars_folder, ignore_errors=True)


def read_lines(place: StoragePath) -> list[Line]:
    """The JSON lines of a file; none when it is missing, and a last line cut short by a kill is left out."""
    if not place.exists():
        return []
    lines: list[Line] = []
    for text in place.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a killed writer's last line, or damage
        if isinstance(line, dict):
            lines.append(line)
    return lines
