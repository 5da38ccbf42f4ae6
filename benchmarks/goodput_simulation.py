"""One run on one trace: every step, save, copy, loss, notice and newcomer, in simulated time.

Useful is the work of the steps that were kept, and of the step under way at the end; available is the time of all GPUs
of nodes that are there, up to the most that a run may have. Nodes that a trace removes at one moment go at once. The
run is training when the trace begins.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.goodput_costs import Assumptions, Costs, state_moved
from benchmarks.goodput_traces import Trace
from raylm.checkpoint.save_schedule import SaveSchedule

NEVER = math.inf
# Where available GPU time goes that is not useful: nodes that are no members (yet, any more, or spare), groups that are
# formed, copies and saves that hold training up, and work that was lost.
CAUSES = ("nodes outside", "pauses", "copies", "saves", "done again")


@dataclass(frozen=True)
class Outcome:
    """GPU seconds, and how often things happened. `spent` is what is available and not useful, by what it went to."""

    useful: float
    available: float
    spent: dict[str, float]
    counts: dict[str, int]

    @property
    def goodput(self) -> float:
        """Useful over available."""
        return self.useful / self.available if self.available else 0.0


@dataclass(frozen=True)
class Event:
    """What happens to nodes: added, noticed (they go at `gone_at`) or removed."""

    seconds: float
    what: str
    nodes: tuple[str, ...]
    gone_at: float = NEVER


@dataclass(frozen=True)
class Copies:
    """A step whose shards lie in host memory: each node's own, and those of the node before it in the ring."""

    ring: tuple[str, ...]
    step: int

    def whole(self, gone: Iterable[str]) -> bool:
        """No node of the ring went together with the one that holds its copy."""
        lost = set(gone)
        pairs = zip(self.ring, self.ring[1:] + self.ring[:1], strict=True)
        return not any(one in lost and other in lost for one, other in pairs)


def simulate(trace: Trace, costs: Costs, *, begun: float = 0.0) -> Outcome:
    """Run the trace through; `begun` is the part of a step that is done when the run begins."""
    return _Run(trace, costs, begun).outcome()


