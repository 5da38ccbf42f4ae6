"""Runs of one cluster share its workers: an arbiter that all of them ask, instead of each counting the free ones.

A run claims what it holds and could use, again every half second; a claim that is not repeated is dropped. So the
arbiter keeps nothing that matters: when it is lost, whoever asks next starts another, which knows all claims at once.
It is a detached actor on the cluster's head, found by its name from every driver, and ends when nobody claims anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylm.errors import first_line
from raylm.runtime.nodes import slots, usable_nodes
from raylm.runtime.ray_internals import free_resources

log = logging.getLogger(__name__)

NAME, NAMESPACE = "raylm-arbiter", "raylm"
RENEW_SECONDS = 0.5
EXPIRES_SECONDS = 10.0
UNKNOWN_SECONDS = 10.0  # after so long without an answer a run goes on as if it were alone
WAITING_SECONDS = 1.0  # every restart waits for a moment: nobody is asked to shrink for that
IDLE_SECONDS = 60.0

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """What a run holds and could use.

    run: its folder. since: seconds since 1970 of its start; who came first is served first, and of two starts of one
    run only the later one counts. size: workers it has or is about to have. nodes: where they are, as far as known.
    waiting: it has no group.
    """

    run: str
    since: float
    min: int
    max: int
    per_worker: Resources
    size: int = 0
    nodes: tuple[str, ...] = ()
    waiting: bool = True


@dataclass(frozen=True)
class Share:
    """What a run may have. shrink: another run waits for workers that this one has beyond its share."""

    workers: int
    shrink: bool = False


# -- the policy --------------------------------------------------------------------------------------------------------


def fair_shares(nodes: Sequence[Resources], claims: Sequence[Claim]) -> dict[str, int]:
    """Run → workers: the fewest that each run needs, in order of their start, and then one by one to who has least.

    A run whose fewest do not fit gets none.
    """
    left = [dict(node) for node in nodes]
    order = sorted(claims, key=lambda claim: (claim.since, claim.run))
    shares = {}
    for claim in order:
        shares[claim.run] = claim.min if _take(left, claim.per_worker, claim.min) else 0
    growing = [claim for claim in order if shares[claim.run]]
    while growing:
        claim = min(growing, key=lambda one: shares[one.run])  # of equals the first
        if shares[claim.run] < claim.max and _take(left, claim.per_worker, 1):
            shares[claim.run] += 1
        else:
            growing.remove(claim)
    return shares


def _take(left: list[dict[str, float]], per_worker: Resources, count: int) -> bool:
    """Take so many workers' resources from the nodes, from the fullest that has them; all of them or nothing."""
    before = [dict(node) for node in left]
    for _ in range(count):
        fitting = [node for node in left if slots(node, per_worker)]
        if not fitting:
            left[:] = before
            return False
        node = min(fitting, key=lambda one: slots(one, per_worker))
        for name, amount in per_worker.items():
            node[name] = node.get(name, 0.0) - amount
    return True


def usable(
    total: Mapping[str, Resources], free: Mapping[str, Resources], claims: Sequence[Claim]
) -> list[dict[str, float]]:
    """What runs may share on each node: what is free and what they hold.

    Workers whose node is not known yet take what is free, or stand for a node of their own: too little is counted for
    a moment rather than too much.
    """
    nodes = {name: dict(free.get(name, {})) for name in total}
    unknown = [dict(free.get(name, {})) for name in total]
    extra: list[dict[str, float]] = []
    for claim in claims:
        for name in claim.nodes:
            if name in nodes:
                for resource, amount in claim.per_worker.items():
                    held = nodes[name].get(resource, 0.0) + amount
                    nodes[name][resource] = min(held, total[name].get(resource, 0.0))
        for _ in range(claim.size - len(claim.nodes)):
            if not _take(unknown, claim.per_worker, 1):
                extra.append(dict(claim.per_worker))
    return [*nodes.values(), *extra]


# -- the arbiter -------------------------------------------------------------------------------------------------------


