"""The hub of a run: it asks for bodies, gathers them into generations, hears who is lost, and keeps the record.

Decisions are those of `rounds`; here is what surrounds them: the switchboard, births, notices, the failure policy and
the clock. Nothing here knows of Ray: what it needs of a cluster is a `Cluster`.

The hub's lock is held only for decisions, as the switchboard's thread waits for it and no beat leaves meanwhile: the
cluster is looked at before, and the record is written by a thread of its own.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from raylm.config.workers import WorkerSettings
from raylm.coordination.advice import of_break, of_clock, of_nodes, of_partition
from raylm.coordination.bodies import Bodies, Cluster, Seen, look
from raylm.coordination.contract import Generation, Member, Reason, RunStatus
from raylm.coordination.coordinator import BackgroundCoordinator
from raylm.coordination.failures import ProgramFailures
from raylm.coordination.messages import held_of, place_line
from raylm.coordination.pace import Pace
from raylm.coordination.patience import START_SECONDS, Patience
from raylm.coordination.reach import Reach
from raylm.coordination.rounds import Round, Rounds
from raylm.coordination.standing import Standing
from raylm.coordination.stragglers import Stragglers
from raylm.errors import TrainingError, first_line
from raylm.run.events import CheckpointCommitted, Event, PreemptionNotice, ShrinkRequested, Warned, WorkerLost
from raylm.run.folder import RunFolder
from raylm.run.metrics import StepMetrics
from raylm.runtime.link import Switchboard
from raylm.runtime.wires import Message
from raylm.threads import error_of

log = logging.getLogger(__name__)

TURN_SECONDS = 0.1
LEAVE_MARGIN_SECONDS = 2.0


class Hub(BackgroundCoordinator):
    """The coordinator of a run whose bodies come and go."""

    def __init__(
        self,
        run: RunFolder,
        workers: WorkerSettings,
        cluster: Cluster,
        *,
        host: str,
        audit: bool = False,
        claim: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(run, audit=audit, claim=claim, clock=clock)
        self._workers, self._cluster, self._clock = workers, cluster, clock
        self._rounds = Rounds(workers.min, workers.max, first_generation=self.first_generation)
        self._bodies = Bodies(cluster, self._rounds, clock)
        self._standing = Standing()
        self._expected: int | None = None  # bodies that a first start waits for
        self._patience = Patience(workers.min, cluster.per_worker(), clock)
        self._began_at = clock()
        self._crashed = False
        self._warned: set[str] = set()
        self._pace = Pace(workers.join_interval_seconds, clock)
        self._stragglers = Stragglers(workers.straggler_ratio, workers.straggler_seconds, clock)
        self._reach = Reach(self._rounds, self._bodies.send, clock)
        self._failures_in_a_row = ProgramFailures(workers.max_failures)
        self._left_at: float | None = None  # when the first member of the newest generation had left it
        self._limit = workers.max
        self._notice_used = False  # every member's node is about to be reclaimed, and the state is saved
        token = secrets.token_hex(16)
        heard, lost = partial(self._guarded, self._heard), partial(self._guarded, self._lost)
        self._switchboard = Switchboard(token, heard, lost, patience_seconds=workers.silence_seconds, host=host)
        self._bodies.serve(self._switchboard, token)
        for name, work in (("raylm-hub", self._turns), ("raylm-record", self._writes)):
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True).start()

    # -- the driver's side of the contract -----------------------------------------------------------------------

    def request_stop(self) -> bool:
        """Have the group save and end the run at its next step; False when no group is there to hear it."""
        with self._lock:
            super().request_stop()
            return self._is_training()

    def status(self) -> RunStatus:
        """Where the run stands; it has ended once every body has."""
        found = super().status()
        ended = self.over and (self._crashed or not self._bodies.known)
        return replace(found, ended=ended, nodes=self._standing.nodes)

    def close(self) -> None:
        """End what bodies there still are, and write out everything."""
        with self._lock:
            self._closed.set()
            for body in list(self._bodies.known):
                self._bodies.forget(body)
        self._switchboard.close()
        super().close()

    def stopped(self, generation: Generation, reason: Reason, step: int) -> None:
        """The group has saved `step` and ends, as requested."""
        super().stopped(generation, reason, step)
        with self._lock:
            self._notice_used = reason is Reason.PREEMPTION_NOTICE and self.is_current(generation)

    def report_metric(self, generation: Generation, metrics: StepMetrics) -> None:
        """Record a finished step of the newest generation."""
        with self._lock:
            super().report_metric(generation, metrics)
            if self.is_current(generation):
                self._pace.stepped(metrics.step_seconds)
                if metrics.rank_seconds is not None:
                    self._heed_stragglers(metrics.rank_seconds)

    def report_event(self, generation: Generation, event: Event) -> None:
        """Record an event of the newest generation."""
        super().report_event(generation, event)
        if isinstance(event, CheckpointCommitted) and event.seconds is not None:
            self._pace.saved(event.seconds)

    # -- turns ---------------------------------------------------------------------------------------------------

    def _turns(self) -> None:
        while not self._closed.wait(TURN_SECONDS):
            seen = self._look()
            with self._lock:
                if not self._closed.is_set():
                    self._turn(seen)

    def _look(self) -> Seen:
        return look(self._cluster, for_room=self._expected is None or self._waits_long())

    def _turn(self, seen: Seen) -> None:
        for body, why, own in seen.ended:
            self._body_ended(body, why, own=own)
        self._bodies.placed(seen.placed)
        self._bodies.end_the_late()
        if self.over:
            self._bodies.let_all_go(orderly=self.status().error is None)
            return
        self._heed_notices(seen.draining)
        self._ask_for_bodies(seen.room)
        self._look_for_partitions()
        self._gather()
        self._report_waiting(seen.room)

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do one thread's work; a mistake of the hub's own ends the run, and its bodies with it."""
        error = error_of(partial(work, *arguments))
        if error is not None:
            log.error("the hub failed", exc_info=error)
            with self._lock:
                self._fail(TrainingError(f"the hub of the run failed: {type(error).__name__}: {first_line(error)}"))
                self._crashed = True
                self._bodies.let_all_go(orderly=False)

    def _is_training(self) -> bool:
        return bool(self._bodies.among(self._standing.ranks))

    # -- bodies come ---------------------------------------------------------------------------------------------

    def _ask_for_bodies(self, room: int | None) -> None:
        """Ask for as many as the run may have."""
        nodes = [known.node for known in self._bodies.here()]
        share = self._cluster.share(nodes, waiting=not self._is_training())
        if share is None:
            return
        wanted = min(self._workers.max, share.workers)
        limit = max(wanted, self._workers.min) if share.shrink else self._workers.max
        if limit < min(self._limit, len(self._standing.ranks)):
            self._record(ShrinkRequested())
        self._limit = limit
        self._rounds.limit(limit)
        expected = room if self._expected is None else self._expected
        self._expected = None if expected is None else min(wanted, expected)  # another run's is not waited for
        self._bodies.ask_for(wanted)

    # -- bodies are heard, in the switchboard's thread -----------------------------------------------------------

    def _heard(self, body: int, message: Message) -> None:
        with self._lock:
            known = self._bodies.known.get(body)
            if known is None or known.let_go:
                self._switchboard.send(body, {"kind": "leave", "orderly": False})
            elif message["kind"] == "hello":
                known.asked, known.node, known.name = False, message["node"], message["name"]
                self._warn(of_clock(known.name, message["clock"] - time.time()))
                self._rounds.arrived(body, known.node)
                self._switchboard.send(body, {"kind": "welcome", "warm": bool(self._standing.generation)})
            elif message["kind"] == "enlist":
                self._enlisted(body, message)
            elif message["kind"] == "reached":
                self._reach.heard(body, message["number"], message["bodies"])
            if not self.over:
                self._gather()

    def _warn(self, message: str | None) -> None:
        """Say something once."""
        if message is not None and message not in self._warned:
            self._warned.add(message)
            self._record(Warned(message=message))

    def _enlisted(self, body: int, message: Message) -> None:
        held = [held_of(line) for line in message["held"]]
        if not self._rounds.enlist(body, message["address"], held, left=message["left"]):
            self._bodies.let_go(body, orderly=False)
            return
        self._bodies.enlisted(body)
        standing = self._standing
        if message["left"] != standing.generation or not standing.generation:
            return
        if message["how"] == "error":
            self._program_failed(message["message"], message["step"], standing.ranks.get(body))
        self.redone += message["redone"]
        self._left_at = self._left_at or self._clock()
        if message["how"] == "broken" and not standing.broken:
            standing.doubted = message["message"]
        standing.broken = standing.broken or message["how"] != "regroup"
        self.lost(failure=False)

    def _lost(self, body: int, why: str) -> None:
        with self._lock:
            self._body_ended(body, why, own=False)
            if not self.over:
                self._gather()

    def _body_ended(self, body: int, why: str, *, own: bool) -> None:
        """A body is gone: its place is free, and its generation broken if it was a member."""
        known = self._bodies.ended(body)
        if known is None or known.let_go or self.over:
            return
        rank = self._standing.ranks.get(body)
        self._rounds.gone(body)
        if own:
            self._program_failed(why, self.last_step, rank)
        elif rank is not None:
            self._record_loss([rank], [known.name], f"lost: {why}")
        if rank is not None:
            self._standing.broken, self._standing.doubted = True, ""
            self._left_at = self._left_at or self._clock()
            self.lost(failure=True)

    def _program_failed(self, message: str, step: int, rank: int | None) -> None:
        """The program's own error after a step; the same step may fail so often before it ends the run."""
        names = [self._standing.names[rank]] if rank is not None else []
        self._record_loss([] if rank is None else [rank], names, f"error: {message}")
        failed = self._failures_in_a_row.add(step, 0 if rank is None else self._standing.generation, message)
        if failed is not None:
            self._fail(failed)

    def _record_loss(self, ranks: list[int], nodes: list[str], message: str) -> None:
        self._record(WorkerLost(ranks=ranks, nodes=nodes, message=message[:500], last_committed=self.committed))

    # -- rounds --------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Close the round if it can be closed; else see that members come to it."""
        standing, rounds = self._standing, self._rounds
        if not standing.doubted and self._may_start() and (found := rounds.close(self.committed)) is not None:
            self._place(found)
            return
        for body in rounds.dismiss():
            self._bodies.let_go(body, orderly=True)
        if standing.broken:
            self._cut(rounds.unheard())
        wish = self._wish()
        if wish is not None and wish is not standing.wish:
            standing.wish, standing.wished_at = wish, self._clock()
            wished = {"kind": "wish", "generation": standing.generation, "reason": int(wish)}
            self._bodies.send(standing.ranks, wished)

    def _cut(self, members: Iterable[int]) -> None:
        """Tell members that their generation is over, each once."""
        standing = self._standing
        untold = set(members) - standing.cut
        standing.cut |= untold
        self._bodies.send(untold, {"kind": "cut", "generation": standing.generation})

    def _may_start(self) -> bool:
        """Whether a start from nothing has waited for the bodies that the cluster has room for."""
        arrived = self._bodies.here()
        waited = self._clock() - (self._left_at or self._began_at)
        if waited > START_SECONDS:
            self._rounds.give_up_waiting()
        if self._notice_used:
            if not any(known.ready and not known.leaving for known in arrived):
                return False  # all is saved; what they trained on now would be lost with them
            if self._workers.max == 1 and self.committed >= self.last_step:
                self._bodies.end_the_leaving()  # with one place nobody takes over in memory
        if self._standing.generation or waited > START_SECONDS:
            return True
        return self._expected is not None and len(arrived) >= self._expected

    def _wish(self) -> Reason | None:
        """Why the newest generation should end at its next step, if it should."""
        if not self._is_training() or self._standing.broken:
            return None
        if self._stop_requested:
            return Reason.STOP
        members = self._bodies.among(self._standing.ranks)
        if self._rounds.regroup_wanted():
            must = any(known.due for known in members) or len(self._standing.ranks) > self._limit
            if must or self._standing.wish is Reason.REGROUP or self._pace.may_join():
                self._bodies.let_leave(float("inf"))  # whoever is to leave soon: one regroup for all
                return Reason.REGROUP
        elif all(known.due for known in members):
            return Reason.PREEMPTION_NOTICE
        return None

    def _place(self, found: Round) -> None:
        """Begin a generation."""
        gather, before = self._clock() - (self._left_at or self._began_at), self._standing
        generation = self.begin(len(found.places), Generation(self._rounds.generation), {"gather": max(0.0, gather)})
        self._left_at, self._notice_used = None, False
        ranks = {body: place.rank for body, place in found.places.items()}
        nodes = next(iter(found.places.values())).nodes
        names = tuple(self._bodies.known[body].name for body in found.places)
        self._standing = Standing(generation, ranks, nodes, names)
        self._warn(of_nodes(nodes, names))
        self._pace.generation_began(before.wished_at)
        for body, place in found.places.items():
            told, evaluated, committed = self.last_step, self.evaluated, self.committed
            member = Member(**vars(place), told=told, evaluated=evaluated, committed=committed, serve=False)
            self._switchboard.send(body, place_line(replace(member, local_rank=0)))
        for body in found.leave:
            self._bodies.let_go(body, orderly=True)

    def _look_for_partitions(self) -> None:
        """Leave out whoever does not reach the others, and take it in again when it does."""
        standing, bodies = self._standing, self._bodies
        members = [body for body in standing.ranks if body in bodies.known]
        still = not standing.broken and self._pace.stands_still(self._reach.checked_at)
        found = self._reach.turn(members, bodies.known, due=still or bool(standing.doubted and self._rounds.whole()))
        if found is None:
            return
        for message in of_partition(bodies.names(found.out), bodies.names(found.back)):
            self._record(Warned(message=message))
        self._warn(None if found.out else of_break(len(standing.ranks), standing.doubted))
        standing.doubted = ""
        bodies.set_apart(found, full=len({*members} - found.back) >= min(self._workers.max, self._limit))
        if found.out & set(members) and not standing.broken:
            standing.broken = True
            self._left_at = self._left_at or self._clock()
            self._cut(standing.ranks)
            self.lost(failure=True)

    # -- notices -------------------------------------------------------------------------------------------------

    def _heed_notices(self, draining: Mapping[str, float | None]) -> None:
        """Bodies on nodes about to be reclaimed are replaced at once, and leave at the last step that surely fits."""
        noticed = self._bodies.notice(draining, LEAVE_MARGIN_SECONDS + self._pace.leave_seconds())
        ranks = sorted(self._standing.ranks[body] for body in noticed if body in self._standing.ranks)
        if ranks:
            told = [left for left in noticed.values() if left is not None]
            self._record(PreemptionNotice(ranks=ranks, grace_seconds=round(min(told), 1) if told else None))
        self._bodies.let_leave(self._clock())
        self._leave_at_once()

    def _heed_stragglers(self, rank_seconds: Sequence[float]) -> None:
        """Say who holds the others up; where the settings say so and enough stay without it, it is replaced."""
        standing = self._standing
        for slow in self._stragglers.heard({body: rank_seconds[rank] for body, rank in standing.ranks.items()}):
            replaced = self._workers.replace_stragglers and self._bodies.staying() > self._workers.min
            rank = standing.ranks[slow.body]
            self._record(slow.event(rank, standing.names[rank], replaced=replaced))
            if replaced:
                self._bodies.replace(slow.body)

    def _leave_at_once(self) -> None:
        """End the generation within its step, where a leaving member is gone before that step would be finished.

        What was accumulated is thrown away, and the others train the step. Waiting for the end of the node would cost
        them that time as well.
        """
        standing, boundary = self._standing, self._pace.boundary()
        if standing.broken or standing.wish is not Reason.REGROUP or boundary is None:
            return
        if self._bodies.overrun(boundary):
            standing.broken = True
            self._cut(standing.ranks)

    def _waits_long(self) -> bool:
        waits = not self._standing.generation and (self._expected or 0) >= self._workers.min
        return self._patience.at_an_end(starting=waits)

    def _report_waiting(self, room: int | None) -> None:
        training = self._is_training() and not self._standing.broken
        waits_long = self._waits_long()
        waiting = self._patience.report(self._bodies.staying(), room if waits_long else None, training=training)
        if waiting is not None:
            self._record(waiting)
