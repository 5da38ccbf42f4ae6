"""The process group: who is in it, formed and left as often as workers come and go within one living process.

Comes in: an address at which the workers meet, a rank, a size and a generation. Leaves: a `Group`. Every collective
that training makes goes through torch's default group, which is this one; DeepSpeed adopts it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from raylm.errors import TrainingError

Backend = Literal["gloo", "nccl"]


@dataclass(frozen=True)
class Group:
    """This process's place among the workers. `generation` counts the groups that a run has had."""

    rank: int
    size: int
    generation: int
    device: str
    local_rank: int


def form_group(
    *,
    address: str,
    rank: int,
    size: int,
    generation: int,
    timeout_seconds: float,
    backend: Backend = "gloo",
    local_rank: int = 0,
    serve: bool | None = None,
) -> Group:
    """Meet `size - 1` others at "host:port" and form the group; a peer silent for the timeout counts as lost.

    Rank 0 serves the meeting point unless `serve` says otherwise. Keys carry the generation, so that a straggler of
    an older group, or a newcomer with an old invitation, meets nobody.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TrainingError(f"a group's address must be host:port, not {address!r}")
    _tell_environment(host, port, rank, size, local_rank)
    device = _device(backend, local_rank)
    until = time.monotonic() + timeout_seconds
    while True:
        left = timedelta(seconds=max(1.0, until - time.monotonic()))
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host.strip("[]"),
                int(port),
                is_master=rank == 0 if serve is None else serve,
                timeout=left,
                wait_for_workers=False,
                multi_tenant=True,  # one process may serve generation after generation on one port
            )
            meeting = dist.PrefixStore(f"generation-{generation}", store)  # type: ignore[attr-defined]
            _join(meeting, rank, size, timedelta(seconds=timeout_seconds), backend)
            return Group(rank, size, generation, device, local_rank)
        except (RuntimeError, OSError) as error:  # torch's DistError and its kind are RuntimeErrors
            _drop_group()
            if isinstance(error, dist.DistNetworkError) and time.monotonic() < until:
                # Who meets at the old address may have found the old server, just before its owner left it.
                time.sleep(0.1)
                continue
            raise TrainingError(
                f"rank {rank} could not form generation {generation} of {size} workers at {address} "
                f"within {timeout_seconds:g} s: {error}",
                hint="see that every worker started and that workers reach each other on this port",
            ) from error


def single(*, backend: Backend | None = None) -> Group:
    """A group of this process alone: no port is opened."""
    chosen: Backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    _tell_environment("127.0.0.1", "0", 0, 1, 0)
    device = _device(chosen, 0)
    _join(dist.HashStore(), 0, 1, timedelta(minutes=10), chosen)  # type: ignore[attr-defined]
    return Group(0, 1, 0, device, 0)


def leave_group(group: Group) -> None:
    """Leave at once, whether or not the others still live. Destroy the engine first: it holds parts of the group."""
    if not dist.is_initialized():
        return
    if group.device != "cpu":
        # destroy_process_group waits for kernels that a dead peer will never finish; abort does not.
        dist.distributed_c10d._abort_process_group()
    _drop_group()


def all_reduce_sum(group: Group, values: Sequence[float]) -> list[float]:
    """The element-wise sum of every rank's numbers, the same on all of them."""
    if group.size == 1:
        return [float(value) for value in values]
    numbers = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(numbers)
    return [float(number) for number in numbers]


def _join(store: Any, rank: int, size: int, patience: timedelta, backend: Backend) -> None:
    # Numbers that decide things travel by gloo from the CPU, so that no kernel has to be waited for.
    backends = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
    dist.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=patience)
    if size > 1:
        dist.all_reduce(torch.zeros(1))  # whoever returns from here knows that everyone came


def _drop_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    # A group that failed to form was counted, and names are made of the count: with another count than a newcomer's
    # this process would wait for it under another name.
    dist.distributed_c10d._world.group_count = 0
    # Sockets close when the last reference goes; until then a peer only notices at its own timeout.
    gc.collect()


def _device(backend: Backend, local_rank: int) -> str:
    if backend == "gloo":
        return "cpu"
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def _tell_environment(host: str, port: str, rank: int, size: int, local_rank: int) -> None:
    # DeepSpeed reads these even when it is given a group; without them it looks for MPI.
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank), MASTER_ADDR=host, MASTER_PORT=port
    )
