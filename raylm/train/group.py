"""The process group: who is in it, formed and left as often as workers come and go within one living process.

Every collective that training makes is a method of `Group`, which raises `GroupBroken` when a peer is lost. The group
is torch's default group, and DeepSpeed adopts it; around its calls, `Group.watched` translates what they raise.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from raylm.errors import TrainingError

Backend = Literal["gloo", "nccl"]
_ABANDONED: list[Any] = []


class GroupBroken(TrainingError):
    """The group could not be formed or lost a member: this group is over, and the run may go on in another."""


@dataclass(frozen=True)
class Rendezvous:
    """Where and as whom a process meets the others. `address` is "host:port"; `generation` counts a run's groups.

    A peer that is silent for `timeout_seconds` counts as lost, now and in every later collective. Rank 0 serves the
    address unless `serve` says otherwise.
    """

    address: str
    rank: int
    size: int
    generation: int
    timeout_seconds: float
    backend: Backend = "gloo"
    local_rank: int = 0
    serve: bool | None = None


@dataclass(frozen=True)
class Group:
    """This process's membership in a group of workers. `generation` counts the groups that a run has had.

    members: torch's process group, named in every call, so that a thread that was left behind cannot meet the next one.
    """

    rank: int
    size: int
    generation: int
    device: str
    local_rank: int
    members: Any = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise GroupBroken for what torch and DeepSpeed raise inside when a peer is lost; other errors pass."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _of_communication(error):
                raise
            raise GroupBroken(f"rank {self.rank} lost a peer of generation {self.generation}: {error}") from error

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.all_reduce_sum([0.0])

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The element-wise sum of every rank's numbers, the same on all of them."""
        if self.size == 1:
            return [float(value) for value in values]
        numbers = torch.tensor(list(values), dtype=torch.float64)
        self.all_reduce(numbers)
        return [float(number) for number in numbers]

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor, on the group's device or on the CPU, by the sum of every rank's."""
        if self.size > 1:
            with self.watched():
                dist.all_reduce(tensor, group=self.members)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor, on the group's device or on the CPU, with that of one rank."""
        if self.size > 1:
            with self.watched():
                dist.broadcast(tensor, source, group=self.members)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape, in rank order, on all of them."""
        if self.size == 1:
            return [tensor]
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(tensors, tensor, group=self.members)
        return tensors

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on all of them; values travel pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.watched():
            dist.all_gather_object(values, value, group=self.members)
        return values

    def exchange(self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]) -> None:
        """Send CPU tensors to ranks and fill others from ranks, all at once; returns when all have arrived."""
        self.begin_exchange(sending, receiving)()

    def begin_exchange(
        self, sending: Sequence[tuple[int, Tensor]], receiving: Sequence[tuple[int, Tensor]]
    ) -> Callable[[], None]:
        """As exchange, but at once: the function returned waits, and until then the tensors are not to be touched."""
        with self.watched():
            started = [dist.isend(tensor, dst=rank, group=self.members) for rank, tensor in sending]
            started += [dist.irecv(tensor, src=rank, group=self.members) for rank, tensor in receiving]

        def wait() -> None:
            with self.watched():
                for work in started:
                    if work is not None:
                        work.wait()

        return wait


def form_group(meeting: Rendezvous) -> Group:
    """Meet the others and form the group; GroupBroken when somebody does not come in time.

    Keys carry the generation, so that a straggler of an older group, or a newcomer with an old address, meets nobody.
    """
    rank, size, local_rank, backend = meeting.rank, meeting.size, meeting.local_rank, meeting.backend
    host, _, port = meeting.address.rpartition(":")
    if not host or not port.isdigit():
        raise TrainingError(f"a group's address must be host:port, not {meeting.address!r}")
    _set_environment(host, port, rank, size, local_rank)
    device = _device(backend, local_rank)
    until = time.monotonic() + meeting.timeout_seconds
    while True:
        left = timedelta(seconds=max(1.0, until - time.monotonic()))
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host.strip("[]"),
                int(port),
                is_master=rank == 0 if meeting.serve is None else meeting.serve,
                timeout=left,
                wait_for_workers=False,
                multi_tenant=True,  # one process may serve generation after generation on one port
            )
            own = dist.PrefixStore(f"generation-{meeting.generation}", store)  # type: ignore[attr-defined]
            _join(own, rank, size, timedelta(seconds=meeting.timeout_seconds), backend)
            return Group(rank, size, meeting.generation, device, local_rank, dist.group.WORLD)
        except (RuntimeError, OSError) as error:  # torch's DistError and its kind are RuntimeErrors
            _drop_group()
            if isinstance(error, dist.DistNetworkError) and time.monotonic() < until:
                # Who meets at the old address may have found the old server, just before its owner left it.
                time.sleep(0.1)
                continue
            raise GroupBroken(
                f"rank {rank} could not form generation {meeting.generation} of {size} workers at {meeting.address} "
                f"within {meeting.timeout_seconds:g} s: {error}",
                hint="see that every worker started and that workers reach each other on this port",
            ) from error


def single(*, backend: Backend | None = None) -> Group:
    """A group of this process alone: no port is opened."""
    chosen: Backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    _set_environment("127.0.0.1", "0", 0, 1, 0)
    device = _device(chosen, 0)
    _join(dist.HashStore(), 0, 1, timedelta(minutes=10), chosen)  # type: ignore[attr-defined]
    return Group(0, 1, 0, device, 0, dist.group.WORLD)


def leave_group(group: Group) -> None:
    """Leave at once, whether or not the others still live. Destroy the engine first: it holds parts of the group."""
    if not dist.is_initialized():
        return
    if group.device != "cpu":
        # destroy_process_group waits for kernels that a dead peer will never finish; abort does not.
        dist.distributed_c10d._abort_process_group()
    _drop_group()


def abandon_group() -> bool:
    """Leave the group that this process is in, if it is: another thread may be stuck in it, and keeps what it holds."""
    if not dist.is_initialized():
        return False
    _ABANDONED.append(dist.group.WORLD)  # its end would wait for the thread
    if "nccl" in str(dist.get_backend_config()):
        dist.distributed_c10d._abort_process_group()  # which takes it out of torch's tables, too
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.distributed_c10d._world.group_count = 0
    return True


def serve_store(host: str) -> tuple[Any, str]:
    """A store that this process serves for as long as it lives, and its address: generation after generation meets."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)  # type: ignore[attr-defined]
    return store, f"{host}:{store.port}"


def _of_communication(error: RuntimeError) -> bool:
    # gloo's errors are bare RuntimeErrors, which begin with the path of its source file.
    return isinstance(error, dist.DistError) or "gloo/" in str(error) or "NCCL" in str(error)


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


def _set_environment(host: str, port: str, rank: int, size: int, local_rank: int) -> None:
    # DeepSpeed reads these even when it is given a group; without them it looks for MPI.
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank), MASTER_ADDR=host, MASTER_PORT=port
    )
