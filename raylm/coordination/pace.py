"""What steps, regroups and saves took last, and what fits between them."""

from __future__ import annotations

from collections.abc import Callable

# Of the time, what joins may take: after a regroup that cost a second, ten seconds pass before the next.
JOIN_SHARE = 0.1
# A generation without a step for so long, or for so many steps, may hang.
STILL_SECONDS, STILL_STEPS = 10.0, 1.5
WHOLE_STEP_SECONDS = 1.0  # a step that takes no longer is not left half done


class Pace:
    """The newest measurements of a run. join_interval: seconds between joins, None to let the last regroup decide."""

    def __init__(self, join_interval: float | None, clock: Callable[[], float]) -> None:
        self._join_interval, self._clock = join_interval, clock
        self._step_seconds, self._regroup_seconds, self._save_seconds = 0.0, 1.0, 0.0
        self._stepped_at: float | None = None  # when the newest generation finished its last step
        self._progress_at = clock()
        self._regroup_began: float | None = None
        self._join_after = 0.0

    def generation_began(self, wished_at: float | None) -> None:
        """Another generation is placed, of a regroup that was wished for then."""
        self._stepped_at, self._progress_at = None, self._clock()
        if wished_at is not None:
            self._regroup_began = wished_at

    def stepped(self, seconds: float) -> None:
        """A step is finished; the first one of a generation ends the regroup that it came of."""
        now = self._clock()
        self._step_seconds, self._stepped_at, self._progress_at = seconds, now, now
        if self._regroup_began is not None:
            self._regroup_seconds, self._regroup_began = now - self._regroup_began, None
            interval = self._join_interval
            self._join_after = now + (self._regroup_seconds / JOIN_SHARE if interval is None else interval)

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long."""
        self._save_seconds = seconds

    def may_join(self) -> bool:
        """Whether it is time for a regroup that only joins."""
        return self._regroup_began is None and self._clock() >= self._join_after

    def stands_still(self, since: float) -> bool:
        """Whether there was no progress for too long, nor anything else since then."""
        return self._clock() - max(self._progress_at, since) > max(STILL_SECONDS, STILL_STEPS * self._step_seconds)

    def leave_seconds(self) -> float:
        """From asking a worker to leave until the others go on without it, with as much again to spare."""
        return 2 * (self._step_seconds + self._regroup_seconds + self._save_seconds)

    def boundary(self) -> float | None:
        """When the step under way should be finished; None where nobody knows, and for short steps."""
        if self._stepped_at is None or self._step_seconds <= WHOLE_STEP_SECONDS:
            return None
        return max(self._clock(), self._stepped_at + self._step_seconds)
