"""What a body holds: `RunContext` outlives a process group, `ActiveGroup` and `Tenure` end with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.coordination.contract import Coordination, Member, Reason
from raylm.records import Progress
from raylm.run.folder import RunFolder
from raylm.run.identity import Identity
from raylm.run.metrics import StepMetrics

if TYPE_CHECKING:
    from raylm.checkpoint.copies import Keeper, Snapshot
    from raylm.checkpoint.copy_schedule import CopySchedule
    from raylm.checkpoint.save import PendingSave
    from raylm.checkpoint.save_schedule import SaveSchedule
    from raylm.checkpoint.state import Parent
    from raylm.coordination.stragglers import RankTimes
    from raylm.stream.loader import Dataset
    from raylm.train.engine import Engine
    from raylm.train.group import Group

# Told lines that every rank keeps, in case the rank that told them dies on the way.
LINES = 64


class GroupEnded(Exception):
    """This body's group ends on purpose, which is no error of the run: another one goes on."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.name.lower()


@dataclass(frozen=True)
class StepLine:
    """What is recorded of one step. rows: (lane, sequence id, epoch) of all it trained on, where that is audited."""

    metrics: StepMetrics
    rows: Sequence[tuple[int, int, int]] = ()
    bad_loss: str | None = None


@dataclass(frozen=True)
class SaveUnderWay:
    """This body's part of a checkpoint on its way to storage, and whether it is the one that commits it."""

    save: PendingSave
    step: int
    fence: int
    commits: bool


@dataclass
class RunContext:
    """A run as one body knows it, across groups.

    held_out: losses by step. saved_step: the newest committed one. snapshots: the state in memory that outlived the
    group before. lines: of the last steps.
    """

    job: Job
    folder: RunFolder
    datasets: list[Dataset]
    identity: Identity
    coordination: Coordination
    save_schedule: SaveSchedule
    copy_schedule: CopySchedule
    progress: Progress = field(default_factory=Progress)
    model_config: dict[str, Any] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)  # held-out losses so far, as many as checkpoints are kept for
    saved_step: int = 0
    parent: Parent | None = None  # what the run was branched from
    save_failure: str = ""  # why the last save that failed did
    pending: SaveUnderWay | None = None
    goes_without: bool = False  # host memory is too little for copies, and that was told
    snapshots: list[Snapshot] = field(default_factory=list)
    lines: deque[StepLine] = field(default_factory=lambda: deque(maxlen=LINES))


@dataclass
class Tenure:
    """A body's time in one generation, as its threads share it.

    wish: why the group should end, as far as this body was told. cut: it is over, at whatever point. abandoned: the
    thread that trained in it is stuck and was left behind; whatever it still does must touch nothing that lives on.
    ending: the thread is leaving by itself. under_way: gives the micro-batches of a step that is not finished.
    """

    member: Member
    wish: Reason | None = None
    cut: bool = False
    abandoned: bool = False
    ending: bool = False
    under_way: Callable[[], int] = int
    keeper: Keeper | None = None


@dataclass
class ActiveGroup:
    """A body's membership in one process group, and what it holds only there."""

    tenure: Tenure
    group: Group
    engine: Engine
    times: RankTimes
    fence: int | None = None  # claimed at the first save

    @property
    def member(self) -> Member:
        """Who this body is in the group."""
        return self.tenure.member

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for the group."""
        return self.member.rank == 0
