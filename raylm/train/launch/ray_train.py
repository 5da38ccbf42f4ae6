"""Ray Train's trainer with raylm's own policies, workers that form their own group, and no datasets."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from raylm.config.job import Job
from raylm.runtime.shares import ClusterShare

# Ray Train reads these from the environment of its controller. Polls every quarter second (default 2) find a dead
# worker sooner; a worker that answers nothing for 30 s (default 600) is lost; its own preemption watcher is off because
# the coordinator watches drains itself, and saves before it lets go.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The policies ask the coordinator and wait for its answer, inside the controller's loop.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


def trainer_of(job: Job, actor: Any, share: ClusterShare) -> Any:
    """Ray Train's trainer with raylm's own policies in place of its elastic ones; `controller` is its actor."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend, BackendConfig

    from raylm.train.launch.ray_worker import ray_worker

    class OwnGroup(Backend):  # type: ignore[misc]
        """The worker forms its own process group, so that it can leave and re-form it."""

        share_cuda_visible_devices = True

    class OwnGroupConfig(BackendConfig):  # type: ignore[misc]
        backend_cls = OwnGroup

    per_worker = worker_resources(job)
    gpu = "GPU" in per_worker
    environment = {"OMP_NUM_THREADS": str(job.workers.threads or max(1, int(job.workers.cpus)))}
    if not gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return _trainer_class(job, actor, share)(
        ray_worker,
        train_loop_config={"job": job, "coordinator": actor},
        backend_config=OwnGroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=(job.workers.min, job.workers.max), use_gpu=gpu, resources_per_worker=per_worker
        ),
        # Ray Train's own storage holds nothing of ours: checkpoints and metrics go straight to the run folder.
        run_config=RunConfig(
            name=f"{job.name}-{int(time.time() * 1000)}",
            storage_path=tempfile.mkdtemp(prefix="raylm-ray-"),
            failure_config=FailureConfig(max_failures=-1),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _trainer_class(job: Job, actor: Any, share: ClusterShare) -> Any:
    """DataParallelTrainer, whose controller is given raylm's decisions and settings."""
    import ray

    from raylm.runtime.ray_internals import (
        ControllerMetricsCallback,
        DataParallelTrainer,
        DatasetsCallback,
        TrainController,
        WorkerMetricsCallback,
    )
    from raylm.train.launch.policies import AskCoordinator, LiveNodes

    class ElasticTrainer(DataParallelTrainer):  # type: ignore[misc]
        controller: Any = None

        def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
            kwargs["scaling_policy"] = LiveNodes(self.scaling_config, actor, share, job.workers.grow_check_seconds)
            kwargs["failure_policy"] = AskCoordinator(self.run_config.failure_config, actor)
            # As Ray Train does, but its settings are given to the controller alone, not through this process's
            # environment, and Ctrl-C stays with whoever handles it here.
            actor_class = ray.remote(
                num_cpus=0,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
                runtime_env={
                    "env_vars": {key: os.environ.get(key, value) for key, value in RAY_TRAIN_SETTINGS.items()}
                },
            )(TrainController)
            self.controller = actor_class.remote(**kwargs)
            ray.get(self.controller.run.remote())
            return ray.get(self.controller.get_result.remote())

        def _create_default_callbacks(self) -> list[Any]:
            # Shards are read by raylm.stream: Ray Train's own datasets would cost every (re)start an actor, and
            # the import of Ray Data in each worker before it may begin. Metrics are in the run folder.
            unused = (DatasetsCallback, ControllerMetricsCallback, WorkerMetricsCallback)
            found: list[Any] = super()._create_default_callbacks()
            return [callback for callback in found if not isinstance(callback, unused)]

    return ElasticTrainer


def worker_resources(job: Job) -> dict[str, float]:
    """What each worker is given of its node; a GPU where the cluster has any, unless the job says otherwise."""
    import ray

    gpu = job.workers.gpu if job.workers.gpu is not None else ray.cluster_resources().get("GPU", 0) > 0
    return {"CPU": job.workers.cpus, **({"GPU": 1} if gpu else {}), **job.workers.resources}
