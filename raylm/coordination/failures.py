"""How often in a row the program itself failed at the same step."""

from __future__ import annotations

from raylm.errors import TrainingError


class ProgramFailures:
    """Errors of the program's own, counted anew at every step where one happens. most: that a run survives."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0
        self._step = -1
        self._generation = 0

    def add(self, step: int, generation: int, message: str) -> TrainingError | None:
        """Count an error after `step`, one that several ranks met as one; what ends the run where it is one too many.

        generation: whose error it is, 0 for a body's that was in none.
        """
        if step != self._step:
            self._step, self.count, self._generation = step, 0, 0
        if not generation or generation != self._generation:
            self.count += 1
        self._generation = generation or self._generation
        if self.count <= self._most:
            return None
        return TrainingError(
            f"the program failed {self.count} times in a row at step {step}: {message}",
            hint="mend the cause above, or raise workers.max_failures; the same command resumes",
        )
