"""What a process group makes of errors below it, and the private names of torch's that it stands on."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed as dist

from raylm.errors import RaylmError
from raylm.train.group import Group, GroupBroken

GROUP = Group(rank=1, size=2, generation=7, device="cpu", local_rank=1)
ALONE = Group(rank=0, size=1, generation=7, device="cpu", local_rank=0)
CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1"


@pytest.mark.parametrize("error", [RuntimeError(CLOSED), dist.DistBackendError("NCCL error: unhandled system error")])
def test_a_lost_peer_is_one_error_that_names_rank_and_generation(error: RuntimeError) -> None:
    with pytest.raises(GroupBroken, match="rank 1 lost a peer of generation 7: ") as caught, GROUP.watched():
        raise error
    assert caught.value.__cause__ is error
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("no memory"), ValueError("x")])
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, GROUP.watched():
        raise error
    assert caught.value is error


def test_a_group_of_one_has_no_peer_to_lose() -> None:
    with pytest.raises(RuntimeError) as caught, ALONE.watched():
        raise RuntimeError(CLOSED)
    assert not isinstance(caught.value, RaylmError)


def test_a_group_of_one_needs_no_collective() -> None:
    row = torch.tensor([1, 2])
    assert ALONE.all_reduce_sum([1, 2.5]) == [1.0, 2.5]
    assert [tensor.tolist() for tensor in ALONE.all_gather(row)] == [[1, 2]]
    assert ALONE.all_gather_objects("mine") == ["mine"]
    ALONE.all_reduce(row)
    ALONE.barrier()
    assert row.tolist() == [1, 2]


def test_a_broken_group_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(GroupBroken("rank 1 lost a peer", hint="look at rank 0")))
    assert isinstance(error, GroupBroken)
    assert (error.message, error.hint) == ("rank 1 lost a peer", "look at rank 0")


def test_torch_still_counts_groups_and_aborts_them_under_these_names() -> None:
    """test_engine shows what the count is for; abort is for NCCL alone."""
    assert isinstance(dist.distributed_c10d._world.group_count, int)
    assert callable(dist.distributed_c10d._abort_process_group)
