"""The contract between the workers of a run, what launches them, and the coordinator that outlives both.

`Coordination` is what a worker may call, `Control` what the driver and Ray Train's policies may; the coordinator is
both. In its own process it is called directly; `actor_client` calls it behind a Ray actor, and `SilentCoordination`
serves ranks that no coordinator listens to. How a call travels is marked on the method of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NewType, Protocol, TypeVar, cast

from raylm.errors import RaylmError
from raylm.run.events import Event, StepMetrics

# One set of worker processes that Ray Train started. It ends with the first of them.
Attempt = NewType("Attempt", int)
# One process group of a run: who has the same collectives. Reports of an older one are not heard.
Generation = NewType("Generation", int)
# Who may commit to the run's storage: a holder of an older fence may not.
Fence = NewType("Fence", int)

Method = TypeVar("Method", bound=Callable[..., Any])


class Reason(IntEnum):
    """Why a group should save and end. The number travels in an all-reduce, 0 when there is none."""

    GROW = 1  # more workers fit: start again with more
    PREEMPTION_NOTICE = 2  # a node is about to be reclaimed: start again without it
    STOP = 3  # end the run
    STALE = 4  # a newer generation, or another driver, has begun: end without saving
    SHRINK = 5  # another run of the cluster waits for workers: start again with fewer


@dataclass(frozen=True)
class Assignment:
    """What the workers of the newest attempt belong to."""

    attempt: Attempt
    generation: Generation
    fence: Fence


@dataclass(frozen=True)
class Member:
    """One worker's membership in one generation. address: rank 0's "host:port". node: an opaque name of the machine."""

    rank: int
    size: int
    assignment: Assignment
    address: str
    local_rank: int = 0
    node: str = ""

    @property
    def generation(self) -> Generation:
        """The process group it is a member of."""
        return self.assignment.generation


@dataclass(frozen=True)
class FailureHistory:
    """Failures of a run so far, and the seconds it spent stepping."""

    failures: int = 0
    training_seconds: float = 0.0


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. step: the last one finished or started from. error: one that no restart can mend."""

    step: int
    finished: bool
    error: RaylmError | None


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
    """What a worker tells the coordinator and asks of it."""

    def assignment(self) -> Assignment:
        """What the newest attempt's workers belong to."""

    def register(self, generation: Generation, rank: int, node: str, address: str | None) -> None:
        """Become a member; rank 0 also gives the address at which the group meets."""

    def address(self, generation: Generation) -> str | None:
        """Where a generation meets, once its rank 0 has registered."""

    def history(self) -> FailureHistory:
        """What the run went through so far."""

    def stop_requested(self, generation: Generation) -> Reason | None:
        """Why this generation should save and end, if it should."""

    @in_order
    def started(
        self, generation: Generation, *, step: int, checkpoint: str | None, phases: Mapping[str, float]
    ) -> None:
        """The group holds the state of `step`, from `checkpoint`; metrics after it are about to be trained again.

        phases: seconds that rank 0 spent on each part of getting there.
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
    def fail(self, generation: Generation, error: RaylmError) -> None:
        """Report an error that no restart can mend; the first one counts."""

    @in_order
    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """The last step is trained and saved."""


class Control(Protocol):
    """What the driver and Ray Train's policies ask of the coordinator."""

    def begin(self, size: int) -> Assignment:
        """Begin an attempt of `size` workers; older ones are not heard any more and may not commit."""

    def nodes(self) -> list[str]:
        """The node of each member of the newest generation."""

    def request_stop(self, reason: Reason, *, capacity: int | None = None) -> bool:
        """Have the group save and end at its next step; False when no group is there to hear it.

        A request to STOP outlives the group. capacity: workers that would fit besides, where the reason is GROW.
        """

    def group_ended(self, losses: Mapping[int, str]) -> bool:
        """A group ended; whether another attempt makes sense. losses: what happened to each rank, one line each."""

    def waiting(self, *, fits: int, needs_workers: int, per_worker: Mapping[str, float]) -> None:
        """Record that the cluster has the capacity for too few workers to go on."""

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

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment

    def assignment(self) -> Assignment:
        """What rank 0 passed on."""
        return self._assignment

    def register(self, generation: Generation, rank: int, node: str, address: str | None) -> None:
        """Nobody listens."""

    def address(self, generation: Generation) -> str | None:
        """Unknown here."""
        return None

    def history(self) -> FailureHistory:
        """Nothing is known."""
        return FailureHistory()

    def stop_requested(self, generation: Generation) -> Reason | None:
        """Rank 0 hears requests."""
        return None

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

    def fail(self, generation: Generation, error: RaylmError) -> None:
        """Nobody listens."""

    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """Nobody listens."""
