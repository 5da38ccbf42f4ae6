"""Ray Train's decisions, taken here: how many workers, when to grow, and whether a failure is worth a restart.

test_elastic.py walks through every decision. Why not Ray's own policies: they size a group from a 20 s old view and
then wait 60 s for a node that is gone, count draining nodes, and grow without saving first.
"""

from __future__ import annotations

import time
from typing import Any

from ray.exceptions import RayActorError
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from raylm.runtime.nodes import capacity
from raylm.runtime.ray_internals import (
    FailureDecision,
    FailurePolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
    WorkerGroupPollStatus,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerGroupState,
    raised_by_worker,
    resources_per_worker,
)
from raylm.runtime.shares import ClusterShare
from raylm.train.coordination import Control, Reason, actor_client

REPORT_WAITING_SECONDS = 3.0


class LiveNodes(ScalingPolicy):  # type: ignore[misc]
    """Sizes the group from this run's share of the living nodes; another size is asked of the workers, not forced."""

    def __init__(
        self, scaling_config: ScalingConfig, actor: Any, share: ClusterShare, grow_check_seconds: float
    ) -> None:
        super().__init__(scaling_config)
        self._coordinator: Control = actor_client(actor)
        self._share = share
        self._grow_check_seconds = grow_check_seconds
        self._waiting_since: float | None = None
        self._waiting_reported = False
        self._checked_at = self._located_at = float("-inf")
        self._seen_capacity = self._asked_to_shrink = False
        self._located = 0
        self._size = self._grown_from = 0

    def _get_num_workers_for_resource_request(self) -> int:
        return int(self.scaling_config.max_workers)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with every worker that fits and is this run's share, as soon as the fewest are."""
        self._maybe_send_resource_request()
        now = time.monotonic()
        self._waiting_since = self._waiting_since if self._waiting_since is not None else now
        needed = resources_per_worker(self.scaling_config)
        least = int(self.scaling_config.min_workers)
        held = self._coordinator.nodes()
        self._share.claim(size=len(held), nodes=held, waiting=True)
        share = self._share.newest()
        fits = 0 if share is None else min(share.workers, capacity(needed, held))
        size = min(int(self.scaling_config.max_workers), fits)
        if size < least:
            if not self._waiting_reported and now - self._waiting_since > REPORT_WAITING_SECONDS:
                self._waiting_reported = True
                self._coordinator.waiting(fits=size, needs_workers=least, per_worker=needed)
            time.sleep(0.05)  # the controller asks again at once, and would spin
            return NoopDecision()
        self._waiting_since, self._waiting_reported = None, False
        self._checked_at, self._seen_capacity = now, False
        self._asked_to_shrink, self._located = False, 0
        if self._grown_from and size <= self._grown_from:
            self._grow_check_seconds *= 2  # the capacity was gone when it was wanted: look less often
        self._size, self._grown_from = size, 0
        self._share.claim(size=size, nodes=(), waiting=False)
        self._coordinator.begin(size)
        return self._resize(size)

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Never resizes: another size is asked of the workers, who save and end, and the restart takes it."""
        self._maybe_send_resource_request()
        now = time.monotonic()
        self._locate(now)
        share = self._share.newest()
        if share is not None and share.shrink and not self._asked_to_shrink:
            self._asked_to_shrink = self._coordinator.request_stop(Reason.SHRINK)
        elif worker_group_state.num_workers < self.scaling_config.max_workers:
            self._grow(now, beyond=worker_group_state.num_workers)
        return NoopDecision()

    def _grow(self, now: float, beyond: int) -> None:
        """Ask for a restart once capacity for more workers, of this run's share, has been seen twice."""
        # The second look, a second later, keeps a node that flickers from costing a restart.
        if now - self._checked_at < (1.0 if self._seen_capacity else self._grow_check_seconds):
            return
        self._checked_at = now
        share = self._share.newest()
        more = 0 if share is None else share.workers - beyond
        free = min(more, capacity(resources_per_worker(self.scaling_config))) if more > 0 else 0
        if free > 0 and self._seen_capacity:
            self._grown_from = self._size
            self._coordinator.request_stop(Reason.GROW, capacity=free)
        self._seen_capacity = free > 0

    def _locate(self, now: float) -> None:
        """Claim with the nodes of the workers, once they are known."""
        if self._located < self._size and now - self._located_at > 1.0:
            self._located_at = now
            nodes = self._coordinator.nodes()
            if len(nodes) != self._located:
                self._located = len(nodes)
                self._share.claim(size=self._size, nodes=nodes, waiting=False)

    def _resize(self, size: int) -> ResizeDecision:
        return ResizeDecision(num_workers=size, resources_per_worker=resources_per_worker(self.scaling_config))


class AskCoordinator(FailurePolicy):  # type: ignore[misc]
    """Restarts unless the coordinator knows a reason not to."""

    def __init__(self, failure_config: FailureConfig, actor: Any) -> None:
        super().__init__(failure_config)
        self._coordinator: Control = actor_client(actor)

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Retry or raise."""
        if isinstance(training_failed_error, ControllerError):
            cause = training_failed_error.controller_failure
            if isinstance(cause, WorkerGroupStartupTimeoutError):
                return FailureDecision.RETRY  # the nodes changed under the decision; the next one looks again
            if not isinstance(cause, WorkerGroupStartupFailedError | RayActorError):
                return FailureDecision.RAISE
            losses = {-1: f"lost while starting: {_first_line(cause)}"}
        else:
            losses = losses_of(training_failed_error)
        again = self._coordinator.group_ended(losses)
        return FailureDecision.RETRY if again else FailureDecision.RAISE


def losses_of(error: TrainingFailedError) -> dict[int, str]:
    """Rank → one line: `lost: …` for a worker that died or fell silent, `error: …` for one that raised."""
    if not isinstance(error, WorkerGroupError):
        return {-1: f"error: {_first_line(error)}"}
    losses = {}
    for rank, failure in error.worker_failures.items():
        raised = raised_by_worker(failure)
        if raised is not None:
            losses[rank] = f"error: {type(raised).__name__}: {_first_line(raised)}"
        else:
            losses[rank] = f"lost: {_first_line(getattr(failure, 'health_check_failure', None) or failure)}"
    return losses


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
