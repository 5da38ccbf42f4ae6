"""When to say that a run waits for workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raylm.run.events import Waiting

WAITING_SECONDS = 10.0  # with too few bodies before that is reported
START_SECONDS = 60.0  # a start waits so long for bodies that are still starting


class Patience:
    """Says once that there have been too few workers, and no room for more, for a while. needs: the fewest."""

    def __init__(self, needs: int, per_worker: Mapping[str, float], clock: Callable[[], float]) -> None:
        self._needs, self._per_worker, self._clock = needs, dict(per_worker), clock
        self._whole_at = clock()
        self._said = False

    def at_an_end(self, *, starting: bool) -> bool:
        """Whether to look for room, to report that there is none. starting: there was room enough at the start."""
        waited = self._clock() - self._whole_at
        return not self._said and waited > (START_SECONDS if starting else WAITING_SECONDS)

    def report(self, here: int, room: int | None, *, training: bool) -> Waiting | None:
        """What to report of a run with so many workers that stay, and room for so many more, None if unknown."""
        if here >= self._needs or training:
            self._whole_at, self._said = self._clock(), False
        elif room is not None and here + room < self._needs:
            self._said = True
            return Waiting(workers=0, fits=here + room, needs_workers=self._needs, per_worker=self._per_worker)
        return None
