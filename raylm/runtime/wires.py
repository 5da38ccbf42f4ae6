"""Connections that one thread serves: JSON lines in and out, beats, and who has ended or fallen silent.

What a line means is the business of link.py.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from raylm.threads import error_of

Message = dict[str, Any]

LINE_BYTES = 1 << 20  # the longest line
BUFFER_BYTES = 8 << 20  # what may wait for a peer that does not read
READ_BYTES = 1 << 16
HELLO_SECONDS = 5.0  # to say who one is
FAREWELL_SECONDS = 1.0  # to send what is queued for a peer that is let go
BEAT = b'{"kind":"beat"}\n'

log = logging.getLogger(__name__)

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def not_for_children(*made: socket.socket) -> None:
    """Close sockets in forked children: one that held a connection open would hide the death of its parent."""
    _sockets.update(made)


def _close_in_child() -> None:
    for each in list(_sockets):
        each.close()


os.register_at_fork(after_in_child=_close_in_child)


class Wire:
    """One connection. body: whose it is, None before the hello. part_by: when it is closed, once it is let go."""

    def __init__(self, connection: socket.socket, body: int | None) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = connection
        self.body = body
        self.opened = self.heard = time.monotonic()
        self.part_by: float | None = None
        self.ended = False
        self.overflowed = False
        self.outgoing = bytearray()
        self._incoming = bytearray()

    def receive(self) -> list[bytes]:
        """The whole lines that came. EOFError at the end of the connection, ValueError for a line that is too long."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self.heard = time.monotonic()
        *lines, rest = (self._incoming + data).split(b"\n")
        if max(map(len, (*lines, rest))) > LINE_BYTES:
            raise ValueError(f"a line of more than {LINE_BYTES} bytes")
        self._incoming = rest
        return [bytes(line) for line in lines]

    def send(self) -> None:
        """Send what the connection takes. One that is broken takes all: reading finds that it has ended."""
        try:
            if self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self.outgoing.clear()
        if self.part_by is not None and not self.outgoing:
            # Closing with unread beats would be a reset, which can overtake what was just sent.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)


class Exchange:
    """Connections that one thread serves. A subclass says what a message means (`_heard`) and a loss (`_lost`)."""

    _ended = ""  # why a connection was lost that its peer ended

    def __init__(self, name: str, patience_seconds: float, beat_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._beat_seconds = beat_seconds
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards what waits to be sent, and who is connected
        self._wires: set[Wire] = set()
        self._unsent: set[Wire] = set()
        self._closing = False
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        not_for_children(self._ear, self._bell)
        self._selector.register(self._ear, selectors.EVENT_READ, lambda _: self._ear.recv(READ_BYTES))
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def close(self) -> None:
        """Send what is queued, where it can be sent within a second, end every connection and the thread."""
        with self._lock:
            self._closing = True
        self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(FAREWELL_SECONDS + 2 * self._beat_seconds + 1.0)

    def _heard(self, wire: Wire, message: Message) -> None:
        raise NotImplementedError

    def _lost(self, wire: Wire, why: str) -> None:
        raise NotImplementedError

    def _add(self, connection: socket.socket, body: int | None = None) -> Wire:
        wire = Wire(connection, body)
        not_for_children(connection)
        self._wires.add(wire)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._ready, wire))
        return wire

    def _queue(self, wire: Wire, line: bytes) -> bool:
        with self._lock:
            if wire.ended or wire.overflowed or wire.part_by is not None or self._closing:
                return False
            wire.overflowed = len(wire.outgoing) + len(line) > BUFFER_BYTES
            if not wire.overflowed:
                wire.outgoing += line
            self._unsent.add(wire)
        self._ring()
        return not wire.overflowed

    def _part(self, wire: Wire) -> None:
        with self._lock:
            if wire.part_by is None:
                wire.part_by = time.monotonic() + FAREWELL_SECONDS
                self._unsent.add(wire)

    def _ring(self) -> None:
        """Wake the thread. A full bell has been rung already, a closed one has nobody to wake."""
        with suppress(OSError):
            self._bell.send(b"\0")

    def _serve(self) -> None:
        due = time.monotonic()
        while self._wires or not self._closing:
            # Silence counts up to a moment after which nothing was there to read, so that a pause of this process is
            # not taken for one of its peers.
            asked = time.monotonic()
            for key, events in self._selector.select(max(0.0, due - asked)):
                key.data(events)
            if self._closing:
                for wire in self._wires:
                    self._part(wire)
            with self._lock:
                unsent, self._unsent = self._unsent, set()
            for wire in unsent:
                self._flush(wire)
            if asked >= due:
                due = asked + self._beat_seconds
                for wire in list(self._wires):
                    self._tick(wire, asked)
        self._shut()

    def _shut(self) -> None:
        self._selector.close()
        self._ear.close()
        self._bell.close()

    def _ready(self, wire: Wire, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(wire)
        if wire.ended or not events & selectors.EVENT_READ:
            return
        try:
            for line in wire.receive():
                if wire.part_by is None and not wire.ended:
                    self._take(wire, line)
        except EOFError:
            self._end(wire, self._ended)
        except (ValueError, RecursionError):  # the parser's, too
            self._end(wire, "what it sent is no message")

    def _take(self, wire: Wire, line: bytes) -> None:
        message = json.loads(line)
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise ValueError("not a message")
        if (message["kind"] == "hello") != (wire.body is None):
            raise ValueError("a hello opens a connection, and nothing else does")
        if message["kind"] != "beat":
            self._heard(wire, message)

    def _flush(self, wire: Wire) -> None:
        if wire.ended:
            return
        if wire.overflowed:
            return self._end(wire, f"silent: it left {BUFFER_BYTES >> 20} MiB of messages unread")
        with self._lock:
            wire.send()
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.outgoing else 0)
        key = self._selector.get_key(wire.socket)
        if key.events != events:
            self._selector.modify(wire.socket, events, key.data)

    def _tick(self, wire: Wire, now: float) -> None:
        if wire.part_by is not None:
            if now > wire.part_by:
                self._end(wire, "")
        elif wire.body is None:
            if now - wire.opened > HELLO_SECONDS:
                self._end(wire, "")
        elif now - wire.heard > self._patience_seconds:
            self._end(wire, f"silent for {now - wire.heard:.1f} s")
        elif not wire.outgoing:
            with self._lock:
                wire.outgoing += BEAT
            self._flush(wire)

    def _end(self, wire: Wire, why: str) -> None:
        with self._lock:
            if wire.ended:
                return
            wire.ended = True
        self._wires.discard(wire)
        self._selector.unregister(wire.socket)
        wire.socket.close()
        if wire.part_by is None:
            self._lost(wire, why)


def line(message: Mapping[str, Any]) -> bytes:
    """A message as it travels; ValueError for one that is too long."""
    encoded = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(encoded) > LINE_BYTES:
        raise ValueError(f"a message of {len(encoded)} bytes; {LINE_BYTES} is the most")
    return encoded


def call(function: Callable[..., None], *arguments: Any) -> None:
    """Call back, and go on whatever comes of it."""
    error = error_of(partial(function, *arguments))
    if error is not None:  # the connections of all others must go on
        log.error("a callback of the control connection failed", exc_info=error)
