"""What a worker holds: `RunContext` outlives a process group, `ActiveGroup` ends with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.records import Progress
from raylm.run.folder import RunFolder
from raylm.run.identity import Identity
from raylm.train.coordination import Coordination, Member, Reason

if TYPE_CHECKING:
    from raylm.checkpoint.save import PendingSave
    from raylm.checkpoint.save_schedule import SaveSchedule
    from raylm.checkpoint.state import Parent
    from raylm.stream.loader import Dataset
    from raylm.train.engine import Engine
    from raylm.train.group import Group


class GroupEnded(Exception):
    """This worker's group ends on purpose, which is no error of the run: another one goes on."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.name.lower()


@dataclass
class RunContext:
    """A run as one worker knows it, across groups. held_out: losses by step. saved_step: the newest committed one."""

    job: Job
    folder: RunFolder
    datasets: list[Dataset]
    identity: Identity
    coordination: Coordination
    save_schedule: SaveSchedule
    progress: Progress = field(default_factory=Progress)
    model_config: dict[str, Any] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    saved_step: int = 0
    parent: Parent | None = None  # what the run was branched from
    save_failure: str = ""  # why the last save that failed did


@dataclass
class ActiveGroup:
    """A worker's membership in one process group, and what it holds only there."""

    member: Member
    group: Group
    engine: Engine
    pending: PendingSave | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for the group."""
        return self.member.rank == 0
