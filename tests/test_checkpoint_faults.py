"""Writers that are killed and servers that fail: what was committed loads, what was not is not there."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from raylm.checkpoint import save
from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.restore import CheckpointInfo, committed, fill, newest, open_checkpoint
from raylm.checkpoint.retention import apply_retention
from raylm.checkpoint.save import SaveRequest, begin_save, claim_fence, newest_fence
from raylm.errors import StorageError
from raylm.storage import StoragePath
from raylm.testing.checkpoints import run_state
from raylm.testing.servers import Faults, S3Server, failing, proxy

KILLS = 20
RANKS = 2
NUMEL = 150_001


def value(kind: str, step: int) -> torch.Tensor:
    return torch.arange(NUMEL, dtype=torch.float32) + {"master": 0.25, "exp_avg": 0.5, "exp_avg_sq": 0.75}[kind] + step


def save_step(folder: StoragePath, step: int, fence: int) -> bool:
    """Two ranks' save of a state that says which step it is of."""
    pending = []
    for rank in reversed(range(RANKS)):
        start, stop = NUMEL * rank // RANKS, NUMEL * (rank + 1) // RANKS
        held = [
            (Chunk("w", kind, start, stop - start, "float32", NUMEL, (NUMEL,)), value(kind, step)[start:stop])
            for kind in ("master", "exp_avg", "exp_avg_sq")
        ]
        pending.append(
            begin_save(
                SaveRequest(
                    folder,
                    run_state(step),
                    fence=fence,
                    rank=rank,
                    world_size=RANKS,
                    scalars={"optimizer_step": step},
                    commit_timeout_seconds=30,
                ),
                held,
            )
        )
    return [one.wait(120).committed for one in pending][-1]


def check_loads(found: CheckpointInfo) -> None:
    """Every element is the step's, read by one rank."""
    out = {kind: torch.zeros(NUMEL) for kind in ("master", "exp_avg", "exp_avg_sq")}
    whole = [(Chunk("w", kind, 0, NUMEL, "float32", NUMEL, (NUMEL,)), tensor) for kind, tensor in out.items()]
    fill(open_checkpoint(found), whole)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, value(kind, found.step)) for kind, tensor in out.items())
    assert found.scalars == {"optimizer_step": found.step}


def write_until_killed(folder: StoragePath, pipe: Connection) -> None:
    """What a run does over and over: resume, save, retire."""
    torch.set_num_threads(1)
    fence = claim_fence(folder)
    found = newest(folder)
    step = found.step if found else 0
    pipe.send(step)
    while True:
        step += 1
        save_step(folder, step, fence)
        apply_retention(folder, fence=fence, newest=2)


def kill_at_random_points(folder: StoragePath, longest_seconds: float) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "s3fs", "raylm.checkpoint.retention"])
    chance = random.Random(5)
    last, unfinished = 0, 0
    for kill in range(KILLS):
        ours, theirs = context.Pipe()
        writer = context.Process(target=write_until_killed, args=(folder, theirs), daemon=True)
        writer.start()
        theirs.close()
        assert ours.poll(120), "the writer did not start"
        assert ours.recv() == last
        time.sleep(chance.random() * longest_seconds)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        steps = committed(folder)
        for found in steps:
            check_loads(found)
        if last:
            assert steps, "what was committed is gone"
        if steps:
            assert steps[-1].step >= last
            last = steps[-1].step
        files = folder.glob("step-*/fence-*/*")
        unfinished += any(f"step-{last:09d}" < place.url.rsplit("/", 3)[1] for place in files)
        assert newest_fence(folder) == kill + 1
    assert last > 0, "nothing was ever committed"
    assert unfinished > 0, "no kill hit a save under way"
    fence = claim_fence(folder)
    save_step(folder, last + 1, fence)
    apply_retention(folder, fence=fence, newest=1)
    left = {place.url.rsplit("/", 3)[1] for place in folder.glob("step-*/fence-*/*")}
    assert left == {f"step-{last + 1:09d}"}, "leftovers were not removed"


def test_a_writer_killed_at_twenty_random_points_on_local_disk(tmp_path: Path) -> None:
    kill_at_random_points(StoragePath(str(tmp_path / "checkpoints")), 0.2)


