"""The control connection between the hub and each body: JSON lines over TCP, and who has ended or fallen silent.

A `Switchboard` stands in the hub and holds one connection a body; a `Link` stands in each body. Both say who is gone: a
connection that ends, as it does at once when its process dies, or one on which nothing came for the patience given, as
when a process is frozen, a machine is lost or a network is cut. Both send a beat at a steady pace so that there is
always something to hear.

A message is a dict of what JSON holds; its "kind" is a string other than "beat" and "hello". One thread on each side
does all the work and makes all calls back; they should be short, for no beat leaves while one runs. The token keeps
strangers out; nothing is encrypted.
"""

from __future__ import annotations

import hmac
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from raylm.runtime.wires import Exchange, Message, Wire, call, line, not_for_children

CONNECT_SECONDS = 10.0

log = logging.getLogger(__name__)


class Switchboard(Exchange):
    """The hub's side. A body is let in once: not while it is connected, and not after it was dropped or declared gone.

    on_message(body, message) gets each message of a body, its hello first. on_gone(body, why) is called once a body,
    unless it was dropped: at once when its process ends, or after patience_seconds, and at most a beat, of silence.
    """

    _ended = "its process ended"

    def __init__(
        self,
        token: str,
        on_message: Callable[[int, Message], None],
        on_gone: Callable[[int, str], None],
        patience_seconds: float = 6.0,
        beat_seconds: float = 0.5,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__("switchboard", patience_seconds, beat_seconds)
        self._token = token.encode()
        self._on_message = on_message
        self._on_gone = on_gone
        self._bodies: dict[int, Wire] = {}
        self._past: set[int] = set()
        self._listener = _listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        port = self._listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread.start()

    def send(self, body: int, message: Mapping[str, Any]) -> bool:
        """Queue a message, from any thread, without waiting; False if the body is not connected or does not read."""
        data = line(message)
        wire = self._bodies.get(body)
        return wire is not None and self._queue(wire, data)

    def drop(self, body: int) -> None:
        """Let a body go: send what is queued for it, hear no more of it, and refuse it from now on."""
        with self._lock:
            wire = self._bodies.pop(body, None)
            self._past.add(body)
        if wire is not None:
            self._part(wire)
            self._ring()

    def _accept(self, _: int) -> None:
        try:
            while True:
                self._add(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError as error:  # the caller went away, or this process has no file descriptors left
            log.warning("cannot accept a connection: %s", error)
            time.sleep(0.05)

    def _heard(self, wire: Wire, message: Message) -> None:
        if wire.body is None:
            wire.body = self._admit(wire, message)
        call(self._on_message, wire.body, message)

    def _admit(self, wire: Wire, hello: Message) -> int:
        """Whose connection it is; ValueError for one that is refused. Takes the token out of the hello."""
        token, body = hello.pop("token", None), hello.pop("body", None)
        if not isinstance(token, str) or type(body) is not int or not hmac.compare_digest(token.encode(), self._token):
            raise ValueError("refused")
        with self._lock:
            if body in self._bodies or body in self._past:
                raise ValueError("refused")
            self._bodies[body] = wire
        return body

    def _lost(self, wire: Wire, why: str) -> None:
        if wire.body is None:
            return
        with self._lock:
            known = self._bodies.pop(wire.body, None)
            self._past.add(wire.body)
        if known is not None:
            call(self._on_gone, wire.body, why)

    def _shut(self) -> None:
        super()._shut()
        self._listener.close()


class Link(Exchange):
    """A body's side. It connects, trying for ten seconds (ConnectionError), and says hello with the fields given.

    on_message(message) gets each message of the hub. on_lost(why) is called once, unless the link was closed: when the
    hub ends the connection, as it does when its process ends and with a body that it refuses, or falls silent.
    """

    _ended = "the hub ended the connection"

    def __init__(
        self,
        address: str,
        token: str,
        body: int,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
        patience_seconds: float = 6.0,
        beat_seconds: float = 0.5,
        **hello: Any,
    ) -> None:
        opening = line({**hello, "kind": "hello", "token": token, "body": body})
        connection = _connect(address)
        super().__init__(f"link of body {body}", patience_seconds, beat_seconds)
        self._on_message = on_message
        self._on_lost = on_lost
        self._wire = self._add(connection, body)
        self._queue(self._wire, opening)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Queue a message, from any thread, without waiting; False once the hub is lost."""
        return self._queue(self._wire, line(message))

    def _heard(self, wire: Wire, message: Message) -> None:
        call(self._on_message, message)

    def _lost(self, wire: Wire, why: str) -> None:
        self._closing = True
        call(self._on_lost, why)


def _listen() -> socket.socket:
    """A socket on all interfaces, of IPv6 too where the machine has it."""
    try:
        listener = socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    except (OSError, ValueError):
        listener = socket.create_server(("", 0), backlog=4096)
    listener.setblocking(False)
    not_for_children(listener)
    return listener


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), max(0.1, until - time.monotonic()))
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # where nobody listens, a port of the range can be connected with itself
            raise ConnectionRefusedError("nobody listens")
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(f"no hub at {address} for {CONNECT_SECONDS:.0f} s: {error}") from error
        time.sleep(0.1)
