"""A run in the background of this process: `start` begins it, `train` waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raylm.config.job import Job, required_job
from raylm.coordination.contract import Control, actor_client
from raylm.errors import Interrupted, TrainingError
from raylm.run.events import Event, Warned
from raylm.run.folder import RunFolder
from raylm.run.lease import Lease
from raylm.run.metrics import StepMetrics
from raylm.runtime.connect import ADDRESS, LocalRay, cluster_lost_in_words, connected, started_here
from raylm.runtime.shares import Claim, ClusterShare
from raylm.threads import error_of
from raylm.train.launch.actor import HubActor
from raylm.train.launch.followers import Followers
from raylm.train.launch.preflight import (
    TrainResult,
    last_loss,
    memory_advice,
    preflight,
    refuse_small_machine,
    worker_resources,
)
from raylm.train.launch.thin_workers import ThinWorkers
from raylm.train.sources import publish

log = logging.getLogger(__name__)

LISTEN_SECONDS = 0.2
LOST_SECONDS = 30.0  # a hub that does not answer for so long is lost
RESUMES = "the same command resumes"
_here: set[str] = set()  # folders of the runs of this process: a lease tells processes apart
_here_lock = threading.Lock()


def start(job: Job) -> Run:
    """Begin to train `job`, resuming whatever its run folder holds, and return the run, which goes on in a thread.

    What can be known before a worker is asked for is raised here: settings and data that do not fit, a run folder of
    another job or in use, storage or a cluster that do not answer. Several runs at once share the cluster; any thread
    may start one. Uses the Ray that is initialised, else `cluster.address` or RAY_ADDRESS, else starts one here, which
    ends with the last run of this process. A run does not outlive its process.
    """
    run = Run(required_job(job))
    done = preflight(job, run.folder.path)
    if done is not None:
        run._finished_already(done)
        return run
    lease = Lease(run.folder)
    with contextlib.ExitStack() as held:
        held.enter_context(_only_run(run.url))
        lease.acquire(on_lost=run._superseded)
        held.callback(lease.release)
        changed = publish(job, run.folder)
        # One CPU beside the workers', so that Ray Data's reads find a place.
        cpus = max(os.cpu_count() or 1, int(-(-job.workers.max * job.workers.cpus // 1)) + 1)
        log.info("%s", _what_starts(job))
        held.enter_context(connected(job.cluster.address, LocalRay(cpus)))
        if started_here():
            refuse_small_machine(job)
        share = _claimed(job, run.url)
        held.callback(share.release)
        run._begin(share, [] if changed is None else [changed], held.pop_all())
    return run


@contextlib.contextmanager
def _only_run(url: str) -> Iterator[None]:
    """No other run of this process trains in that folder meanwhile."""
    with _here_lock:
        if url in _here:
            raise TrainingError(
                f"{url} is being trained already, by this process", hint="wait for that run, or choose another name"
            )
        _here.add(url)
    try:
        yield
    finally:
        with _here_lock:
            _here.discard(url)


def _what_starts(job: Job) -> str:
    """What happens until the run's first record, which may take a minute where processes import their libraries."""
    address = job.cluster.address or os.environ.get(ADDRESS)
    return f"starting workers on the cluster at {address}" if address else "starting Ray and workers on this machine"


def _claimed(job: Job, url: str) -> ClusterShare:
    """This run's claim to the cluster's workers, known to all others from now on."""
    share = ClusterShare(Claim(url, time.time(), job.workers.min, job.workers.max, worker_resources(job)))
    share.announce()
    return share


def train(job: Job, *, on_record: Callable[[StepMetrics | Event], None] | None = None) -> TrainResult:
    """Train `job` to its last step and return its result; raises what `Run.result` does.

    on_record is called in this thread with every step and event. KeyboardInterrupt saves and stops the run, and
    stops it at once when it comes again.
    """
    run = start(job)
    records = run.events()
    try:
        while True:
            try:
                for record in records:
                    if on_record is not None:
                        on_record(record)
                return run.result()
            except KeyboardInterrupt:
                run.request_stop()
                log.warning("saving before stopping; send the signal again, or press Ctrl-C, to stop at once")
    finally:
        if not run.done:  # on_record raised
            run.request_stop(at_once=True)


