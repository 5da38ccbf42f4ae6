"""A run's metrics as TensorBoard's event files."""

from __future__ import annotations

import shutil
import tempfile
import time
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
        self._uploaded: dict[str, int] = {}

    def add(self, metrics: StepMetrics) -> None:
        """Add one step."""
        # tensorboard's own writer: torch's wrapper would load torch into the driver's side.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._opened()
        values = [
            Summary.Value(tag=key, simple_value=float(value))
            for key in CHARTED
            if (value := getattr(metrics, key)) is not None
        ]
        self._writer.add_event(Event(step=metrics.step, wall_time=time.time(), summary=Summary(value=values)))

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
