"""A job in, a trained run out: the driver. Checks everything that can be checked, then lets Ray Train run workers.

The only reader of cluster state outside this module and `policies` is the coordinator's actor, defined here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.config.load import parse_job, same_run
from raylm.config.schema import Job
from raylm.errors import ConfigError, Interrupted, TrainingError
from raylm.run.folder import RunFolder
from raylm.run.lease import Lease
from raylm.run.log import Line
from raylm.shards import Manifest
from raylm.storage import StoragePath
from raylm.train.coordinator import STOP, Coordinator

log = logging.getLogger(__name__)
Listener = Callable[[Line], None]

# Ray Train reads these from the driver's environment. Polls every quarter second (default 2) find a dead worker
# sooner; a worker that answers nothing for 30 s (default 600) is lost; its own preemption watcher is off because
# the coordinator watches drains itself, and saves before it lets go.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
# For clusters that raylm starts itself: a dead node is declared after about two seconds instead of ten or more.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says of itself."""

    run_url: str
    step: int
    loss: float | None
    already_finished: bool = False


def train(job: Job, *, on_step: Listener | None = None, on_event: Listener | None = None) -> TrainResult:
    """Train `job` to its last step, resuming whatever its run folder holds; raises Interrupted when stopped.

    Uses the Ray that is initialised, else `cluster.address` or RAY_ADDRESS, else starts a local one.
    on_step and on_event are called in this thread with each metrics and event line.
    """
    from raylm.train.sources import publish

    job = anchored(job)
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