class Run:
    """A run that was started in this process."""

    def __init__(self, job: Job) -> None:
        self.folder = RunFolder.of(job)
        self._job = job
        self._followers = Followers()
        self._lock = threading.Lock()
        self._coordinator: Control | None = None
        self._step = self._position = 0
        self._stop_requested = False
        self._cut: str | None = None  # why the run ends without a last checkpoint
        self._superseded_by: str | None = None
        self._result: TrainResult | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Run {self.url} at step {self.step}{', done' if self.done else ''}>"

    @property
    def url(self) -> str:
        """The run folder's path or URL."""
        return self.folder.url

    @property
    def step(self) -> int:
        """The last step known to be finished, or started from."""
        return self._step

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._followers.wait(0)

    def events(self) -> Iterator[StepMetrics | Event]:
        """Steps and events of this start as they happen, until the run ends; each call follows from the beginning.

        Of those that nobody has read yet the newest 4096 are kept.
        """
        return self._followers.follow()

    def request_stop(self, *, at_once: bool = False) -> None:
        """Save and stop; at once, without saving, when asked to, when asked again, or when no worker is training."""
        with self._lock:
            again, self._stop_requested = self._stop_requested, True
        if at_once or again:
            self._cut = self._cut or "stopped at once"
        elif self._coordinator is not None and not self.done and not self._hears_stop(self._coordinator):
            self._cut = self._cut or "stopped while no worker was training"

    def result(self, timeout: float | None = None) -> TrainResult:
        """Wait for the end and return the result; raises TimeoutError after `timeout` seconds.

        Raises Interrupted when the run was stopped, and another RaylmError when it failed.
        """
        if not self._followers.wait(timeout):
            raise TimeoutError(f"{self.url} has not ended after {timeout:g} s; it is at step {self.step}")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _hears_stop(self, coordinator: Control) -> bool:
        import ray

        try:
            return coordinator.request_stop()
        except ray.exceptions.RayError:  # the coordinator is lost, which ends the run by itself
            return False

    # -- in the thread of the run -----------------------------------------------------------------------------------

    def _finished_already(self, result: TrainResult) -> None:
        self._result, self._step = result, result.step
        self._followers.end()

    def _begin(self, share: ClusterShare, first: Sequence[Event], held: contextlib.ExitStack) -> None:
        main = threading.Thread(
            target=self._main, args=(share, first, held), name=f"raylm-run-{self._job.name}", daemon=True
        )
        main.start()

    def _main(self, share: ClusterShare, first: Sequence[Event], held: contextlib.ExitStack) -> None:
        def trained() -> None:
            with cluster_lost_in_words(f"start the cluster again where it is down; {RESUMES}"), held:
                self._result = self._trained(share, first)

        self._error = error_of(trained)  # `result` raises it where somebody waits
        self._followers.end()

    def _trained(self, share: ClusterShare, first: Sequence[Event]) -> TrainResult:
        import ray

        here = ray.get_runtime_context().get_node_id()
        actor_class: Any = ray.remote(
            num_cpus=0, concurrency_groups={"log": 1, "control": 8}, label_selector={"ray.io/node-id": here}
        )(HubActor)
        if (advice := memory_advice(self._job)) is not None:
            first = [*first, Warned(message=advice)]
        hub = actor_class.remote(self._job, share, worker_resources(self._job), first)
        coordinator = actor_client(hub)
        thin_workers = ThinWorkers(self._job.name)
        try:
            self._step = coordinator.status().step  # its storage errors surface here
            self._coordinator = coordinator
            if self._superseded_by is not None:
                coordinator.superseded(self._superseded_by)
            if self._stop_requested and self._cut is None and not self._hears_stop(coordinator):
                raise Interrupted("stopped before any worker was training", hint=RESUMES)
            self._listen_until_the_end(coordinator, thin_workers)
            return self._outcome(coordinator)
        finally:
            thin_workers.end(at_once=self._cut is not None)
            ray.kill(hub)  # its bodies end with it

    def _outcome(self, coordinator: Control) -> TrainResult:
        status = coordinator.status()
        if self._cut is None:
            coordinator.close()
            self._listen(coordinator)
        if status.error is not None:
            raise status.error
        if status.finished:
            return TrainResult(self.url, status.step, last_loss(self.folder.path))
        if self._cut is not None:
            raise Interrupted(self._cut, hint=RESUMES)
        raise Interrupted(f"stopped at step {status.step}, saved", hint=RESUMES)

    def _listen_until_the_end(self, coordinator: Control, thin_workers: ThinWorkers) -> None:
        import ray

        answered_at = time.monotonic()
        while self._cut is None:
            try:
                self._listen(coordinator)
                status = coordinator.status()
                if status.ended:
                    return
                thin_workers.follow(status.nodes)
                answered_at = time.monotonic()
            except ray.exceptions.ActorDiedError:
                raise  # its bodies end with it
            except ray.exceptions.RayError:
                if time.monotonic() - answered_at > LOST_SECONDS:
                    raise
            time.sleep(LISTEN_SECONDS)

    def _listen(self, coordinator: Control) -> None:
        self._position, records = coordinator.feed(self._position)
        if records:
            self._step = records[-1].step
            self._followers.add(records)

    def _superseded(self, by: str) -> None:
        """Another driver trains this run now: end, and write nothing more."""
        self._superseded_by = by
        if self._coordinator is not None:
            self._coordinator.superseded(by)
