"""A body: a process that trains in one generation after another, and holds the state between them in its memory.

The main thread hears the hub and decides; a thread a generation trains. One that is stuck in a collective when its
generation is cut is left behind with all it holds, since nothing ends a blocked send of gloo's.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from raylm.coordination.contract import Coordination, Generation, Reason
from raylm.coordination.messages import Birth, held_line, member_of
from raylm.coordination.reach import CONNECT_SECONDS
from raylm.errors import RaylmError, first_line
from raylm.runtime.link import Link
from raylm.runtime.ports import listening
from raylm.threads import settle
from raylm.train.context import GroupEnded, RunContext, Tenure
from raylm.train.host_memory import held_by, keep_snapshots
from raylm.train.saving import give_up_save, settle_save
from raylm.train.stalls import StallWatch
from raylm.train.worker import Phases, open_run, prepare_process, train_in_group

if TYPE_CHECKING:
    from raylm.runtime.wires import Message

log = logging.getLogger(__name__)

# A thread that stands in the same collective for so long after the cut will not leave it.
STUCK_SECONDS = 0.3
# A thread that computes comes to the end of what it computes, and ends there.
BUSY_SECONDS = 20.0
LEAVE_SECONDS = 10.0
LOOK_SECONDS = 1.0  # from one look at the generation's progress to the next


class Cut(Exception):
    """Raised inside the thread of a generation that is over."""


class Body:
    """One body's life, from its birth until the hub lets it go.

    node: its machine, by an opaque name. host: what others reach it at.
    """

    def __init__(self, birth: Birth, node: str, host: str, coordination: Coordination) -> None:
        self._node, self._host = node, host
        self._name = f"{host} ({node[:8]})"  # of its machine, for people
        self._birth, self._job, self._coordination = birth, birth.job, coordination
        self._news = threading.Condition()
        self._orders: list[Message] = []
        self._tenure: Tenure | None = None
        self._cut = 0  # the newest generation that is over for good
        self._last = 0  # the newest one that this body was in
        self._leave: Message | None = None
        self._welcome: Message | None = None
        self._link: Link | None = None

    def live(self) -> None:
        """Train whatever generation the hub places this body in; returns when it is let go."""
        birth = self._birth
        self._link = link = Link(
            birth.address,
            birth.token,
            birth.number,
            self._heard,
            self._orphaned,
            patience_seconds=3 * birth.patience_seconds,
            node=self._node,
            name=self._name,
            clock=time.time(),
            pid=os.getpid(),
        )
        try:
            context = self._prepared()
        except RaylmError as error:
            self._coordination.fail(None, error)
            return
        from raylm.train.group import serve_store

        store, address = serve_store(self._host)  # for as long as this process lives
        self._enlist(context, address, left=0, how="new")
        while (place := self._placed()) is not None:
            member = member_of(place)
            self._last = member.generation
            tenure = Tenure(member, cut=member.generation <= self._cut)
            how, message = self._spend(context, tenure)
            if how == "over":
                break
            redone = tenure.under_way()
            self._enlist(context, address, left=member.generation, how=how, message=message, redone=redone)
        settle_save(context, Generation(self._last), LEAVE_SECONDS)
        link.close()
        del store

    def _enlist(
        self, context: RunContext, address: str, *, left: int, how: str, message: str = "", redone: int = 0
    ) -> None:
        """Be ready for the next round.

        left: the generation that this body was in. step: the last one it finished. redone: micro-batches thrown away.
        """
        assert self._link is not None
        line = {"kind": "enlist", "address": address, "left": left, "how": how, "message": message, "redone": redone}
        held = [held_line(one) for one in held_by(context)]
        self._link.send({**line, "held": held, "step": context.progress.step})

    # -- before the first generation -----------------------------------------------------------------------------

    def _prepared(self) -> RunContext:
        prepare_process(self._job)
        context = open_run(self._job, self._coordination)
        with self._news:
            self._news.wait_for(lambda: self._welcome is not None or self._leave is not None, 60)
        if self._welcome is not None and self._welcome.get("warm"):
            from raylm.train.warm_up import warm_up

            warm_up(context)  # beside the others' training, which then waits the less for this body
        gc.collect()
        gc.freeze()  # what was imported lives on, and need not be looked at whenever a group is left
        return context

    # -- one generation ------------------------------------------------------------------------------------------

    def _placed(self) -> Message | None:
        """The next place, None when this body is let go."""
        with self._news:
            self._news.wait_for(lambda: self._leave is not None or bool(self._orders))
            return None if self._leave is not None else self._orders.pop(0)

    def _spend(self, context: RunContext, tenure: Tenure) -> tuple[str, str]:
        """Train in one generation until it ends; how it did, `over`, `regroup`, `broken` or `error`, and why."""
        with self._news:
            self._tenure = tenure
        future: Future[None] = Future()
        future.add_done_callback(lambda _: self._wake())
        thread = threading.Thread(
            target=settle,
            args=(future, lambda: train_in_group(context, tenure, Phases())),
            name=f"raylm-generation-{tenure.member.generation}",
            daemon=True,
        )
        thread.start()
        self._await_end(context, tenure, future, thread)
        how, message = self._ended(tenure, future)
        keep_snapshots(context, tenure.keeper)
        if how in ("broken", "error"):
            give_up_save(context)
        with self._news:
            self._tenure = None
        return how, message

    def _await_end(self, context: RunContext, tenure: Tenure, future: Future[None], thread: threading.Thread) -> None:
        """Wait for the generation's thread; one that is stuck after a cut is left behind."""
        stalls = StallWatch(context, tenure, self._name)
        while not self._over(tenure, future, LOOK_SECONDS):
            stalls.look()
        with self._news:
            if not tenure.cut and not future.done():  # let go: whoever finishes in good order comes back by itself
                orderly = self._leave is not None and self._leave.get("orderly")
                self._news.wait_for(lambda: future.done() or tenure.cut, LEAVE_SECONDS if orderly else 0)
        if not future.done() and not _interrupted(tenure, thread, future):
            tenure.abandoned = True
            log.warning("generation %d: a thread stuck in a collective is left behind", tenure.member.generation)
        from raylm.train.deepspeed_internals import forget_group
        from raylm.train.group import abandon_group

        if abandon_group():  # also where the end of the thread was cut short
            forget_group()

    def _over(self, tenure: Tenure, future: Future[None], seconds: float) -> bool:
        """Wait so long for the generation's end, in whichever way."""
        with self._news:
            return self._news.wait_for(lambda: future.done() or tenure.cut or self._leave is not None, seconds)

    def _ended(self, tenure: Tenure, future: Future[None]) -> tuple[str, str]:
        from raylm.train.group import GroupBroken

        if tenure.abandoned:
            return "broken", "it was stuck in a collective"
        error = future.exception()
        if error is None:
            return "over", ""
        if isinstance(error, GroupEnded):
            return ("broken", "superseded") if error.reason is Reason.STALE else ("regroup", str(error))
        if isinstance(error, GroupBroken) or tenure.cut:
            return "broken", first_line(error)
        if isinstance(error, RaylmError):
            self._coordination.fail(tenure.member.generation, error)
            return "error", first_line(error)
        log.error("the program failed", exc_info=error)
        return "error", f"{type(error).__name__}: {first_line(error)}"

    # -- in the link's thread ------------------------------------------------------------------------------------

    def _heard(self, message: Message) -> None:
        with self._news:
            tenure = self._tenure
            match message["kind"]:
                case "welcome":
                    self._welcome = message
                case "place":
                    self._orders.append(message)
                case "wish" if tenure is not None and tenure.member.generation == message["generation"]:
                    tenure.wish = Reason(message["reason"])
                case "cut":
                    self._cut = max(self._cut, message["generation"])
                    if tenure is not None and tenure.member.generation <= self._cut:
                        tenure.cut = True
                case "leave":
                    self._leave = message
                case "try":
                    threading.Thread(target=self._try_to_reach, args=(message,), daemon=True).start()
            self._news.notify_all()

    def _try_to_reach(self, message: Message) -> None:
        """Say at which of other bodies' stores somebody listens, as seen from here."""
        reached = listening(message["peers"], patience_seconds=CONNECT_SECONDS)
        assert self._link is not None
        self._link.send({"kind": "reached", "number": message["number"], "bodies": [int(body) for body in reached]})

    def _orphaned(self, why: str) -> None:
        """The hub is lost, or has given this body up: another may train in its place, so that this one ends at once."""
        log.warning("body %d ends: the hub is lost, %s", self._birth.number, why)
        os._exit(1)

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()


def _interrupted(tenure: Tenure, thread: threading.Thread, future: Future[None]) -> bool:
    """Whether a generation's thread ended after it was told to: at its next step of Python, unless it is stuck."""
    assert thread.ident is not None
    if not tenure.ending:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Cut))
    began = stuck_since = time.monotonic()
    at: Any = None
    while not future.done():
        now = time.monotonic()
        frame = sys._current_frames().get(thread.ident)
        here = None if frame is None else (id(frame), frame.f_lasti)
        if frame is None or here != at or not _communicates(frame):
            at, stuck_since = here, now
        if now - stuck_since > STUCK_SECONDS or now - began > BUSY_SECONDS:
            return False
        time.sleep(0.02)
    return True


def _communicates(frame: Any) -> bool:
    """Whether a thread stands in a collective."""
    name = str(frame.f_code.co_filename)
    return "torch/distributed/" in name or "deepspeed/comm/" in name or name.endswith("train/group.py")
