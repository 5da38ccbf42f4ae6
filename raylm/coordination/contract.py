"""The contract between the bodies that train a run, its driver, and the hub that keeps the run's record.

`Coordination` is what a body may call, `Control` what the driver may; the coordinator is both. In its own process it is
called directly; `actor_client` calls it behind a Ray actor, and `SilentCoordination` serves ranks that no coordinator
listens to. How a call travels is marked on the method of the contract. What has to arrive at once, who is in the group
and when to leave it, does not come this way but over `link`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NewType, Protocol, TypeVar, cast

from raylm.coordination.rounds import Held
from raylm.errors import RaylmError
from raylm.run.events import Event
from raylm.run.metrics import StepMetrics

# One process group of a run: who has the same collectives. Reports of an older one are not heard.
Generation = NewType("Generation", int)
# Who may commit to the run's storage: a holder of an older fence may not.
Fence = NewType("Fence", int)

Method = TypeVar("Method", bound=Callable[..., Any])


class Reason(IntEnum):
    """Why a group should end at a step's boundary. The number travels in an all-reduce, 0 when there is none."""

    REGROUP = 1  # a body joins or leaves: go on in another group, with the state that is in memory
    PREEMPTION_NOTICE = 2  # every node of the group is about to be reclaimed: save, and end
    STOP = 3  # save, and end the run
    STALE = 4  # the run goes on, or ends, without this group: end without saving


@dataclass(frozen=True)
class Member:
    """One body's membership in one generation.

    address: the "host:port" of the store at which it meets. nodes: each rank's machine, by an opaque name. resume: the
    state in the members' memory that it goes on from, None for storage. told: the last step on record. evaluated: the
    last step whose held-out loss is. committed: the step of the newest checkpoint. serve: whether rank 0 has to serve
    that store.
    """

    rank: int
    size: int
    generation: Generation
    address: str
    nodes: tuple[str, ...] = ()
    resume: Held | None = None
    told: int = 0
    evaluated: int = 0
    committed: int = 0
    serve: bool = True
    local_rank: int = 0


@dataclass(frozen=True)
class FailureHistory:
    """Failures of a run so far, and the seconds it spent stepping."""

    failures: int = 0
    training_seconds: float = 0.0


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. step: the last one finished or started from. error: one that nothing but a person can mend.

    ended: nothing is trained any more, for whatever reason. nodes: the machine of each rank of the newest generation.
    """

    step: int
    finished: bool
    error: RaylmError | None
    ended: bool = False
    nodes: tuple[str, ...] = ()


def in_order(method: Method) -> Method:
    """Mark a call that writes the run's record: such calls are carried out one by one, in the order they were made.

    So a flush before a commit holds every step before it. The others must not wait behind a slow upload.
    """
    method.__in_order__ = True  # type: ignore[attr-defined]
    return method


def reported(method: Method) -> Method:
    """Mark a call that is in order and not waited for."""
    method.__reported__ = True  # type: ignore[attr-defined]
    return in_order(method)


class Coordination(Protocol):
    """What a body tells the coordinator and asks of it."""

    def history(self) -> FailureHistory:
        """What the run went through so far."""

    def fence(self, generation: Generation) -> Fence:
        """The right to commit as this generation, claimed when it is first asked for: older ones end with that."""

    @in_order
    def started(
        self, generation: Generation, *, step: int, checkpoint: str | None, phases: Mapping[str, float]
    ) -> None:
        """The group holds the state of `step`; metrics after it are about to be trained again.

        checkpoint: where the state came from, None for memory and for a fresh start. phases: seconds that rank 0 spent
        on each part of getting there.
        """

    @reported
    def report_metric(self, generation: Generation, metrics: StepMetrics) -> None:
        """Record a finished step."""

    @reported
    def report_audit(self, generation: Generation, step: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """Record the (lane, sequence id, epoch) of all that one step trained on."""

    @reported
    def report_event(self, generation: Generation, event: Event) -> None:
        """Record an event."""

    @in_order
    def flush(self) -> None:
        """Return when all that was reported before can be read in the run folder."""

    @in_order
    def stopped(self, generation: Generation, reason: Reason, step: int) -> None:
        """The group has saved `step` and ends, as requested."""

    @in_order
    def fail(self, generation: Generation | None, error: RaylmError) -> None:
        """Report an error that nothing but a person can mend; the first one counts. None: of no group yet."""

    @in_order
    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """The last step is trained and saved."""


class Control(Protocol):
    """What the driver asks of the coordinator."""

    def request_stop(self) -> bool:
        """Have the group save and end the run at its next step; False when no group is there to hear it."""

    def superseded(self, by: str) -> None:
        """Another driver trains this run: nothing more is written, and the group ends at its next step."""

    def status(self) -> RunStatus:
        """Where the run stands."""

    def feed(self, start: int) -> tuple[int, list[StepMetrics | Event]]:
        """Steps and events recorded since position `start`, and the new position."""

    @in_order
    def close(self) -> None:
        """Write out everything and let go."""


class Coordinating(Coordination, Control, Protocol):
    """Both sides of the contract."""


@dataclass(frozen=True)
class Call:
    """How a method of the contract travels. in_order: after those before it. answered: the caller waits."""

    name: str
    in_order: bool
    answered: bool


def calls() -> Iterator[Call]:
    """Every method of both sides of the contract."""
    for protocol in (Coordination, Control):
        for name, method in vars(protocol).items():
            if callable(method) and not name.startswith("_"):
                yield Call(name, hasattr(method, "__in_order__"), not hasattr(method, "__reported__"))


def actor_client(actor: Any) -> Coordinating:
    """The coordinator behind a Ray actor's handle, which offers each method of the contract."""
    return cast(Coordinating, _ActorClient(actor))


class _ActorClient:
    """Forwards each method of the contract; the methods are made below."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor


def _forwarding(call: Call) -> Callable[..., Any]:
    def method(client: _ActorClient, *args: Any, **kwargs: Any) -> Any:
        reference = getattr(client._actor, call.name).remote(*args, **kwargs)
        return _answer(reference) if call.answered else None

    return method


def _answer(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaylmError):
            raise error.cause from None  # Ray's wrapper would show a person a traceback
        raise


for _call in calls():
    setattr(_ActorClient, _call.name, _forwarding(_call))


class SilentCoordination:
    """For ranks of a run without Ray that are not the first: only rank 0 keeps the run's record."""

    def history(self) -> FailureHistory:
        """Nothing is known."""
        return FailureHistory()

    def fence(self, generation: Generation) -> Fence:
        """Rank 0 claims it, for all."""
        return Fence(0)

    def started(
        self, generation: Generation, *, step: int, checkpoint: str | None, phases: Mapping[str, float]
    ) -> None:
        """Nobody listens."""

    def report_metric(self, generation: Generation, metrics: StepMetrics) -> None:
        """Nobody listens."""

    def report_audit(self, generation: Generation, step: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """Nobody listens."""

    def report_event(self, generation: Generation, event: Event) -> None:
        """Nobody listens."""

    def flush(self) -> None:
        """Nothing is written here."""

    def stopped(self, generation: Generation, reason: Reason, step: int) -> None:
        """Nobody listens."""

    def fail(self, generation: Generation | None, error: RaylmError) -> None:
        """Nobody listens."""

    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """Nobody listens."""
