"""A cluster of fake bodies around a real hub: they connect, enlist, leave and die as bodies do, and train nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylm.config.workers import WorkerSettings
from raylm.coordination.contract import Generation, Reason
from raylm.coordination.hub import Hub
from raylm.coordination.messages import held_line, held_of
from raylm.coordination.rounds import Held
from raylm.run.events import Event
from raylm.run.folder import RunFolder
from raylm.run.metrics import StepMetrics
from raylm.runtime.link import Link
from raylm.runtime.shares import Share
from raylm.storage import StoragePath


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for what is about to happen, and return what was found."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.003)
    return found


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeBody:
    """A body that does what it is told, at once. deaf: it does not end when it is let go, nor leave when cut.

    busy: it is within a long step, which only a cut ends.
    """

    def __init__(self, number: int, node: str, address: str, token: str, cluster: FakeCluster) -> None:
        self.number, self.node, self._cluster = number, node, cluster
        self.place: dict[str, Any] = {}
        self.step: int | None = None  # of the state that it holds
        self.heard: list[dict[str, Any]] = []
        self.deaf = self.busy = self.ended = False
        self._lock, self._left = threading.Lock(), 0  # the newest generation that it has come back from
        self.link = Link(
            address,
            token,
            number,
            self._heard,
            lambda why: None,
            beat_seconds=cluster.beat,
            node=node,
            name=node,
            clock=cluster.clock(),
        )
        if not cluster.starting:
            self.enlist("new")

    @property
    def generation(self) -> Generation:
        return Generation(self.place.get("generation", 0))

    def said(self, kind: str) -> list[dict[str, Any]]:
        """What the hub told it of that kind."""
        return [message for message in self.heard if message["kind"] == kind]

    def enlist(self, how: str, message: str = "", left: int | None = None) -> None:
        """Come back from a generation, once from each, whether by itself or cut; again only with `left`."""
        with self._lock:
            if left is None and self.generation and self._left == self.generation:
                return
            self._left = self.generation
            self._enlist(how, message, left)

    def _enlist(self, how: str, message: str, left: int | None) -> None:
        held = []
        if self.place and self.step is not None:
            rank, size = self.place["rank"], self.place["size"]
            held = [held_line(Held(self.generation, self.step, size, frozenset({rank, (rank - 1) % size})))]
        left = self.generation if left is None else left
        message = message or how
        line = {"kind": "enlist", "address": f"{self.node}:1", "held": held, "left": left, "how": how}
        self.link.send({**line, "message": message, "step": self.step or 0, "redone": int(how == "broken")})

    def die(self) -> None:
        """Its process ends: nobody knows but by its connection."""
        self.ended = True
        threading.Thread(target=self.link.close, daemon=True).start()

    def _heard(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        match message["kind"]:
            case "place":
                resume = message["resume"]
                self.step = None if resume is None else held_of(resume).step
                self.place = message
            case "wish" if message["reason"] == Reason.REGROUP and not self.busy:
                self.enlist("regroup")
            case "cut" if message["generation"] == self.generation and not self.deaf:
                self.enlist("broken")
            case "leave" if not self.deaf:
                self.die()
            case "try":
                reached = [int(other) for other in message["peers"] if self._cluster.reach(self.number, int(other))]
                self.link.send({"kind": "reached", "number": message["number"], "bodies": reached})


class FakeCluster:
    """Nodes of one place each; a body that finds none waits for `add`. beat: of the bodies to come."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.free = list(nodes)
        self.bodies: dict[int, FakeBody] = {}
        self.asked: dict[int, tuple[str, str]] = {}  # in vain so far
        self.avoided = set[str]()
        self.ends: list[tuple[int, str, bool]] = []
        self.places: list[int] = []
        self.killed: list[int] = []
        self.parted: list[set[str]] = []  # pairs of nodes
        self.noticed: dict[str, float | None] = {}
        self.may: Share | None = Share(100)
        self.starting = False  # bodies come into being, and do not enlist
        self.beat = 0.1
        self.clock: Callable[[], float] = time.time  # of the nodes
        self.before_room: Callable[[], object] = lambda: None

    def add(self, *nodes: str) -> None:
        """Further nodes join."""
        self.free += nodes
        self._bear()

    def ask(self, body: int, address: str, token: str, *, avoid: Collection[str]) -> None:
        self.asked[body] = (address, token)
        self.avoided = set(avoid)
        self._bear()

    def ended(self) -> Sequence[tuple[int, str, bool]]:
        found, self.ends = self.ends, []
        return found

    def placed(self) -> Sequence[int]:
        found, self.places = self.places, []
        return found

    def end(self, body: int) -> None:
        self.asked.pop(body, None)
        if body in self.bodies and not self.bodies[body].ended:
            self.killed.append(body)
            self.bodies[body].die()

    def draining(self) -> Mapping[str, float | None]:
        return self.noticed

    def share(self, nodes: Sequence[str], *, waiting: bool) -> Share | None:
        return self.may

    def room(self) -> int:
        self.before_room()
        return len(self.free)

    def per_worker(self) -> Mapping[str, float]:
        return {"CPU": 1.0}

    def reach(self, one: int, other: int) -> bool:
        """Whether the network leads from the one body to the other."""
        return {self.bodies[one].node, self.bodies[other].node} not in self.parted

    def _bear(self) -> None:
        while self.asked and (fit := [node for node in self.free if node not in self.avoided]):
            body = min(self.asked)
            self.free.remove(fit[0])
            self.bodies[body] = FakeBody(body, fit[0], *self.asked.pop(body), self)


