"""Units run as Ray Data tasks: unit numbers come in, results leave as they are done.

A Ray is started on this machine, and stopped again, where none is running and no address is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from raylm.config.schema import Job
from raylm.errors import RaylmError
from raylm.prep.pack import UnitResult, prepare_unit
from raylm.prep.plan import Unit
from raylm.storage import Place

UnitRunner: TypeAlias = Callable[[Job, Place, Sequence[Unit]], Iterator[UnitResult]]

_MOST_BLOCKS = 10_000  # more units than this share Ray Data blocks
_OBJECT_STORE_BYTES = 256 * 2**20  # of a Ray started here: only unit numbers and counts travel


def run_here(job: Job, output: Place, units: Sequence[Unit]) -> Iterator[UnitResult]:
    """The units one after the other in this process, without Ray."""
    sources = {source.name: source for source in job.prepare.sources}
    for unit in units:
        yield prepare_unit(output, job.prepare, sources[unit.source], unit, job.object_store.reach())


def run_on_ray(job: Job, output: Place, units: Sequence[Unit]) -> Iterator[UnitResult]:
    """The units as Ray Data tasks of one CPU each, as many at once as prepare.workers or the cluster allow."""
    import ray
    import ray.data

    with _ray(job):
        # The plan may name a hundred thousand files: it is stored once, not sent with each task.
        work = ray.put((job, output, {unit.number: unit for unit in units}))
        items = [{"unit": unit.number} for unit in units]
        dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map(
            _task,
            fn_args=(work,),
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=job.prepare.workers),
        )
        dataset.context.enable_progress_bars = False
        with _lost_tasks():
            for row in dataset.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])
                yield UnitResult.from_json(row["result"])


def _task(row: dict[str, Any], work: Any) -> dict[str, Any]:
    """One unit; an error for people travels as a value, so that it arrives without Ray's wrapping."""
    import ray

    job, output, units = ray.get(work) if isinstance(work, ray.ObjectRef) else work
    try:
        (result,) = run_here(job, output, [units[row["unit"]]])
    except RaylmError as error:
        return {"result": "", "error": pickle.dumps(error)}
    return {"result": result.to_json(), "error": b""}


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
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that progress bars are off
    if ray.is_initialized():
        yield
        return
    if job.where.address:
        ray.init(address=job.where.address, log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()
