"""Work on many items, such as the units of a preparation, as Ray tasks: results leave as they are done.

A Ray is started on this machine, and stopped again, where no address is given; a Ray job's own cluster is joined.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from raylm.config.job import Job
from raylm.errors import ConfigError, RaylmError
from raylm.prep.operators.barrier import Item, Runner, Task
from raylm.prep.operators.resources import Resources
from raylm.prep.passes import passes_of, resources_of
from raylm.runtime.connect import LocalRay, connected

Session: TypeAlias = Callable[[Job], contextlib.AbstractContextManager[Runner]]

_RETRIES = 30  # of a task whose node or process went; more than a cluster of spot nodes takes from one unit
_QUEUED = 2  # tasks submitted for each that the cluster can run at once: the next begins without asking here
_OBJECT_STORE_BYTES = 256 * 2**20  # of a Ray started here: only units and counts travel


@contextlib.contextmanager
def here(job: Job) -> Iterator[Runner]:
    """Tasks one after the other in this process, without Ray."""

    def run(task: Task[Item], items: Sequence[Item], resources: Resources | None = None) -> Iterator[str]:
        return map(task, items)

    yield run


@contextlib.contextmanager
def on_ray(job: Job) -> Iterator[Runner]:
    """Ray tasks, as many at once as prepare.workers or the cluster allow; one takes one CPU unless it asks for more."""
    with contextlib.ExitStack() as stack:
        started = False

        def run(task: Task[Item], items: Sequence[Item], resources: Resources | None = None) -> Iterator[str]:
            nonlocal started
            if not started:  # a finished pass needs no Ray
                local = LocalRay(os.cpu_count() or 1, object_store_bytes=_OBJECT_STORE_BYTES)
                stack.enter_context(connected(job.cluster.address, local))
                for one in passes_of(job.prepare.steps):  # before any unit: the last pass may be hours away
                    _refuse_unmet(resources_of(one))
                started = True
            yield from _results(job, task, items, resources or Resources())

        yield run


def _results(job: Job, task: Task[Item], items: Sequence[Item], resources: Resources) -> Iterator[str]:
    """Results in the order in which they are done; tasks that are still at work when nobody wants more are canceled."""
    import ray

    _refuse_unmet(resources)
    # Stored once, not sent with each item. The job comes first: it brings the plugins that the task may need.
    stored = ray.put((job, ray.cloudpickle.dumps(task)))
    remote = ray.remote(_run).options(
        max_retries=_RETRIES, scheduling_strategy="SPREAD", name="raylm-prepare", **resources.ray_options()
    )
    left = iter(items)
    running: list[Any] = []
    try:
        with _lost_tasks():
            while True:
                most = job.prepare.workers or _QUEUED * max(1, _at_once(resources, ray.nodes()))
                while len(running) < most and (item := next(left, None)) is not None:
                    running.append(remote.remote(stored, item))
                if not running:
                    return
                done, running = ray.wait(running, num_returns=1)
                for result, error in ray.get(done):
                    if error:
                        raise pickle.loads(error)
                    yield result
    finally:
        for one in running:
            ray.cancel(one)


def _run(stored: tuple[Job, bytes], item: Any) -> tuple[str, bytes]:
    """One item; an error for people travels as a value, so that it arrives without Ray's wrapping."""
    _, task = stored
    try:
        return pickle.loads(task)(item), b""
    except RaylmError as error:
        return "", pickle.dumps(error)


def _at_once(resources: Resources, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many such tasks these nodes can run at the same time."""
    wanted = resources.amounts()
    return sum(
        min((int(node["Resources"].get(name, 0) // amount) for name, amount in wanted.items()), default=1)
        for node in nodes
        if node["Alive"]
    )


def _refuse_unmet(resources: Resources) -> None:
    """Raise a ConfigError when no node can ever run such a task: Ray would wait for one without end."""
    import ray

    nodes = ray.nodes()
    if _at_once(resources, nodes):
        return
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in resources.amounts().items())
    there = [
        ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in resources.amounts())
        for node in nodes
        if node["Alive"]
    ]
    raise ConfigError(
        f"a task of this preparation needs {wanted}, and no node has that: {'; '.join(there) or 'there is none'}",
        hint="start a node that has it before `raylm prepare`, or let the step ask for less",
    )


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
