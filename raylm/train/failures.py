"""How often in a row the program itself failed at the same step."""

from __future__ import annotations


class ProgramFailures:
    """Errors of the program's own, counted anew at every step where one happens."""

    def __init__(self) -> None:
        self.count = 0
        self._step = -1
        self._generation = 0

    def add(self, step: int, generation: int) -> int:
        """Count an error after `step` and return how many there were in a row; one that several ranks met is one.

        generation: whose error it is, 0 for a body's that was in none.
        """
        if step != self._step:
            self._step, self.count, self._generation = step, 0, 0
        if not generation or generation != self._generation:
            self.count += 1
        self._generation = generation or self._generation
        return self.count