class Arbiter:
    """Claims of the cluster's runs, and what each may have; `cluster` tells all and free resources by node."""

    def __init__(
        self,
        cluster: Callable[[], tuple[Mapping[str, Resources], Mapping[str, Resources]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._clock = cluster, clock
        self._claims: dict[str, Claim] = {}
        self._renewed: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self._released: set[tuple[str, float]] = set()
        self._used_at = clock()

    def renew(self, claim: Claim) -> Share:
        """Claim anew, and hear what the run may have."""
        now = self._used_at = self._clock()
        known = self._claims.get(claim.run)
        older = known is not None and known.since > claim.since
        if not older and (claim.run, claim.since) not in self._released:
            if known is not None and known.since < claim.since:
                self._drop(claim.run)  # of a driver that was killed, or taken the run from
            self._claims[claim.run], self._renewed[claim.run] = claim, now
            if claim.waiting:
                self._waiting_since.setdefault(claim.run, now)
            else:
                self._waiting_since.pop(claim.run, None)
        for run in [run for run, at in self._renewed.items() if now - at > EXPIRES_SECONDS]:
            self._drop(run)
        others = [other for other in self._claims.values() if other.run != claim.run]
        if not others:
            return Share(claim.max)
        total, free = self._cluster()
        shares = fair_shares(usable(total, free, list(self._claims.values())), list(self._claims.values()))
        share = shares.get(claim.run, 0)
        short = any(self._starves(other, shares[other.run], free, now) for other in others)
        return Share(share, shrink=short and not claim.waiting and claim.size > max(share, claim.min))

    def release(self, run: str, since: float) -> None:
        """The start of a run has ended; what still comes in its name is not heard."""
        self._released.add((run, since))
        if run in self._claims and self._claims[run].since == since:
            self._drop(run)

    def idle_seconds(self) -> float:
        """How long nobody has claimed anything."""
        return self._clock() - self._used_at

    def _drop(self, run: str) -> None:
        for table in (self._claims, self._renewed, self._waiting_since):
            table.pop(run, None)

    def _starves(self, claim: Claim, share: int, free: Mapping[str, Resources], now: float) -> bool:
        """Whether a run has waited for a while for workers that it may have and that are not free."""
        since = self._waiting_since.get(claim.run, now)
        if not claim.waiting or share < claim.min or now - since < WAITING_SECONDS:
            return False
        return sum(slots(node, claim.per_worker) for node in free.values()) < claim.min


class ArbiterActor(Arbiter):
    """The arbiter behind its actor, which ends when it has been idle for a while."""

    def __init__(self) -> None:
        super().__init__(cluster_resources)
        threading.Thread(target=self._watch, name="raylm-arbiter-idle", daemon=True).start()

    def end_if_idle(self) -> None:
        """End this actor unless somebody claims something."""
        import ray

        if self.idle_seconds() > IDLE_SECONDS:
            ray.actor.exit_actor()

    def _watch(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        while True:
            time.sleep(IDLE_SECONDS / 4)
            if self.idle_seconds() > IDLE_SECONDS:
                me.end_if_idle.remote()


def cluster_resources() -> tuple[dict[str, Resources], dict[str, Resources]]:
    """All and free resources of each node that lives and is not draining."""
    total: dict[str, Resources] = {node["NodeID"]: node["Resources"] for node in usable_nodes()}
    free = free_resources()
    return total, {name: free.get(name, {}) for name in total}


# -- a run's side ------------------------------------------------------------------------------------------------------


class ClusterShare:
    """A run's claim, kept alive by a thread in whichever process it was last changed."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._arbiter: Any = None
        self._newest: Share | None = None
        self._since = time.monotonic()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[ClusterShare], tuple[Claim]]:
        return ClusterShare, (self._claim,)

    def announce(self) -> None:
        """Claim once, without waiting for an answer: it counts from now on, and for a while."""
        self._handle().renew.remote(self._claim)

    def claim(self, *, size: int, nodes: Sequence[str], waiting: bool) -> None:
        """Claim from now on, every half second."""
        self._claim = replace(self._claim, size=size, nodes=tuple(nodes), waiting=waiting)
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="raylm-share", daemon=True)
            self._thread.start()

    def newest(self) -> Share | None:
        """What the run may have; None until the arbiter has answered, and all that fits when it does not."""
        if self._newest is None and time.monotonic() - self._since > UNKNOWN_SECONDS:
            return Share(self._claim.max)
        return self._newest

    def release(self) -> None:
        """Give the share back."""
        import ray

        try:
            ray.get(self._handle().release.remote(self._claim.run, self._claim.since), timeout=5)
        except ray.exceptions.RayError as error:
            log.warning("the share of %s is given back by expiry only: %s", self._claim.run, first_line(error))

    def _renew(self) -> None:
        import ray

        while True:
            self._changed.wait(RENEW_SECONDS)
            self._changed.clear()
            try:
                self._newest = ray.get(self._handle().renew.remote(self._claim), timeout=EXPIRES_SECONDS)
            except ray.exceptions.RayError:
                self._arbiter = None  # the next one is another actor
                time.sleep(RENEW_SECONDS)

    def _handle(self) -> Any:
        import ray

        if self._arbiter is None:
            options = ray.remote(ArbiterActor).options(
                name=NAME,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources={"node:__internal_head__": 0.001},
            )
            self._arbiter = options.remote()
        return self._arbiter
