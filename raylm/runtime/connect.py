"""The one way to a Ray cluster: its address, its token, and errors in words.

A process has one connection. Whoever asks while it stands shares it, and the last to leave closes it, unless somebody
else made it. The environment and the signal handlers of the process are as before once a function here returns.

Ray is started and ended in a thread of its own: Linux ends the processes of a local Ray with the thread that started
them, and whoever asks for one may ask in a thread that ends before the others have left.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raylm.errors import ClusterError, first_line
from raylm.runtime.ports import refusal
from raylm.runtime.ray_internals import quiet_start, read_environment_again, wants_token
from raylm.runtime.sockets import temporary_folder
from raylm.threads import settle

ADDRESS = "RAY_ADDRESS"
TOKEN = "RAY_AUTH_MODE"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class LocalRay:
    """What a Ray that is started on this machine offers."""

    cpus: int
    object_store_bytes: int | None = None


@contextmanager
def connected(address: str | None, local: LocalRay) -> Iterator[bool]:
    """Connected to Ray in this block; yields whether the connection is raylm's own, closed after its last user.

    The Ray that is initialised already, else the cluster at `address` or RAY_ADDRESS, else one started here.
    """
    own = _connection.join(address, local)
    try:
        yield own
    finally:
        if own:
            _connection.leave()


@contextmanager
def cluster_lost_in_words(hint: str) -> Iterator[None]:
    """Raise ClusterError where Ray's own processes, or an actor that this block asks, are gone."""
    ray = sys.modules.get("ray")
    if ray is None:
        yield
        return
    lost = (
        ray.exceptions.RayActorError,  # dead, or not to be reached
        ray.exceptions.RaySystemError,
        ray.exceptions.RpcError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.OwnerDiedError,
        ray.exceptions.NodeDiedError,
    )
    try:
        yield
    except ray.exceptions.OutOfMemoryError as error:
        raise ClusterError(
            f"a node of the Ray cluster ran out of memory, and Ray ended what ran on it: {first_line(error)}",
            hint=f"use nodes with more memory, or end other programs on them; {hint}",
        ) from error
    except lost as error:
        raise ClusterError(
            f"the Ray cluster's head, or what ran on it, is gone: {first_line(error)}", hint=hint
        ) from error


def started_here() -> bool:
    """Whether this process is connected to a Ray that it started on this machine, which gets no more nodes."""
    return _connection.is_local


class _Connection:
    """The connection that this process shares."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._address: str | None = None
        self._hint = ""
        self._keeper: _Keeper | None = None

    def join(self, address: str | None, local: LocalRay) -> bool:
        """Connect unless this process is; whether the connection is ours."""
        with self._lock:
            if self._users and _initialized():
                if address is not None and address != self._address:
                    raise ClusterError(
                        f"this process uses the Ray cluster at {self._address or 'this machine'}, and cannot use "
                        f"the one at {address} as well",
                        hint="wait until the runs of the other cluster have ended, or use another process",
                    )
            elif _initialized():
                return False
            else:
                self._address = address or os.environ.get(ADDRESS) or None
                self._hint = _address_hint(address)
                self._users = 0
                self._connect(local)
            self._users += 1
            return True

    @property
    def is_local(self) -> bool:
        """Whether it is to a Ray that was started for it."""
        with self._lock:
            return bool(self._users) and self._address is None

    def leave(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            if not self._users and self._keeper is not None:
                self._keeper.call(_leave, last=True).result()

    def _connect(self, local: LocalRay) -> None:
        if self._keeper is not None:
            self._keeper.ended.wait()
        self._keeper = keeper = _Keeper()
        connecting = keeper.call(lambda: _connect(self._address, self._hint) if self._address else _start(local))
        try:
            connecting.result()
        finally:
            # Where a KeyboardInterrupt ends the wait, the thread goes on connecting, and leaves after that.
            if not connecting.done() or connecting.exception() is not None:
                keeper.call(_leave, last=True)


class _Keeper:
    """A thread in which Ray is started, and which lives until Ray is ended or the process is."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None], bool]] = queue.SimpleQueue()
        # A daemon: Python runs Ray's own exit handler while such threads still live.
        threading.Thread(target=self._main, name="raylm-ray", daemon=True).start()

    def call(self, function: Callable[[], None], *, last: bool = False) -> Future[None]:
        """Have the thread call a function, and end after the last one."""
        done: Future[None] = Future()
        self._calls.put((function, done, last))
        return done

    def _main(self) -> None:
        last = False
        while not last:
            function, done, last = self._calls.get()
            settle(done, partial(_unseen, function))
        self.ended.set()


