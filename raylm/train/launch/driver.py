"""A job in, a trained run out: takes the run, starts the coordinator, and lets Ray Train run the workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylm.config.job import Job
from raylm.errors import Interrupted, TrainingError
from raylm.run.folder import RunFolder
from raylm.run.lease import Lease
from raylm.run.log import Line
from raylm.storage import StoragePath
from raylm.train.coordinator import STOP
from raylm.train.launch.actor import CoordinatorActor
from raylm.train.launch.preflight import TrainResult, last_loss, preflight
from raylm.train.launch.ray_train import trainer_of

log = logging.getLogger(__name__)
Listener = Callable[[Line], None]

# For clusters that raylm starts itself: a dead node is declared after about two seconds instead of ten or more.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


def train(job: Job, *, on_step: Listener | None = None, on_event: Listener | None = None) -> TrainResult:
    """Train `job` to its last step, resuming whatever its run folder holds; raises Interrupted when stopped.

    Uses the Ray that is initialised, else `cluster.address` or RAY_ADDRESS, else starts a local one.
    on_step and on_event are called in this thread with each metrics and event line.
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
    import ray

    owned = not ray.is_initialized()
    if owned:
        _start_ray(job)
        # Ray takes SIGTERM for itself; a polite kill should save and stop as Ctrl-C does.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return driver.drive()
    finally:
        if owned:
            ray.shutdown()


def _start_ray(job: Job) -> None:
    address = job.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_deaf(address)
    if address and (Path.home() / ".ray" / "auth_token").exists():
        # Ray sends the user's token only when told to, and is told once, when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **quiet)
            return
        # One CPU beside the workers', so that Ray Data's reads find a place.
        cpus = max(os.cpu_count() or 1, int(-(-job.workers.max * job.workers.cpus // 1)) + 1)
        ray.init(num_cpus=cpus, include_dashboard=False, _system_config=HEALTH_CHECKS, **quiet)
    except ConnectionError as error:
        raise TrainingError(
            f"no Ray cluster answers at {address or 'this machine'}: {str(error).splitlines()[0]}",
            hint="check cluster.address, or leave it out to train on this machine; a cluster that asks for a token "
            "(cluster/local.py starts such) answers only with RAY_AUTH_MODE=token in the environment",
        ) from error


def _refuse_deaf(address: str, patience_seconds: float = 5.0) -> None:
    """Ray itself goes on trying for many minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, and whatever else Ray resolves by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), patience_seconds).close()
    except OSError as error:
        raise TrainingError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            hint="check cluster.address, or leave it out to train on this machine",
        ) from error


class _Driver:
    """One `fit()` in a thread, the terminal's listeners in the caller's."""

    def __init__(self, job: Job, run: StoragePath, on_step: Listener | None, on_event: Listener | None) -> None:
        self._job, self._run = job, run
        self._listeners = {"step": on_step, "event": on_event}
        self._position = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._actor: Any = None
        self._superseded_by: str | None = None

    def drive(self) -> TrainResult:
        import ray

        here = ray.get_runtime_context().get_node_id()
        actor_class: Any = ray.remote(
            num_cpus=0, concurrency_groups={"log": 1, "control": 8}, label_selector={"ray.io/node-id": here}
        )(CoordinatorActor)
        self._actor = actor_class.remote(self._job)
        self._ask("attempt")  # its storage errors surface here, before workers are asked for
        if self._superseded_by is not None:
            self._ask("superseded", self._superseded_by)
        fit = threading.Thread(target=self._fit, name="raylm-fit", daemon=True)
        fit.start()
        stopping = False
        # Not join: a join that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        while not self._ended.is_set():
            try:
                self._ended.wait(0.2)
                self._listen()
            except KeyboardInterrupt:
                if stopping:
                    raise Interrupted("stopped at once", hint="the same command resumes") from None
                stopping = True
                if not self._ask("request_stop", STOP):
                    self._ask("close")
                    raise Interrupted("stopped while no worker was training", hint="the same command resumes") from None
                log.warning("saving before stopping; press Ctrl-C again to stop at once")
        self._listen()
        return self._result(stopping)

    def superseded(self, by: str) -> None:
        """Another driver trains this run now: end, and write nothing more."""
        self._superseded_by = by
        if self._actor is not None:
            self._ask("superseded", by)

    def _result(self, stopping: bool) -> TrainResult:
        fatal, finished, step = self._ask("fatal"), self._ask("finished"), self._ask("step")
        self._ask("close")
        self._listen()
        if fatal is not None:
            raise fatal
        if not finished:
            if stopping and self._error is None:
                raise Interrupted(f"stopped at step {step}, saved", hint="the same command resumes")
            raise TrainingError(
                f"training ended at step {step} without finishing: {self._error}",
                hint="the same command resumes from the newest checkpoint",
            ) from self._error
        return TrainResult(self._job.run_url, step, last_loss(self._run))

    def _ask(self, name: str, *args: Any) -> Any:
        from raylm.train.context import ActorDesk

        return ActorDesk(self._actor).ask(name, *args)

    def _listen(self) -> None:
        self._position, news = self._ask("feed", self._position)
        for kind, line in news:
            listener = self._listeners[kind]
            if listener is not None:
                listener(line)

    def _fit(self) -> None:
        try:
            trainer_of(self._job, self._actor).fit()
        except BaseException as error:
            self._error = error  # a thread's edge: the caller's thread tells it
        finally:
            self._ended.set()
