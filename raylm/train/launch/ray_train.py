"""Ray Train's trainer with raylm's own policies, workers that form their own group, and no data sets."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from raylm.config.job import Job

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


def trainer_of(job: Job, actor: Any) -> Any:
    """Ray Train's trainer with raylm's own policies in place of its elastic ones."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend, BackendConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from raylm.train.launch.policies import AskCoordinator, LiveNodes
    from raylm.train.launch.ray_worker import ray_worker

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
