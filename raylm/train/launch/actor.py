"""The hub behind a Ray actor on the driver's node."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylm.config.job import Job
from raylm.coordination.contract import Call, calls
from raylm.coordination.hub import Hub
from raylm.run.events import Event
from raylm.run.folder import RunFolder
from raylm.runtime.ray_internals import in_concurrency_group
from raylm.runtime.shares import ClusterShare
from raylm.train.launch.cluster import RayCluster


class HubActor(Hub):
    """The hub, whose bodies are actors that it owns. first: what the record begins with."""

    def __init__(self, job: Job, share: ClusterShare, per_worker: Mapping[str, float], first: Sequence[Event]) -> None:
        import ray

        from raylm.checkpoint.save import claim_fence

        run = RunFolder.of(job)
        me = ray.get_runtime_context().current_actor
        super().__init__(
            run,
            job.workers,
            RayCluster(job, me, share, per_worker),
            host=ray.util.get_node_ip_address(),
            audit=job.train.audit,
            claim=lambda: claim_fence(run.checkpoints),
        )
        for event in first:
            self.record(event)


def _served(call: Call) -> Callable[..., Any]:
    """A method of the hub in the group of threads that keeps, or need not keep, the order of calls."""
    method = getattr(Hub, call.name)

    @functools.wraps(method)
    def served(self: HubActor, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return in_concurrency_group("log" if call.in_order else "control")(served)


for _call in calls():
    setattr(HubActor, _call.name, _served(_call))
