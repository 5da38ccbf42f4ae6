"""Whether a worker's step takes too long, and what its threads do meanwhile."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback

from raylm.errors import RaylmError
from raylm.run.events import Stalled
from raylm.train.context import RunContext, Tenure

log = logging.getLogger(__name__)


class StallWatch:
    """Watches one generation's progress: every step, and the start, may take so many seconds before it is told of."""

    def __init__(self, context: RunContext, tenure: Tenure, node: str) -> None:
        self._context, self._tenure, self._node = context, tenure, node
        self._patience = context.job.workers.stall_seconds
        self._step, self._since, self._told = -1, time.monotonic(), False

    def look(self) -> None:
        """Write down what every thread does when no step was finished for too long; once a step."""
        now, step = time.monotonic(), self._context.progress.step
        if step != self._step:
            self._step, self._since, self._told = step, now, False
        elif self._patience is not None and now - self._since > self._patience and not self._told:
            self._told = True
            self._tell(step, now - self._since)

    def _tell(self, step: int, seconds: float) -> None:
        member, context = self._tenure.member, self._context
        file = context.folder.stacks(member.generation, member.rank, step)
        try:
            file.write_bytes(stacks().encode())
        except RaylmError as error:
            log.warning("what the stalled worker does cannot be written: %s", error)
            return
        context.coordination.report_event(
            member.generation,
            Stalled(step=step, rank=member.rank, node=self._node, seconds=round(seconds, 1), stacks=file.url),
        )


def stacks() -> str:
    """Where every Python thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        found.append(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(found)