_connection = _Connection()


def _unseen(function: Callable[[], None]) -> None:
    with _process_kept(), quiet_start():
        function()


def _leave() -> None:
    ray = sys.modules.get("ray")
    if ray is not None:
        ray.shutdown()


def _initialized() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


_TEMPORARY = "RAY_TMPDIR"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}


def _start(local: LocalRay) -> None:
    import ray

    if _TEMPORARY not in os.environ:
        os.environ[_TEMPORARY] = temporary_folder("ray")  # as Ray itself would choose, where that is short enough
    folder = os.environ[_TEMPORARY]
    try:
        ray.init(
            address="local",
            num_cpus=local.cpus,
            object_store_memory=local.object_store_bytes,
            include_dashboard=False,
            # Ray's own patience with its one node: with HEALTH_CHECKS a busy machine would be declared dead.
            **_QUIET,
        )
    except OSError as error:
        raise ClusterError(
            f"Ray cannot be started with its files in {folder}/ray: {first_line(error)}",
            hint=f"set {_TEMPORARY} to a folder of this user's, with a short path such as /tmp",
        ) from error


def _connect(address: str, hint: str) -> None:
    _refuse_deaf(address, hint)
    if TOKEN not in os.environ and _has_token():
        os.environ[TOKEN] = "token"
    _refuse_without_token(address)
    import ray

    read_environment_again()
    try:
        ray.init(address=address, **_QUIET)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {first_line(error)}", hint=f"{hint}; {_token_hint()}"
        ) from error
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address} does not take this user's token: {first_line(error)}", hint=_token_hint()
        ) from error
    except RuntimeError as error:
        found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if len(found) != 2:
            raise
        (theirs, their_python), (ours, our_python) = found
        raise ClusterError(
            f"the cluster at {address} runs Ray {theirs} on Python {their_python}, this process Ray {ours} on Python "
            f"{our_python}",
            hint="install the cluster's versions here, or this process's on the cluster",
        ) from error


def _has_token() -> bool:
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


def _refuse_without_token(address: str) -> None:
    host, _, port = address.rpartition(":")
    if os.environ.get(TOKEN) == "token" or "://" in address or not (host and port.isdigit()):
        return
    if wants_token(address, patience_seconds=CONNECT_SECONDS):
        raise ClusterError(
            f"the Ray cluster at {address} asks for a token, and none is sent from here", hint=_token_hint()
        )


def _token_hint() -> str:
    return (
        "a cluster that asks for a token takes the one in ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        + (f"; {TOKEN} is {os.environ[TOKEN]!r} here" if TOKEN in os.environ else "")
    )


def _address_hint(given: str | None) -> str:
    """What to do about an address where nobody answers; `given` is the job's own, before RAY_ADDRESS."""
    variable = os.environ.get(ADDRESS)
    if not variable:
        return "check cluster.address, or leave it out to use this machine"
    if given is None:
        return f"that address is {ADDRESS}'s: correct it, or unset it to use this machine"
    return f"check cluster.address; to use this machine leave it out and unset {ADDRESS}"


def _refuse_deaf(address: str, hint: str) -> None:
    """Ray itself goes on trying for many minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, and whatever else Ray resolves by itself
    error = refusal(host.strip("[]"), int(port), patience_seconds=CONNECT_SECONDS)
    if error is not None:
        raise ClusterError(f"no Ray cluster answers at {address}: {error.strerror or error}", hint=hint) from error


@contextmanager
def _process_kept() -> Iterator[None]:
    """What Ray changes of the process while it connects and leaves is put back: variables and signal handlers."""
    environment = _ray_variables()
    handlers = {number: _handler(number) for number in signal.valid_signals() if number < signal.SIGRTMIN}
    try:
        yield
    finally:
        for name in _ray_variables().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        # Ray's C++ sets handlers that Python does not see, and forgets at its end what was there before.
        for number, handler in handlers.items():
            if _handler(number) != handler:
                _libc.sigaction(int(number), handler, None)


def _ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}


_libc = ctypes.CDLL(None)
_SIGACTION_BYTES = 256  # more than `struct sigaction` has on any system


def _handler(number: int) -> bytes:
    """The process's `struct sigaction` for a signal."""
    found = ctypes.create_string_buffer(_SIGACTION_BYTES)
    _libc.sigaction(int(number), None, found)
    return found.raw