class _Run:
    """The state of a run between two moments. A pause ends at `resume_at`; NEVER is too few nodes."""

    def __init__(self, trace: Trace, costs: Costs, begun: float) -> None:
        self.trace, self.costs, self.way = trace, costs, costs.way
        self.given: Assumptions = costs.assumptions
        self.events = deque(events(trace, self._notice_seconds()))
        self.now = self.available = 0.0
        self.ready_at: dict[str, float] = {}  # of every node that is there, in order of arrival
        self.leaving: dict[str, float] = {}  # nodes with a notice, and when they go
        self.step, self.done, self.begun = 0, begun, begun
        self.counts: Counter[str] = Counter()
        self.spent: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
        self.schedule = SaveSchedule(started=0.0)
        self.saved_step = 0
        self.upload: tuple[int, float] | None = None  # step and end of the save under way
        self.pending_copy: tuple[int, float] | None = None
        self.gone: set[str] = set()  # of the ring
        self.from_storage, self.forming = False, True
        self.resume_at = self.regrouped_at = 0.0
        self.members: tuple[str, ...] = ()
        self._trace_events()
        self.members = tuple(self.ready_at)[: self.given.max_nodes]
        self._formed()

    def outcome(self) -> Outcome:
        """The end of the run."""
        while self.now < self.trace.seconds:
            self._pass_time(min(self._next_moment(), self.trace.seconds))
            self._trace_events()
        useful = max(0.0, self.step + self.done - self.begun) * self.costs.batch_gpu_seconds
        self.spent["done again"] = max(0.0, self.available - useful - sum(self.spent.values()))
        return Outcome(useful, self.available, self.spent, dict(self.counts))

    # Time

    def _next_moment(self) -> float:
        event = self.events[0].seconds if self.events else NEVER
        if self.now >= self.resume_at:
            return min(event, self.now + (1 - self.done) * self.step_seconds)
        if self.resume_at == NEVER:
            return min([event, *(ready for ready in self.ready_at.values() if ready > self.now)])
        return min(event, self.resume_at)

    def _pass_time(self, until: float) -> None:
        seconds, training = until - self.now, self.now >= self.resume_at
        there = min(len(self.ready_at), self.given.max_nodes)
        self.available += there * self.costs.gpus_a_node * seconds
        self.now = until
        self._account(there, seconds, training)
        if training:
            self.done += seconds / self.step_seconds
            if self.done >= 1 - 1e-9:
                self._finish_step()
        elif self.forming and self.now >= self.resume_at:
            self._formed()
        elif self.resume_at == NEVER:
            self._regroup(self.members, lost=True)

    def _account(self, there: int, seconds: float, training: bool) -> None:
        gpu_seconds, members = self.costs.gpus_a_node * seconds, len(self.members)
        self.spent["nodes outside"] += (there - members) * gpu_seconds
        if training:
            useful = self.costs.batch_gpu_seconds / (members * self.costs.gpus_a_node * self.step_seconds)
            self.spent["copies"] += members * gpu_seconds * max(0.0, 1 - useful)
        else:
            self.spent["pauses" if self.forming else "saves"] += members * gpu_seconds

    def _formed(self) -> None:
        """A new group trains; its first copy was part of the pause. Who came during a restart takes part in it."""
        if not self.way.stays:
            self.members = tuple(self.ready_at)[: self.given.max_nodes]
        self.forming = self.from_storage = False
        self.step_seconds = self.costs.step_with_copies_seconds(len(self.members))
        self.copy_every = self.costs.copy_every_steps(len(self.members))
        self.safe, self.gone, self.pending_copy = Copies(self.members, self.step), set(), None
        self.copied_at = self.step
        self.schedule = self.schedule.resumed(self.step, self.now)
        self._leave_in_time()

    def _finish_step(self) -> None:
        self.step, self.done = self.step + 1, 0.0
        self._settle()
        if self._must_leave():
            self._leave()
        elif self._newcomers_are_due():
            self.counts["joins"] += 1
            self._regroup(self.members, lost=False)
        else:
            self._copy()
            self._save()

    def _copy(self) -> None:
        if self.pending_copy is None and self.step - self.copied_at >= self.copy_every:
            self.copied_at = self.step
            self.pending_copy = (self.step, self.now + self.costs.copy_seconds(len(self.members)))

    def _save(self) -> None:
        if self.upload is None and self.schedule.should_save(self.step, self.now):
            stall = self.costs.save_stall_seconds(len(self.members))
            upload = self.costs.storage_seconds(len(self.members))
            self.upload = (self.step, self.now + stall + upload)
            self.schedule = self.schedule.saving(self.step, self.now).measured(stall, stall + upload)
            self.resume_at = self.now + stall

    def _settle(self) -> None:
        """Copies and uploads that have ended by now count."""
        if self.pending_copy is not None and self.pending_copy[1] <= self.now:
            self.safe, self.pending_copy = replace(self.safe, step=self.pending_copy[0]), None
        if self.upload is not None and self.upload[1] <= self.now:
            self.saved_step, self.upload = self.upload[0], None

    # Nodes

    def _notice_seconds(self) -> float:
        notice = {"aws": self.given.aws_notice_seconds, "gcp": self.given.gcp_notice_seconds}
        return notice[self.trace.cloud] if self.way.notices else 0.0

    def _trace_events(self) -> None:
        while self.events and self.events[0].seconds <= self.now:
            event = self.events.popleft()
            if event.what == "added":
                self.ready_at |= dict.fromkeys(event.nodes, NEVER)
            elif event.what == "removed":
                self._removed(event.nodes)
            else:
                self.leaving |= {node: event.gone_at for node in event.nodes if node in self.ready_at}
                if not self.forming:
                    self._leave_in_time()
            self._invite()

    def _invite(self) -> None:
        """Nodes that a run has room for get ready; the others are spare."""
        room = self.given.max_nodes - len(self.members)
        waiting = [node for node in self.ready_at if node not in self.members and node not in self.leaving]
        for node in waiting[: max(room, 0)]:
            if self.ready_at[node] == NEVER:
                self.ready_at[node] = self.now + self.costs.join_seconds

    def _ready(self, *, all_there: bool) -> list[str]:
        return [
            node
            for node, ready in self.ready_at.items()
            if node not in self.members and node not in self.leaving and (all_there or ready <= self.now)
        ]

    def _newcomers_are_due(self) -> bool:
        nodes = len(self.members)
        if nodes >= self.given.max_nodes or not self._ready(all_there=False):
            return False
        if not (self.way.stays and self.way.copies):
            return True
        pause = self.costs.regroup_seconds(nodes, lost=False, moved=1 / nodes)
        return self.now - self.regrouped_at >= self.given.regroup_costs * pause

    # Losses, notices, regroups

    def _removed(self, nodes: tuple[str, ...]) -> None:
        self._settle()
        dead = [node for node in nodes if node in self.members]
        self.gone |= {node for node in nodes if node in self.safe.ring}
        for node in nodes:
            self.ready_at.pop(node, None)
            self.leaving.pop(node, None)
        if dead:
            self.counts["losses"] += 1
            self.schedule = replace(self.schedule, failures=self.schedule.failures + 1)
            self._roll_back(len(dead) / len(self.members))
            self._regroup([node for node in self.members if node not in dead], lost=True)

    def _roll_back(self, lost_share: float) -> None:
        """The state that is left, and what of the step under way."""
        if not self.way.stays:
            self.step, self.done = self.saved_step, 0.0
        elif self.way.copies and (self.from_storage or not self.safe.whole(self.gone)):
            self.counts["to storage"] += not self.from_storage
            self.step, self.done, self.from_storage = self.saved_step, 0.0, True
        elif self.way.copies and self.safe.step < self.step:
            self.counts["steps lost"] += self.step - self.safe.step
            self.step, self.done = self.safe.step, 0.0
        else:
            self._drop_part(lost_share)

    def _drop_part(self, share: float) -> None:
        self.done = 0.0 if self.way.redo == "whole_step" else self.done * (1 - share)

    def _leave_in_time(self) -> None:
        """At the end of the step where the notice is long enough for that, and else between two micro-batches."""
        leavers = [node for node in self.members if node in self.leaving]
        boundary = max(self.now, self.resume_at) + (1 - self.done) * self.step_seconds
        if leavers and self._too_late(boundary):
            self._drop_part(len(leavers) / len(self.members))
            self._leave()

    def _must_leave(self) -> bool:
        """After a step: a member has a notice that is to be acted on now."""
        if not any(node in self.leaving for node in self.members):
            return False
        return self.way.leave == "at_once" or self._too_late(self.now + self.step_seconds)

    def _too_late(self, boundary: float) -> bool:
        """A regroup that begins then is not over when the first of the leavers goes."""
        nodes = len(self.members)
        pause = self.costs.regroup_seconds(nodes, lost=False, moved=1 / nodes)
        return boundary + pause > min(self.leaving[node] for node in self.members if node in self.leaving)

    def _leave(self) -> None:
        self.counts["leaves"] += 1
        left = [node for node in self.members if node not in self.leaving]
        if len(left) * self.costs.gpus_a_node < self.given.min_gpus:
            deadline = min(self.leaving[node] for node in self.members if node in self.leaving)
            if self.now + self.costs.storage_seconds(len(self.members)) <= deadline:
                self.saved_step = self.step
            self.step, self.done, self.from_storage = self.saved_step, 0.0, True
        self._regroup(left, lost=False)

    def _regroup(self, left: Iterable[str], *, lost: bool) -> None:
        """Pause, then train with those that are left and all that are ready; a restart takes all that are there."""
        self.members = tuple(left)
        newcomers = self._ready(all_there=not self.way.stays)
        members = (self.members + tuple(newcomers))[: self.given.max_nodes]
        self.upload = None
        self.forming, self.regrouped_at = True, self.now
        if len(members) * self.costs.gpus_a_node < self.given.min_gpus:
            self.from_storage |= not self.members
            self.step = min(self.step, self.saved_step) if self.from_storage else self.step
            self.resume_at = NEVER
            return
        self.members = members
        if self.way.stays:
            moved = state_moved(self.safe.ring, self.gone, members)
            pause = self.costs.regroup_seconds(len(members), lost=lost, moved=moved, stored=self.from_storage)
        else:
            self.saved_step = self.saved_step if lost else self.step
            pause = self.costs.restart_seconds(len(members), lost=lost)
        self.counts["pauses"] += 1
        self.resume_at = self.now + pause


def events(trace: Trace, notice_seconds: float) -> list[Event]:
    """The trace's changes in order of time, with notices where there are any; none comes before its node."""
    found, arrived = list[Event](), dict[str, float]()
    for change in trace.changes:
        arrived |= dict.fromkeys(change.added, change.seconds)
        told = {node: max(arrived[node], change.seconds - notice_seconds) for node in change.removed}
        for at in sorted(set(told.values())) if notice_seconds else ():
            found.append(Event(at, "noticed", tuple(node for node in told if told[node] == at), change.seconds))
        found += [Event(change.seconds, "removed", change.removed)] if change.removed else []
        found += [Event(change.seconds, "added", change.added)] if change.added else []
    order = ("removed", "added", "noticed")
    return sorted(found, key=lambda event: (event.seconds, order.index(event.what)))
