"""The coordinator behind a Ray actor on the driver's node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from raylm.config.job import Job
from raylm.run.folder import RunFolder
from raylm.train.coordinator import Coordinator


def _in_group(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """ray.method(concurrency_group=…) without importing Ray when this module is."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__ray_concurrency_group__ = name  # type: ignore[attr-defined]
        return method

    return mark


class CoordinatorActor:
    """The coordinator on the driver's node, with a thread that watches for nodes about to be reclaimed."""

    def __init__(self, job: Job) -> None:
        from raylm.checkpoint.save import claim_attempt

        run = RunFolder.of(job)
        self._coordinator = Coordinator(
            run.path, job.workers, audit=job.train.audit, claim=lambda: claim_attempt(run.checkpoints)
        )
        threading.Thread(target=self._watch, name="raylm-drains", daemon=True).start()

    @_in_group("control")
    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    @_in_group("log")
    def record(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator, after those asked for before it."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    def _watch(self, period_seconds: float = 0.25) -> None:
        from raylm.train.launch.policies import draining_nodes

        while True:
            time.sleep(period_seconds)
            nodes = draining_nodes()
            if nodes:
                self._coordinator.drained(nodes)
