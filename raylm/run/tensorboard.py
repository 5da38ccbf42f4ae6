"""A run's metrics as TensorBoard's event files."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylm.run.lines import PART_BYTES
from raylm.run.metrics import StepMetrics
from raylm.storage import StoragePath

CHARTED = ("loss", "lr", "grad_norm", "tokens_per_second", "step_seconds", "workers", "mfu")


class Scalars:
    """Event files in a folder; on an object store, files of a bounded size that are uploaded at each flush."""

    def __init__(self, folder: StoragePath) -> None:
        self._folder = folder
        self._local = folder.local_path()
        self._scratch: Path | None = None
        self._writer: Any = None
        self._first: int | None = None
        self._uploaded: dict[str, int] = {}

    def add(self, metrics: StepMetrics) -> None:
        """Add one step."""
        self._write(metrics.step, {key: value for key in CHARTED if (value := getattr(metrics, key)) is not None})

    def add_held_out(self, step: int, loss: float, by_source: Mapping[str, float]) -> None:
        """Add an evaluation."""
        self._write(step, {"held_out_loss": loss, **{f"held_out_loss/{name}": one for name, one in by_source.items()}})

    def rewind(self, step: int) -> None:
        """Steps from `step` on are trained again: what was written of them is not shown any more."""
        self._first = min(step, self._first or step)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        # tensorboard's own writer: torch's wrapper would load torch into the driver's side.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._opened()
        if self._first is not None:
            # Who reads the files drops what earlier ones hold from this step on.
            again = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=self._first, wall_time=time.time(), session_log=again))
            self._first = None
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()])
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def flush(self) -> None:
        """Make everything readable."""
        if self._writer is None:
            return
        self._writer.flush()
        if self._scratch is None:
            return
        self._upload()
        if sum(file.stat().st_size for file in self._scratch.iterdir()) >= PART_BYTES:
            self._writer.close()
            self._upload()
            for file in self._scratch.iterdir():
                file.unlink()
            self._uploaded = {}
            self._writer = None

    def start_anew(self) -> None:
        """Begin another file with the next line: this one's writer failed, and would again."""
        self._writer = None

    def close(self) -> None:
        """Remove temporary files; flush first."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _opened(self) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._local is None and self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="raylm-tb-"))
        return EventFileWriter(str(self._local or self._scratch), flush_secs=30)

    def _upload(self) -> None:
        assert self._scratch is not None
        for file in sorted(self._scratch.iterdir()):
            size = file.stat().st_size
            if self._uploaded.get(file.name) != size:
                (self._folder / file.name).write_bytes(file.read_bytes())
                self._uploaded[file.name] = size
