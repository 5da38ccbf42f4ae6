"""Work on units runs as Ray Data tasks: numbers come in, results leave as they are done.

A Ray is started on this machine, and stopped again, where no address is given; a Ray job's own cluster is joined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from raylm.config.job import Job
from raylm.errors import RaylmError
from raylm.prep.operators.barrier import Runner, Task
from raylm.runtime.connect import LocalRay, connected

Session: TypeAlias = Callable[[Job], contextlib.AbstractContextManager[Runner]]

_MOST_BLOCKS = 10_000  # more units than this share Ray Data blocks
_OBJECT_STORE_BYTES = 256 * 2**20  # of a Ray started here: only unit numbers and counts travel


@contextlib.contextmanager
def here(job: Job) -> Iterator[Runner]:
    """Tasks one after the other in this process, without Ray."""
    yield lambda task, numbers: map(task, numbers)


@contextlib.contextmanager
def on_ray(job: Job) -> Iterator[Runner]:
    """Ray Data tasks of one CPU each, as many at once as prepare.workers or the cluster allow."""
    with contextlib.ExitStack() as stack:
        started = False

        def run(task: Task, numbers: Sequence[int]) -> Iterator[str]:
            nonlocal started
            if not started:  # a finished stage needs no Ray
                stack.enter_context(_ray(job))
                started = True
            yield from _mapped(job, task, numbers)

        yield run


def _mapped(job: Job, task: Task, numbers: Sequence[int]) -> Iterator[str]:
    import ray
    import ray.data

    # The task may hold a plan that names a hundred thousand files: it is stored once, not sent with each number.
    stored = ray.put(task)
    items = [{"number": number} for number in numbers]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map(
        _task,
        fn_args=(stored,),
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=job.prepare.workers),
    )
    dataset.context.enable_progress_bars = False
    with _lost_tasks():
        for row in dataset.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield row["result"]


def _task(row: dict[str, Any], stored: Any) -> dict[str, Any]:
    """One number; an error for people travels as a value, so that it arrives without Ray's wrapping."""
    import ray

    task: Task = ray.get(stored) if isinstance(stored, ray.ObjectRef) else stored
    try:
        return {"result": task(row["number"]), "error": b""}
    except RaylmError as error:
        return {"result": "", "error": pickle.dumps(error)}


@contextlib.contextmanager
def _lost_tasks() -> Iterator[None]:
    """Say in words that nodes or worker processes went for good; a task's own exception passes as it is."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RaylmError(
            f"preparation stopped: {type(error).__name__}: {error}",
            hint="run it again: finished units stay; if memory ran out, lower prepare.unit_bytes or prepare.workers",
        ) from error


@contextlib.contextmanager
def _ray(job: Job) -> Iterator[None]:
    local = LocalRay(os.cpu_count() or 1, object_store_bytes=_OBJECT_STORE_BYTES)
    with connected(job.cluster.address, local):
        import ray.data  # noqa: F401  # first: importing it sets the levels of its loggers

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that progress bars are off
        yield