def test_a_writer_killed_at_twenty_random_points_on_s3(moto: S3Server) -> None:
    kill_at_random_points(moto.bucket() / "run/checkpoints", 0.8)


@pytest.mark.long
def test_a_writer_killed_at_twenty_random_points_on_seaweedfs(seaweed: S3Server) -> None:
    kill_at_random_points(seaweed.bucket() / "run/checkpoints", 0.8)


def save_through_a_failing_server(server: S3Server, steps: int) -> None:
    faults = Faults(failing(0.12, seed=3, kinds=("error", "reset", "cut", "lose")))
    direct = server.bucket() / "checkpoints"
    with proxy(server, faults) as failing_server:
        folder = StoragePath(direct.url, failing_server.connection(retries=8))
        fence = claim_fence(folder)
        for step in range(1, steps + 1):
            assert save_step(folder, step, fence)
            apply_retention(folder, fence=fence, newest=2)
            found = newest(direct)
            assert found is not None
            assert found.step == step
            for place in (found, newest(folder)):
                assert place is not None
                check_loads(place)
    assert [one.step for one in committed(direct)] == list(range(max(1, steps - 1), steps + 1))
    assert sum(count for fate, count in faults.counts.items() if fate != "pass") >= steps


def test_a_server_that_fails_requests_is_asked_again(moto: S3Server) -> None:
    save_through_a_failing_server(moto, steps=3)


@pytest.mark.long
def test_a_seaweedfs_that_fails_requests_is_asked_again(seaweed: S3Server) -> None:
    save_through_a_failing_server(seaweed, steps=10)


def failing_only(fate: str, method: str, ending: str, times: int) -> Callable[[str, str], str]:
    """Fail the first requests of one kind."""
    left = [times]

    def choose(asked: str, path: str) -> str:
        if asked == method and path.split("?")[0].endswith(ending) and left[0] > 0:
            left[0] -= 1
            return fate
        return "pass"

    return choose


def test_a_lost_answer_to_the_commit_counts_as_committed(moto: S3Server) -> None:
    faults = Faults(failing_only("lose", "PUT", "manifest.json", 1))
    with proxy(moto, faults) as failing_server:
        folder = StoragePath(moto.bucket().url, failing_server.connection()) / "checkpoints"
        assert save_step(folder, 1, claim_fence(folder))
        check_loads(committed(folder)[0])
    assert faults.counts["lose"] == 1


@pytest.mark.parametrize("ending", ["safetensors", "json", "manifest.json"])
def test_a_server_that_takes_no_more_leaves_the_checkpoint_before(
    moto: S3Server, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "WRITE_TRIALS", 1)
    direct = moto.bucket() / "checkpoints"
    save_step(direct, 1, claim_fence(direct))
    with proxy(moto, Faults(failing_only("error", "PUT", ending, 10**9))) as failing_server:
        folder = StoragePath(direct.url, failing_server.connection(retries=1))
        with pytest.raises(StorageError):
            save_step(folder, 2, newest_fence(direct))
    assert [one.step for one in committed(direct)] == [1]
    check_loads(committed(direct)[0])
    assert save_step(direct, 3, claim_fence(direct))


def test_an_upload_in_several_requests_survives_their_failing(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.storage.remote._PART_BYTES", 5 << 20)
    fates = ["error", "lose", "pass", "reset"]

    def choose(method: str, path: str) -> str:
        return fates.pop() if "partNumber=" in path and fates else "pass"

    tensor = torch.arange(4_000_000, dtype=torch.float32)
    chunk = Chunk("w", "master", 0, tensor.numel(), "float32", tensor.numel(), (tensor.numel(),))
    with proxy(moto, Faults(choose)) as failing_server:
        folder = StoragePath(moto.bucket().url, failing_server.connection(retries=8)) / "checkpoints"
        pending = begin_save(SaveRequest(folder, run_state(1), fence=0, rank=0, world_size=1), [(chunk, tensor)])
        assert pending.wait(120).committed
        out = torch.zeros_like(tensor)
        fill(open_checkpoint(committed(folder)[0]), [(chunk, out)])
    assert not fates
    assert torch.equal(out, tensor)
