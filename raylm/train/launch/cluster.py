"""A Ray cluster as the hub sees it: bodies are actors that reserve a worker's place, asked for and ended here."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raylm.config.job import Job
from raylm.coordination.messages import Birth
from raylm.errors import first_line
from raylm.runtime.nodes import capacity
from raylm.runtime.ray_internals import draining_nodes
from raylm.runtime.shares import ClusterShare, Share
from raylm.train.launch.body_actor import BodyActor

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


class RayCluster:
    """Bodies on the nodes of the Ray cluster that this process belongs to.

    The hub owns them: they end with it. One that does not fit is pending, which is what an autoscaler goes by.
    """

    def __init__(self, job: Job, hub: Any, share: ClusterShare, per_worker: Mapping[str, float]) -> None:
        self._job, self._hub, self._share, self._per_worker = job, hub, share, dict(per_worker)
        self._actors: dict[int, Any] = {}
        self._lives: dict[Any, int] = {}
        self._placing: dict[Any, int] = {}
        self._claimed: tuple[tuple[str, ...], bool] | None = None
        self._draining: dict[str, float | None] = {}
        self._looked_at = float("-inf")

    def ask(self, body: int, address: str, token: str, *, avoid: Collection[str]) -> None:
        """Ask for a body, which comes into being when there is room on a node that is not one of `avoid`."""
        import ray

        needed = dict(self._per_worker)
        gpu = needed.pop("GPU", 0)
        environment = {"OMP_NUM_THREADS": str(self._job.workers.threads or max(1, int(self._job.workers.cpus)))}
        if not gpu:
            environment["DS_ACCELERATOR"] = "cpu"
        made: Any = ray.remote(BodyActor)
        birth = Birth(self._job, body, address, token, self._job.workers.silence_seconds)
        actor = made.options(
            name=None,
            num_cpus=needed.pop("CPU", 0),
            num_gpus=gpu,
            resources=needed,
            max_restarts=0,
            label_selector={"ray.io/node-id": f"!in({','.join(sorted(avoid))})"} if avoid else None,
            runtime_env={"env_vars": environment},
        ).remote(birth, self._hub)
        self._actors[body] = actor
        self._placing[actor.placed.remote()] = body  # answered first: an actor takes one call after the other
        self._lives[actor.live.remote()] = body

    def ended(self) -> Sequence[tuple[int, str, bool]]:
        """Bodies that ended since the last call: why, and whether by an error of the program's own."""
        return [found for life in _settled(self._lives) if (found := self._end_of(life)) is not None]

    def placed(self) -> Sequence[int]:
        """Bodies that have found a place since the last call; they say hello later."""
        return [self._placing.pop(call) for call in _settled(self._placing)]

    def end(self, body: int) -> None:
        """End a body, or no longer ask for it."""
        import ray

        actor = self._actors.pop(body, None)
        if actor is not None:
            self._lives = {life: number for life, number in self._lives.items() if number != body}
            ray.kill(actor)

    def draining(self) -> Mapping[str, float | None]:
        """Nodes about to be reclaimed, with the seconds left where that is known."""
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._draining = draining_nodes()
        return self._draining

    def share(self, nodes: Sequence[str], *, waiting: bool) -> Share | None:
        """What the run may have of the cluster, of which it holds a worker's place on each of `nodes`."""
        claim = (tuple(nodes), waiting)
        if claim != self._claimed:
            self._claimed = claim
            self._share.claim(size=len(nodes), nodes=nodes, waiting=waiting)
        return self._share.newest()

    def room(self) -> int:
        """Bodies that would come into being at once."""
        return capacity(self._per_worker)

    def per_worker(self) -> Mapping[str, float]:
        """What each body reserves."""
        return self._per_worker

    def _end_of(self, life: Any) -> tuple[int, str, bool] | None:
        import ray
        from ray.exceptions import RayTaskError, RuntimeEnvSetupError

        body = self._lives.pop(life, None)
        if body is None:
            return None
        try:
            ray.get(life)
        except RayTaskError as error:
            return body, f"{type(error.cause).__name__}: {first_line(error.cause)}", True
        except RuntimeEnvSetupError as error:
            return body, first_line(error), True
        except ray.exceptions.RayError as error:
            return body, first_line(error), False
        return body, "it ended", False


def _settled(calls: Mapping[Any, int]) -> list[Any]:
    """Those calls of bodies that were answered or failed."""
    import ray

    if not calls:
        return []
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0, fetch_local=False)
    return list(done)
