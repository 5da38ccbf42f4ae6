"""One driver per run: a lease in the run folder, renewed every few seconds, says which process trains it.

The lease of a driver that was killed has expired: on its own machine that is seen at once, elsewhere when it was not
renewed for a while. Two that start within one moment may both begin; the one whose lease was replaced notices at its
next heartbeat and ends. What is saved is safe all the while, since an older fence cannot commit.
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
from pathlib import Path

from raylm.errors import StorageError, TrainingError
from raylm.run.folder import RunFolder
from raylm.storage import NotFound
from raylm.strict_json import parse_json

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 15.0  # without a heartbeat, on another machine

_HELD_HERE: set[str] = set()  # tokens of the leases that this process holds


@dataclass(frozen=True)
class Holder:
    """A driver. began: when its process started, by a clock that nobody sets; a later one of its pid has another."""

    token: str
    host: str
    pid: int
    began: float
    heartbeat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to train in a run folder, from `acquire` until `release`."""

    def __init__(
        self,
        run: RunFolder,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        expiry_seconds: float = EXPIRY_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run, self._file = run, run.lease
        self._heartbeat_seconds, self._expiry_seconds, self._sleep = heartbeat_seconds, expiry_seconds, sleep
        self._me = _this_process()
        self._ended = threading.Event()

    def acquire(self, on_lost: Callable[[str], None]) -> None:
        """Acquire it, or raise a TrainingError naming its holder; `on_lost` is called when it is taken over."""
        other = self._holder()
        if other is not None and self._is_alive(other):
            raise TrainingError(
                f"{self._run.url} is being trained already, by {other}",
                hint="stop that one first (Ctrl-C there), or choose another name",
            )
        _HELD_HERE.add(self._me.token)
        self._write()
        threading.Thread(target=self._renew, args=(on_lost,), name="raylm-lease", daemon=True).start()

    def release(self) -> None:
        """Give it back; nothing happens when it is another's by now."""
        self._ended.set()
        _HELD_HERE.discard(self._me.token)
        with suppress(StorageError):
            holder = self._holder()
            if holder is not None and holder.token == self._me.token:
                self._file.remove()

    def _renew(self, on_lost: Callable[[str], None]) -> None:
        while not self._ended.wait(self._heartbeat_seconds):
            try:
                holder = self._holder()
                if holder is not None and holder.token != self._me.token:
                    on_lost(str(holder))
                    return
                if not self._ended.is_set():
                    self._me = replace(self._me, heartbeat=self._me.heartbeat + 1)
                    self._write()
            except StorageError as error:
                log.warning("the lease of this run could not be renewed: %s", error)

    def _is_alive(self, other: Holder) -> bool:
        if other.host == self._me.host:
            if other.pid == self._me.pid:
                return other.token in _HELD_HERE
            return _began(other.pid) == other.began
        log.warning("%s trained this run: waiting %g s to see whether it still does", other, self._expiry_seconds)
        for _ in range(max(1, round(self._expiry_seconds))):
            self._sleep(1.0)
            now = self._holder()
            if now is None:
                return False
            if now != other:
                return True
        return False

    def _holder(self) -> Holder | None:
        try:
            return parse_json(Holder, self._file.read_bytes())
        except (NotFound, ValueError):
            return None  # none, or not one of raylm's

    def _write(self) -> None:
        self._file.write_text(json.dumps(asdict(self._me)))


def _this_process() -> Holder:
    return Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _began(os.getpid()) or 0.0)


def _began(pid: int) -> float | None:
    """When a process started: by the kernel's clock since the boot where there is one, else in seconds since 1970."""
    import psutil

    with suppress(OSError, ValueError, IndexError):
        # The name, in brackets, may hold blanks. The state is field 3 of the file, the start field 22.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else float(fields[18])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
