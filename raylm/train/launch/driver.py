"""A job in, a trained run out: takes the run, starts the coordinator, and lets Ray Train run the workers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from raylm.config.job import Job
from raylm.errors import Interrupted, TrainingError
from raylm.run.events import Event
from raylm.run.folder import RunFolder
from raylm.run.lease import Lease
from raylm.runtime.connect import LocalRay, connected
from raylm.storage import StoragePath
from raylm.train.coordination import Control, Reason, actor_client
from raylm.train.launch.actor import CoordinatorActor
from raylm.train.launch.preflight import TrainResult, last_loss, preflight
from raylm.train.launch.ray_train import trainer_of

log = logging.getLogger(__name__)
Listener = Callable[[Any], None]


def train(job: Job, *, on_step: Listener | None = None, on_event: Listener | None = None) -> TrainResult:
    """Train `job` to its last step, resuming whatever its run folder holds; raises Interrupted when stopped.

    Uses the Ray that is initialised, else `cluster.address` or RAY_ADDRESS, else starts a local one.
    on_step and on_event are called in this thread with each step and event.
    """
    from raylm.train.sources import publish

    run = StoragePath(job.run_url, job.object_store.connection())
    done = preflight(job, run)
    if done is not None:
        return done
    lease = Lease(run)
    driver = _Driver(job, run, on_step, on_event)
    lease.take(lost=driver.superseded)
    try:
        publish(job, RunFolder(run))
        return _driven(job, driver)
    finally:
        lease.release()


def _driven(job: Job, driver: _Driver) -> TrainResult:
    # One CPU beside the workers', so that Ray Data's reads find a place.
    cpus = max(os.cpu_count() or 1, int(-(-job.workers.max * job.workers.cpus // 1)) + 1)
    with connected(job.cluster.address, LocalRay(cpus)):
        return driver.drive()


class _Driver:
    """One `fit()` in a thread, the terminal's listeners in the caller's."""

    def __init__(self, job: Job, run: StoragePath, on_step: Listener | None, on_event: Listener | None) -> None:
        self._job, self._run = job, run
        self._listeners = {"step": on_step, "event": on_event}
        self._position = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._coordinator: Control | None = None
        self._superseded_by: str | None = None

    def drive(self) -> TrainResult:
        import ray

        here = ray.get_runtime_context().get_node_id()
        actor_class: Any = ray.remote(
            num_cpus=0, concurrency_groups={"log": 1, "control": 8}, label_selector={"ray.io/node-id": here}
        )(CoordinatorActor)
        actor = actor_class.remote(self._job)
        coordinator = self._coordinator = actor_client(actor)
        coordinator.status()  # its storage errors surface here, before workers are asked for
        if self._superseded_by is not None:
            coordinator.superseded(self._superseded_by)
        fit = threading.Thread(target=self._fit, args=(actor,), name="raylm-fit", daemon=True)
        fit.start()
        stopping = False
        # Not join: a join that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        while not self._ended.is_set():
            try:
                self._ended.wait(0.2)
                self._listen(coordinator)
            except KeyboardInterrupt:
                if stopping:
                    raise Interrupted("stopped at once", hint="the same command resumes") from None
                stopping = True
                if not coordinator.request_stop(Reason.STOP):
                    coordinator.close()
                    raise Interrupted("stopped while no worker was training", hint="the same command resumes") from None
                log.warning("saving before stopping; press Ctrl-C again to stop at once")
        self._listen(coordinator)
        return self._result(coordinator, stopping)

    def superseded(self, by: str) -> None:
        """Another driver trains this run now: end, and write nothing more."""
        self._superseded_by = by
        if self._coordinator is not None:
            self._coordinator.superseded(by)

    def _result(self, coordinator: Control, stopping: bool) -> TrainResult:
        status = coordinator.status()
        coordinator.close()
        self._listen(coordinator)
        if status.error is not None:
            raise status.error
        if not status.finished:
            if stopping and self._error is None:
                raise Interrupted(f"stopped at step {status.step}, saved", hint="the same command resumes")
            raise TrainingError(
                f"training ended at step {status.step} without finishing: {self._error}",
                hint="the same command resumes from the newest checkpoint",
            ) from self._error
        return TrainResult(self._job.run_url, status.step, last_loss(self._run))

    def _listen(self, coordinator: Control) -> None:
        self._position, news = coordinator.feed(self._position)
        for record in news:
            listener = self._listeners["event" if isinstance(record, Event) else "step"]
            if listener is not None:
                listener(record)

    def _fit(self, actor: Any) -> None:
        try:
            trainer_of(self._job, actor).fit()
        except BaseException as error:
            self._error = error  # a thread's edge: the caller's thread tells it
        finally:
            self._ended.set()