class World:
    """A hub, its cluster and its clock."""

    def __init__(self, folder: Path, nodes: str, size: tuple[int, int], **workers: Any) -> None:
        self._seen = 0
        self.clock, self.cluster = Clock(), FakeCluster(nodes.split())
        settings = WorkerSettings(min=size[0], max=size[1], **workers)
        self.run = RunFolder(StoragePath(str(folder)))
        self.hub = Hub(self.run, settings, self.cluster, host="127.0.0.1", clock=self.clock)

    def events(self, kind: type[Event]) -> list[Any]:
        """What is on record of one kind."""
        return [record for record in self.hub.feed(0)[1] if isinstance(record, kind)]

    def group(self, size: int, passing: float = 0.0) -> list[FakeBody]:
        """The next generation of so many members, by rank: one newer than the last one asked for.

        passing: seconds of the world's clock between two looks.
        """

        def formed() -> list[FakeBody]:
            self.clock.now += passing
            bodies = list(self.cluster.bodies.values())
            newest = max((body.generation for body in bodies), default=0)
            if newest <= self._seen:
                return []
            members = sorted((body for body in bodies if body.generation == newest), key=lambda one: one.place["rank"])
            return members if len(members) == size == members[0].place["size"] else []

        found: list[FakeBody] = until(formed)
        self._seen = found[0].generation
        return found

    def train(
        self, group: list[FakeBody], steps: int = 1, seconds: float = 0.0, by_rank: Sequence[float] | None = None
    ) -> None:
        """Have a generation train so many steps of so many seconds."""
        generation, place = group[0].generation, group[0].place
        at = group[0].step if group[0].step is not None else place["committed"]
        self.hub.started(generation, step=at, checkpoint=None, phases={})
        for step in range(at + 1, at + steps + 1):
            for body in group:
                body.step = step
            self.hub.report_metric(
                generation, StepMetrics(step=step, loss=1.0, step_seconds=seconds, rank_seconds=by_rank)
            )

    def turns(self) -> None:
        """Let the hub take several turns."""
        time.sleep(0.08)

    def pass_time(self, seconds: float) -> None:
        """Time passes, and the hub takes notice."""
        self.clock.now += seconds
        self.turns()


def nodes(group: list[FakeBody]) -> list[str]:
    """The node of each rank."""
    return [body.node for body in group]


def wishes(group: list[FakeBody]) -> list[list[int]]:
    """What each rank was wished to end for."""
    return [[wish["reason"] for wish in body.said("wish")] for body in group]
