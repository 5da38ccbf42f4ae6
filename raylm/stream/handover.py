"""Which blocks of a plan threads read and which Ray Data, decided in one place; knows neither of them.

    WARMING ──begin──▶ DELIVERING ──failure, or silence──▶ GIVEN_UP        any ──close──▶ CLOSED
       └───────────────failure─────────────────────────────▲

While Ray Data warms up, threads read the whole plan. When it is warm they are left a margin, and what follows is owed
by Ray Data: it hands over rows in the plan's order, and whatever it is late with is lent to threads. Once it is given
up, threads read what it owes and all that follows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from raylm.errors import RaylmError
from raylm.shards import Rows
from raylm.stream.lanes import Block


class Phase(Enum):
    """Who reads the plan."""

    WARMING = "threads, until Ray Data is warm"
    DELIVERING = "Ray Data, and threads what it is late with"
    GIVEN_UP = "threads, since Ray Data failed"
    CLOSED = "nobody"


@dataclass(frozen=True)
class Limits:
    """How much is kept ready, and how long anything is waited for.

    late_seconds: until the next blocks are lent to threads, `lent_blocks` at first and twice as many each time.
    silent_seconds: until Ray Data is given up. margin: seconds of reading, or blocks, left to threads at the start.
    """

    ahead_rows: int
    most_rows: int
    late_seconds: float = 1.0
    silent_seconds: float = 60.0
    lent_blocks: int = 4
    most_lent_blocks: int = 256
    margin_seconds: float = 1.5
    margin_blocks: int = 1024


@dataclass(frozen=True)
class Lent:
    """Blocks for threads to read now; `given_up` says why these are all that are left."""

    blocks: Iterator[Block]
    given_up: str | None = None


Delivery = Rows | RaylmError


class Handover:
    """The state between a consumer of blocks, its threads, and the thread that runs Ray Data."""

    def __init__(self, plan: Iterator[Block], limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()  # guards all that follows: several threads take blocks from the plan
        self._plan = plan
        self._phase = Phase.WARMING
        self._began = clock()
        self._served = 0  # blocks that threads have read so far
        self._margin: deque[Block] = deque()  # left to threads when Ray Data began
        self._owed: deque[Block] = deque()  # asked of Ray Data, and not yet with the consumer
        self._ready: deque[Delivery] = deque()  # of what is owed, what has come
        self._passed = 0  # how many of what was asked of Ray Data the consumer has, from whomever
        self._arrived = 0  # how many have come from Ray Data
        self._wanted_rows = max(1, limits.ahead_rows // 2)
        self._heard = 0.0  # when Ray Data last delivered, or was asked to
        self._lent = 0
        self._failure: str | None = None
        self._bug: Exception | None = None

    @property
    def phase(self) -> Phase:
        """Who reads the plan now."""
        with self._changed:
            return self._phase

    # What the consumer calls.

    def for_threads(self) -> Iterator[Block]:
        """The blocks that threads read at the start: the plan, until Ray Data begins, and then the margin."""
        while True:
            with self._changed:
                warming = self._phase is not Phase.DELIVERING
                block = next(self._plan, None) if warming else self._margin.popleft() if self._margin else None
            if block is None:
                return
            yield block

    def served(self) -> None:
        """Count a block that threads have read."""
        with self._changed:
            self._served += 1

    def take(self) -> tuple[Block, Delivery] | Lent:
        """The next block that Ray Data owes with what it gave for it, or what threads have to read instead."""
        limits = self._limits
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._ready or self._failure or self._bug, timeout=limits.late_seconds)
                if self._bug is not None:
                    raise self._bug
                if self._ready:
                    self._passed += 1
                    self._lent = 0
                    self._changed.notify_all()
                    return self._owed.popleft(), self._ready.popleft()
                if self._failure or self._clock() - self._heard > limits.silent_seconds:
                    break
                if self._owed:
                    return Lent(iter(self._lend()))
            reason = self._failure or f"it gave nothing for {limits.silent_seconds:g} s"
            self._phase = Phase.GIVEN_UP
            blocks = itertools.chain(tuple(self._owed), self._plan)
            self._owed.clear()
            self._changed.notify_all()
            return Lent(blocks, given_up=reason)

    def close(self) -> None:
        """Nothing more is read; safe to call twice."""
        with self._changed:
            self._phase = Phase.CLOSED
            self._ready.clear()
            self._changed.notify_all()

    # What the thread that runs Ray Data calls.

    def closed_within(self, seconds: float) -> bool:
        """Wait so long, or until the consumer closes, which is the answer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._phase is Phase.CLOSED, timeout=seconds)

    def begin(self) -> None:
        """Ray Data is warm: what the consumer takes until its first blocks come is left to threads, the rest is its."""
        with self._changed:
            if self._phase is not Phase.WARMING:
                return
            rate = self._served / max(self._clock() - self._began, 0.1)
            margin = min(self._limits.margin_blocks, 1 + int(rate * self._limits.margin_seconds))
            self._margin = deque(itertools.islice(self._plan, margin))
            self._phase = Phase.DELIVERING
            self._heard = self._clock()

    def ask(self) -> list[Block] | None:
        """The next blocks for Ray Data, once half of what is kept is used; None when it has nothing more to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._phase is not Phase.DELIVERING or self._kept_rows() <= self._wanted_rows
            )
            if self._phase is not Phase.DELIVERING:
                return None
            if self._arrived and not self._ready:
                self._wanted_rows = min(2 * self._wanted_rows, self._limits.most_rows)  # the consumer is faster
            blocks: list[Block] = []
            held = 0
            while held < self._wanted_rows and (block := next(self._plan, None)) is not None:
                blocks.append(block)
                held += len(block.rows)
            self._owed.extend(blocks)
            self._heard = self._clock()
            return blocks

    def put(self, rows: Delivery) -> bool:
        """Keep the next block's rows for the consumer, unless threads were faster; False when nobody wants more."""
        with self._changed:
            if self._phase is not Phase.DELIVERING:
                return False
            self._heard = self._clock()
            if self._arrived >= self._passed:
                self._ready.append(rows)
                self._changed.notify_all()
            self._arrived += 1
            return True

    def fail(self, reason: str) -> Phase:
        """Ray Data cannot go on; the answer is the phase in which it failed."""
        with self._changed:
            before = self._phase
            if before is Phase.WARMING:
                self._phase = Phase.GIVEN_UP
            elif before is Phase.DELIVERING:
                self._failure = reason
            self._changed.notify_all()
            return before

    def crash(self, error: Exception) -> None:
        """A fault of this program: the consumer gets it instead of a block."""
        with self._changed:
            self._bug = error
            self._changed.notify_all()

    def _lend(self) -> list[Block]:
        # More each time: Ray Data has to come past what threads read meanwhile, which it reads in vain.
        limits = self._limits
        self._lent = min(max(limits.lent_blocks, 2 * self._lent), limits.most_lent_blocks, len(self._owed))
        lent = [self._owed.popleft() for _ in range(self._lent)]
        self._passed += len(lent)
        return lent

    def _kept_rows(self) -> int:
        return sum(0 if isinstance(rows, RaylmError) else len(rows.tokens) for rows in self._ready)