def anchored(job: Job) -> Job:
    """The job with local paths made absolute: workers run in other folders than the driver."""

    def place(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    data = job.data.model_copy(
        update={
            "path": place(job.data.path),
            "sources": [s.model_copy(update={"path": place(s.path)}) for s in job.data.mixture],
        }
    )
    config = job.model.config
    model = job.model.model_copy(
        update={"path": place(job.model.path), "config": place(config) if isinstance(config, str) else config}
    )
    prepare = job.prepare.model_copy(update={"output": place(job.prepare.output)})
    return job.model_copy(update={"storage": place(job.storage), "data": data, "model": model, "prepare": prepare})


def preflight(job: Job, run: StoragePath) -> TrainResult | None:
    """Refuse what cannot work before anything is spent; a run that is finished already gives its result."""
    from raylm.checkpoint.restore import newest
    from raylm.train.saving import check_meta
    from raylm.train.sources import data_fingerprint, open_datasets

    sources = open_datasets(job)
    lengths = {source.manifest.sequence_length for source in sources}
    tokenizers = {source.manifest.tokenizer for source in sources}
    if len(lengths) > 1 or len(tokenizers) > 1:
        raise ConfigError(
            f"data sources differ in {'sequence length' if len(lengths) > 1 else 'tokenizer'}: "
            f"{sorted(lengths if len(lengths) > 1 else tokenizers)}",
            hint="prepare all sources with the same prepare.sequence_length and tokenizer",
        )
    run.check_writable(needed_bytes=_state_bytes(job, sources[0].manifest))
    found = newest(RunFolder(run).checkpoints)
    refuse_other_job(job, run)
    if found is None:
        return None
    check_meta(found.meta, job, data_fingerprint(sources), found.place.url)
    if found.step < job.train.steps:
        return None
    return TrainResult(job.run_url, found.step, _last_loss(run), already_finished=True)


def _state_bytes(job: Job, manifest: Manifest) -> int:
    """Bytes of one checkpoint: 12 a parameter (fp32 master and two moments)."""
    from raylm.model.budget import shape_of

    return 12 * shape_of(job.model, manifest.vocab_size, manifest.sequence_length).parameters


def refuse_other_job(job: Job, run: StoragePath) -> None:
    """Raise a ConfigError when the run folder holds a run that these settings would not go on with."""
    folder = RunFolder(run)
    if not folder.has_trained() or not folder.settings.exists():
        return
    try:
        old = parse_job(folder.settings.read_text(), origin=folder.settings.url)
    except ConfigError as error:
        raise ConfigError(
            f"{run.url} holds a run that this version cannot read: {error.message}",
            hint="use another name, or move that folder away",
        ) from error
    differing = same_run(old, job)
    if differing:
        raise ConfigError(
            f"{run.url} holds a run of another job: {'; '.join(differing)}",
            hint="set these back to resume that run, or choose another name",
        )


def _last_loss(run: StoragePath) -> float | None:
    from raylm.run.log import read_lines

    lines = read_lines(RunFolder(run).metrics)
    return float(lines[-1]["loss"]) if lines else None


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
        return TrainResult(self._job.run_url, step, _last_loss(self._run))

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
            _trainer(self._job, self._actor).fit()
        except BaseException as error:
            self._error = error  # a thread's edge: the caller's thread tells it
        finally:
            self._ended.set()


def _trainer(job: Job, actor: Any) -> Any:
    """Ray Train's trainer with raylm's own policies in place of its elastic ones."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend, BackendConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from raylm.train.launch.policies import AskCoordinator, LiveNodes
    from raylm.train.worker import ray_worker

    os.environ.update({key: os.environ.get(key, value) for key, value in RAY_TRAIN_SETTINGS.items()})

    class OwnGroup(Backend):  # type: ignore[misc]
        """The worker forms its own process group, so that it can leave and re-form it."""

        share_cuda_visible_devices = True

    class OwnGroupConfig(BackendConfig):  # type: ignore[misc]
        backend_cls = OwnGroup

    class ElasticTrainer(DataParallelTrainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
            kwargs["scaling_policy"] = LiveNodes(self.scaling_config, actor, job.workers.grow_check_seconds)
            kwargs["failure_policy"] = AskCoordinator(self.run_config.failure_config, actor)
            return super()._initialize_and_run_controller(**kwargs)

        def _create_default_callbacks(self) -> list[Any]:
            # Shards are read by raylm.stream: Ray Train's own data sets would cost every (re)start an actor, and
            # the import of Ray Data in each worker before it may begin.
            found: list[Any] = super()._create_default_callbacks()
            return [callback for callback in found if not isinstance(callback, DatasetsCallback)]

    gpu = job.workers.gpu if job.workers.gpu is not None else ray.cluster_resources().get("GPU", 0) > 0
    resources = {"CPU": job.workers.cpus, **({"GPU": 1} if gpu else {}), **job.workers.resources}
    environment = {"OMP_NUM_THREADS": str(job.workers.threads or max(1, int(job.workers.cpus)))}
    if not gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return ElasticTrainer(
        ray_worker,
        train_loop_config={"job": job, "coordinator": actor},
        backend_config=OwnGroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=(job.workers.min, job.workers.max), use_gpu=gpu, resources_per_worker=resources
        ),
        # Ray Train's own storage holds nothing of ours: checkpoints and metrics go straight to the run folder.
        run_config=RunConfig(
            name=f"{job.name}-{int(time.time() * 1000)}",
            storage_path=tempfile.mkdtemp(prefix="raylm-ray-"),
            failure_config=FailureConfig(max_failures=-1),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _in_group(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """ray.method(concurrency_group=…) without importing Ray when this module is."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__ray_concurrency_group__ = name  # type: ignore[attr-defined]
        return method

    return mark


class CoordinatorActor:
    """The coordinator on the driver's node, with a thread that watches for nodes about to be reclaimed."""

    def __init__(self, job: Job) -> None:
        from raylm.checkpoint.save import claim_attempt

        run = StoragePath(job.run_url, job.object_store.connection())
        self._coordinator = Coordinator(
            run, job.workers, audit=job.train.audit, claim=lambda: claim_attempt(RunFolder(run).checkpoints)
        )
        threading.Thread(target=self._watch, name="raylm-drains", daemon=True).start()

    @_in_group("control")
    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    @_in_group("log")
    def record(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one method of the coordinator, after those asked for before it."""
        return getattr(self._coordinator, name)(*args, **kwargs)

    def _watch(self, period_seconds: float = 0.25) -> None:
        from raylm.train.launch.policies import draining_nodes

        while True:
            time.sleep(period_seconds)
            nodes = draining_nodes()
            if nodes:
                self._coordinator.drained(nodes)
