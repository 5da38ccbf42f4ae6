"""One driver a run: a file in the run folder says who trains it, and says so again every few seconds.

Comes in: the run folder. Leaves: the right to train there, or an error that names who has it. A driver that was killed
has none: on its own machine that is seen at once, elsewhere when its file has not changed for a while. Two that start
within one moment may both begin; the one whose file was replaced notices at its next beat and ends. What is saved is
safe all the while, since an older attempt cannot commit.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from raylm.errors import StorageError, TrainingError
from raylm.run.folder import RunFolder
from raylm.storage import NotFound, StoragePath

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
GONE_SECONDS = 15.0  # without a beat, on another machine


@dataclass(frozen=True)
class Holder:
    """A driver: `began` is its process's start in seconds since 1970, which tells it from a later one of its number."""

    token: str
    host: str
    pid: int
    began: float
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to train in a run folder, from `take` until `release`."""

    def __init__(
        self,
        run: StoragePath,
        *,
        beat_seconds: float = BEAT_SECONDS,
        gone_seconds: float = GONE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run, self._file = run, RunFolder(run).lease
        self._beat_seconds, self._gone_seconds, self._sleep = beat_seconds, gone_seconds, sleep
        self._me = _this_process()
        self._ended = threading.Event()

    def take(self, lost: Callable[[str], None]) -> None:
        """Take it, or raise a TrainingError naming who trains there; `lost` is told when another takes it later."""
        other = self._holder()
        if other is not None and self._lives(other):
            raise TrainingError(
                f"{self._run.url} is being trained already, by {other}",
                hint="stop that one first (Ctrl-C there), or choose another name",
            )
        self._write()
        threading.Thread(target=self._beats, args=(lost,), name="raylm-lease", daemon=True).start()

    def release(self) -> None:
        """Give it back; nothing happens when it is another's by now."""
        self._ended.set()
        with suppress(StorageError):
            holder = self._holder()
            if holder is not None and holder.token == self._me.token:
                self._file.remove()

    def _beats(self, lost: Callable[[str], None]) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                holder = self._holder()
                if holder is not None and holder.token != self._me.token:
                    lost(str(holder))
                    return
                if not self._ended.is_set():
                    self._me = replace(self._me, beat=self._me.beat + 1)
                    self._write()
            except StorageError as error:
                log.warning("cannot say that this run is being trained: %s", error)

    def _lives(self, other: Holder) -> bool:
        if other.host == self._me.host:
            return other.pid != self._me.pid and _began(other.pid) == other.began
        log.warning("%s trained this run: waiting %g s to see whether it still does", other, self._gone_seconds)
        for _ in range(max(1, round(self._gone_seconds))):
            self._sleep(1.0)
            now = self._holder()
            if now is None:
                return False
            if now != other:
                return True
        return False

    def _holder(self) -> Holder | None:
        try:
            return Holder(**json.loads(self._file.read_bytes()))
        except (NotFound, ValueError, TypeError):
            return None  # none, or not one of ours

    def _write(self) -> None:
        self._file.write_text(json.dumps(asdict(self._me)))


def _this_process() -> Holder:
    return Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _began(os.getpid()) or 0.0)


def _began(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
