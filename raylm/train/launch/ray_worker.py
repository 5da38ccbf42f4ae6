"""The function that Ray Train runs on each worker."""

from __future__ import annotations

import time
from typing import Any

from raylm.errors import TrainingError
from raylm.runtime.ports import free_port
from raylm.train.coordination import Member, actor_client
from raylm.train.worker import work


def ray_worker(config: dict[str, Any]) -> None:
    """Register with the coordinator, learn where the group meets, and work."""
    import ray
    import ray.train

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    coordination = actor_client(config["coordinator"])
    assignment = coordination.assignment()
    node = ray.get_runtime_context().get_node_id()
    address = None
    if rank == 0:
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    coordination.register(assignment.generation, rank, node, address)
    deadline = time.monotonic() + 60
    while address is None:
        address = coordination.address(assignment.generation)
        if address is None:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"rank 0 of attempt {assignment.attempt} did not say within 60 s where the group meets"
                )
            time.sleep(0.02)
    member = Member(rank, size, assignment, address, context.get_local_rank(), node)
    work(config["job"], member, coordination, tidy=False)
