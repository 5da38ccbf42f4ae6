"""What one attempt holds while it runs, and how its workers talk to the coordinator."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from raylm.config.job import Job
from raylm.errors import RaylmError
from raylm.records import Progress
from raylm.storage import StoragePath
from raylm.train.coordinator import Coordinator, Seat

if TYPE_CHECKING:
    from raylm.checkpoint.save import PendingSave
    from raylm.checkpoint.save_schedule import SaveSchedule
    from raylm.stream.loader import Dataset
    from raylm.train.engine import Engine
    from raylm.train.group import Group


class LeaveGroup(Exception):
    """The attempt ends on purpose, with its state saved; not an error of the run."""


class Desk(Protocol):
    """How a worker talks to the coordinator, wherever that lives."""

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Call without waiting."""

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call and wait for the answer."""


class LocalDesk:
    """A coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        getattr(self._coordinator, name)(*args, **kwargs)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._coordinator, name)(*args, **kwargs)


class SilentDesk:
    """For ranks of a run without Ray that are not the first: only rank 0 keeps the log."""

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        return None

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return None


# Calls that write the run's record: carried out one by one in the order they were made, so that a flush before a
# commit holds every step before it. The others must not wait behind a slow upload.
RECORDING = {"metric", "audit", "event", "flush", "started", "left", "finish", "fail", "close"}


class ActorDesk:
    """A coordinator behind a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def tell(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._send(name, args, kwargs)

    def _send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        method = self._actor.record if name in RECORDING else self._actor.call
        return method.remote(name, *args, **kwargs)

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(self._send(name, args, kwargs))
        except RayTaskError as error:
            if isinstance(error.cause, RaylmError):
                raise error.cause from None  # Ray's wrapper would show a person a traceback
            raise


@dataclass
class Session:
    """What one attempt holds while it runs."""

    job: Job
    seat: Seat
    desk: Desk
    group: Group
    engine: Engine
    sources: list[Dataset]
    fingerprint: str
    progress: Progress
    run: StoragePath
    model_config: dict[str, Any]
    save_schedule: SaveSchedule
    pending: PendingSave | None = None
    saved_step: int = 0
    save_failure: str = ""  # why the last save that failed did
    held_out: dict[int, float] = field(default_factory=dict)

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for the group."""
        return self.seat.rank == 0


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
