"""The coordinator behind a Ray actor on the driver's node."""

from __future__ import annotations

import threading
import time
from typing import Any

from raylm.config.job import Job
from raylm.run.folder import RunFolder
from raylm.runtime.ray_internals import draining_nodes, in_concurrency_group
from raylm.train.coordinator import Coordinator


class CoordinatorActor:
    """The coordinator on the driver's node, with a thread that watches for nodes about to be reclaimed."""

    def __init__(self, job: Job) -> None:
        from raylm.checkpoint.save import claim_attempt

        run = RunFolder.of(job)
        self._coordinator = Coordinator(
            run.path, job.workers, audit=job.train.audit, claim=lambda: claim_attempt(run.checkpoints)
        )
        threading.Thread(target=self._watch, name="raylm-drains", daemon=True).start()

    @in_concurrency_group("control")
    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    @in_concurrency_group("log")
    def record(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator, after those asked for before it."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    def _watch(self, period_seconds: float = 0.25) -> None:
        while True:
            time.sleep(period_seconds)
            nodes = draining_nodes()
            if nodes:
                self._coordinator.drained(nodes)
