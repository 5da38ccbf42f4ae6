"""How long until the survivors of a killed rank train in another group, with NCCL?

    python benchmarks/nccl_abort.py [--ranks 3] [--kills 8] [--quick] [--keep]

Several ranks on one GPU, which NCCL takes for several machines and connects by sockets. One rank is killed within a
collective; the others are told, as a hub tells them, leave the stuck thread behind, abort, and form a smaller group.
`regroup_seconds` is from the kill to the first collective of that group, `abort_seconds` the abort of NCCL's
communicators alone, and `left_behind` counts threads that had not come back five seconds after it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from raylm.train.nccl import without_flight_recorder

STUCK_SECONDS = 0.3  # as a body waits before it leaves a thread behind
THREAD_SECONDS = 5.0
ELEMENTS = 16 << 20


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--kills", type=int, default=8)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("skipped: there is no GPU")
        return
    rows = [_killed(options.ranks, victim % options.ranks) for victim in range(3 if options.quick else options.kills)]
    finish(
        "nccl-abort",
        {
            "regroup_seconds": round(median(row["regroup"] for row in rows), 2),
            "regroup_seconds_worst": round(max(row["regroup"] for row in rows), 2),
            "abort_seconds_worst": round(max(row["abort"] for row in rows), 2),
            "left_behind": sum(row["left"] for row in rows),
        },
        details={"ranks": options.ranks, "kills": len(rows), "torch": torch.__version__},
        table=table(
            ["killed rank", "kill to next collective", "abort", "group formed", "threads left behind"],
            [[row["victim"], row["regroup"], row["abort"], row["form"], row["left"]] for row in rows],
        ),
        keep=options.keep,
    )


def _killed(size: int, victim: int) -> dict[str, Any]:
    """One kill, and what the worst of the survivors said of it."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_rank, args=(rank, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    addresses = [pipe.recv() for pipe in pipes]
    for rank, pipe in enumerate(pipes):
        pipe.send((addresses[0], rank, size, 1))
    for pipe in pipes:
        assert pipe.recv() == "steps"
    time.sleep(random.uniform(1.0, 1.5))
    os.kill(processes[victim].pid, signal.SIGKILL)
    began = time.time()
    processes[victim].join()
    living = [rank for rank in range(size) if rank != victim]
    for number, rank in enumerate(living):
        pipes[rank].send((addresses[living[0]], number, len(living), 2))
    said = [pipes[rank].recv() if pipes[rank].poll(120) else None for rank in living]
    for process in processes:
        process.kill()
    found = [one for one in said if one is not None]
    assert len(found) == len(living), f"{len(living) - len(found)} survivors never came back"
    return {
        "victim": victim,
        "regroup": round(max(one["done"] for one in found) - began, 2),
        "abort": round(max(one["abort"] for one in found), 2),
        "form": round(max(one["form"] for one in found), 2),
        "left": sum(one["left"] for one in found),
    }


def _rank(rank: int, pipe: Connection) -> None:
    os.environ |= {"NCCL_HOSTID": f"machine-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    without_flight_recorder()
    from raylm.train.group import abandon_group, form_group, serve_store

    store, address = serve_store("127.0.0.1")
    pipe.send(address)
    group = form_group(_meeting(pipe.recv()))
    thread = threading.Thread(target=_steps, args=(group, pipe), daemon=True)
    thread.start()
    place = pipe.recv()
    thread.join(STUCK_SECONDS)
    at = time.time()
    abandon_group()
    aborted = time.time()
    after = form_group(_meeting(place))
    formed = time.time()
    _all_reduce(after)
    done = time.time()
    thread.join(THREAD_SECONDS)
    pipe.send({"abort": aborted - at, "form": formed - aborted, "done": done, "left": thread.is_alive()})
    time.sleep(60)
    del store


def _meeting(place: tuple[str, int, int, int]) -> Any:
    from raylm.train.group import Rendezvous

    address, rank, size, generation = place
    return Rendezvous(address, rank, size, generation, timeout_seconds=60.0, backend="nccl", serve=False)


def _all_reduce(group: Any) -> None:
    import torch

    numbers = torch.ones(ELEMENTS, device=group.device)
    group.all_reduce(numbers)
    assert float(numbers[0]) == group.size


def _steps(group: Any, pipe: Connection) -> None:
    """Collectives without end; what breaks them is the kill."""
    with contextlib.suppress(Exception):
        _all_reduce(group)
        pipe.send("steps")
        while True:
            _all_reduce(group)


if __name__ == "__main__":
    main()
