"""Ray Train's view of a run: thin workers that stand beside the bodies, on the same nodes, and train nothing.

A body reserves what training needs, so a thin worker asks for one byte of memory only. Once a generation has stood for
a while, Ray Train is given one thin worker for each body, pinned to its node, and shows the run where its users look.
The bodies never wait for it: whatever of Ray Train dies is placed again later, and costs no step.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

SETTLED_SECONDS = 30.0  # a generation that has stood for so long is shown to Ray Train
AGAIN_SECONDS = 60.0  # after Ray Train gave up
END_SECONDS = 10.0  # so long Ray Train may take to end in good order, as what it leaves behind otherwise stays
_STORAGE = "raylm-ray-train-"
POLLS_A_SECOND = 100  # of all thin workers together, at most one a second each
# Ray Train reads it from the environment: it looks every two seconds otherwise whether its workers have ended.
SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}


class ThinWorkers:
    """One fixed-size run of Ray Train after another, each for as long as the bodies' nodes stay the same.

    `follow` does not block.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: tuple[str, ...] = ()
        self._due = float("inf")
        self._shown: tuple[Any, Any] | None = None  # the actor, and its call of `fit`
        self._ending: list[tuple[Any, Any, float]] = []
        self._storage = ""

    def follow(self, nodes: Sequence[str]) -> None:
        """The bodies train on these nodes now; a node counts as often as it has bodies."""
        now = time.monotonic()
        if tuple(nodes) != self._nodes:
            self._stop()
            self._nodes, self._due = tuple(nodes), now + SETTLED_SECONDS
        if self._shown is not None and _over(self._shown[1]):
            log.info("Ray Train gave its workers up; they are placed again in %g s", AGAIN_SECONDS)
            self._stop()
            self._due = now + AGAIN_SECONDS
        self._end_the_late()
        if self._nodes and self._shown is None and now >= self._due:
            self._start()

    def end(self, *, at_once: bool) -> None:
        """Nothing of Ray Train's is left after this; unless it should be at once, what it began it may end."""
        self._stop()
        if at_once:
            self._ending = [(actor, fit, 0.0) for actor, fit, _ in self._ending]
        while self._ending:
            self._end_the_late()
            time.sleep(0.05)
        if self._storage:
            shutil.rmtree(self._storage, ignore_errors=True)

    def _start(self) -> None:
        import ray

        self._storage = self._storage or _own_storage()
        here = ray.get_runtime_context().get_node_id()
        actor_class: Any = ray.remote(
            num_cpus=0,
            max_concurrency=8,
            label_selector={"ray.io/node-id": here},
            runtime_env={"env_vars": SETTINGS},
        )(RayTrainRun)
        actor = actor_class.remote()
        self._shown = actor, actor.fit.remote(self._name, self._nodes, self._storage)

    def _stop(self) -> None:
        if self._shown is not None:
            actor, fit = self._shown
            actor.finish.remote()
            self._ending.append((actor, fit, time.monotonic() + END_SECONDS))
        self._shown = None

    def _end_the_late(self) -> None:
        import ray

        for one in list(self._ending):
            actor, fit, until = one
            if _over(fit) or time.monotonic() > until:
                self._ending.remove(one)
                ray.kill(actor)  # what it owns ends with it


def _own_storage() -> str:
    """A folder for Ray Train, which wants one; nothing of ours is in it. Those of processes that were killed go."""
    for left in Path(tempfile.gettempdir()).glob(f"{_STORAGE}*-*"):
        pid = left.name.removeprefix(_STORAGE).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_STORAGE}{os.getpid()}-")


def _over(call: Any) -> bool:
    import ray

    return bool(ray.wait([call], timeout=0)[0])


class RayTrainRun:
    """A process of its own for Ray Train's `fit`, which ends when its workers do."""

    def __init__(self) -> None:
        self._finished = False

    def finish(self) -> None:
        """Have the thin workers end."""
        self._finished = True

    def finished(self) -> bool:
        """Whether they should."""
        return self._finished

    def fit(self, name: str, nodes: Sequence[str], storage: str) -> None:
        """Have a thin worker on each node until they should end, or Ray Train gives up."""
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        me = ray.get_runtime_context().current_actor
        pause = max(1.0, len(nodes) / POLLS_A_SECOND)

        def stand() -> None:  # here, so that it travels by value and a thin worker imports nothing but Ray
            while not ray.get(me.finished.remote()):
                time.sleep(pause)

        DataParallelTrainer(
            stand,
            scaling_config=ScalingConfig(
                num_workers=len(nodes),
                resources_per_worker={"memory": 1},
                label_selector=[{"ray.io/node-id": node} for node in nodes],
            ),
            run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=-1)),
        ).fit()
