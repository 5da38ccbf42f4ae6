"""Training without Ray: in this process, or as one rank of torchrun; to benchmark and to debug the worker alone."""

from __future__ import annotations

import os
import sys
from typing import Any

from raylm.config.job import Job
from raylm.coordination.contract import Coordination, Generation, Member, SilentCoordination
from raylm.coordination.coordinator import Coordinator
from raylm.run.folder import RunFolder
from raylm.runtime.ports import free_port
from raylm.train.sources import publish
from raylm.train.worker import work


def alone(job: Job) -> Coordinator | None:
    """Train without Ray: in this process, or as one rank of torchrun. Returns the coordinator on rank 0."""
    from raylm.checkpoint.save import claim_fence

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = RunFolder.of(job)
    coordinator: Coordinator | None = None
    number, address = 0, f"127.0.0.1:{free_port()}"
    if rank == 0:
        changed = publish(job, folder)
        coordinator = Coordinator(folder, audit=job.train.audit, claim=lambda: claim_fence(folder.checkpoints))
        if changed is not None:
            coordinator.record(changed)
        number = int(coordinator.begin(size))
    if size > 1:
        number, address = _meet_through_torchrun(rank, number)
    coordination: Coordination = coordinator or SilentCoordination()
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    try:
        work(job, Member(rank, size, Generation(number), address, local_rank=local_rank), coordination)
    finally:
        if coordinator is not None:
            coordinator.close()
    return coordinator


def _meet_through_torchrun(rank: int, generation: int) -> tuple[int, str]:
    """Hand rank 0's generation and a port of its own to every rank, through torchrun's store."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: Any = dist.TCPStore(host, port, is_master=rank == 0 and not served)  # type: ignore[attr-defined]
    if rank == 0:
        store.set("raylm/generation", str(generation))
        store.set("raylm/address", f"{host}:{free_port()}")
    return int(store.get("raylm/generation")), store.get("raylm/address").decode()


def main(arguments: list[str]) -> None:
    """`python -m raylm.train.without_ray JOB [key=value …]`, also under torchrun: train without Ray."""
    from raylm.config.load import load_job

    alone(load_job(arguments[0], arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
