"""The coordinator behind a Ray actor on the driver's node."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from raylm.config.job import Job
from raylm.run.folder import RunFolder
from raylm.runtime.ray_internals import draining_nodes, in_concurrency_group
from raylm.train.coordination import Call, calls
from raylm.train.coordinator import Coordinator


class CoordinatorActor(Coordinator):
    """The coordinator on the driver's node, with a thread that watches for nodes about to be reclaimed."""

    def __init__(self, job: Job) -> None:
        from raylm.checkpoint.save import claim_fence

        run = RunFolder.of(job)
        super().__init__(run, job.workers, audit=job.train.audit, claim=lambda: claim_fence(run.checkpoints))
        threading.Thread(target=self._watch, name="raylm-drains", daemon=True).start()

    def _watch(self, period_seconds: float = 0.25) -> None:
        while True:
            time.sleep(period_seconds)
            nodes = draining_nodes()
            if nodes:
                self.drained(nodes)


def _served(call: Call) -> Callable[..., Any]:
    """A method of the coordinator in the group of threads that keeps, or need not keep, the order of calls."""
    method = getattr(Coordinator, call.name)

    @functools.wraps(method)
    def served(self: CoordinatorActor, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return in_concurrency_group("log" if call.in_order else "control")(served)


for _call in calls():
    setattr(CoordinatorActor, _call.name, _served(_call))
