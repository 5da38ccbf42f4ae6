"""The control connection: who has ended or fallen silent is noticed on both sides, and every message comes in order."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from raylm.runtime import wires
from raylm.runtime.link import Link, Switchboard

TOKEN = "the-secret-of-this-run"
AT_ONCE = 0.5
PATIENCE = 1.5
BEAT = 0.1
LATEST = PATIENCE + 1.0  # patience, a beat, and a machine that is busy
CALM = 60.0  # patience where silence is not the subject


class Heard:
    """What one side of a connection was told, and when."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, dict[str, Any]]] = []
        self.gone: list[tuple[int, str, float]] = []
        self.changed = threading.Condition()

    def message(self, body: int, message: dict[str, Any]) -> None:
        with self.changed:
            self.messages.append((body, message))
            self.changed.notify_all()

    def ended(self, body: int, why: str) -> None:
        with self.changed:
            self.gone.append((body, why, time.monotonic()))
            self.changed.notify_all()

    def wait(self, come: Callable[[], bool], seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(come, seconds), (self.messages[-5:], self.gone)

    def wait_for_messages(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        self.wait(lambda: len(self.messages) >= count)
        return self.messages

    def wait_for_end(self) -> tuple[int, str, float]:
        self.wait(lambda: bool(self.gone))
        return self.gone[0]


@contextmanager
def switchboard(patience: float = CALM, host: str = "127.0.0.1") -> Iterator[tuple[Switchboard, Heard]]:
    heard = Heard()
    hub = Switchboard(TOKEN, heard.message, heard.ended, patience, BEAT, host)
    try:
        yield hub, heard
    finally:
        hub.close()


@contextmanager
def link(address: str, body: int = 0, patience: float = CALM, **hello: Any) -> Iterator[tuple[Link, Heard]]:
    heard = Heard()
    made = Link(
        address,
        TOKEN,
        body,
        lambda message: heard.message(body, message),
        lambda why: heard.ended(body, why),
        patience,
        BEAT,
        **hello,
    )
    try:
        yield made, heard
    finally:
        made.close()


PROGRAM = f"""
import hashlib, json, os, sys, threading, time
from raylm.runtime.link import Link, Switchboard

def say(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")

def body(address, number=0, patience={CALM}, on_message=lambda message: None):
    lost = lambda why: say(lost=why)
    return Link(address, {TOKEN!r}, number, on_message, lost, patience, {BEAT})

def hub(patience={CALM}):
    hear = lambda body, message: say(body=body, message=message)
    made = Switchboard({TOKEN!r}, hear, lambda body, why: say(gone=why), patience, {BEAT})
    say(address=made.address)
    return made
"""


class Process:
    """Another Python process that knows PROGRAM and runs `code`; what it says comes back line by line."""

    def __init__(self, code: str) -> None:
        # Unbuffered: what is read from the pipe is one line, so that the pipe tells whether there is another.
        command = [sys.executable, "-c", PROGRAM + code]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)

    def said(self, seconds: float = 20.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], "it said nothing"
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def signal(self, number: signal.Signals) -> float:
        """Send a signal and return the time."""
        self.process.send_signal(number)
        return time.monotonic()

    def kill(self) -> float:
        """Kill it and return the time at which it is dead, which takes a busy machine a while."""
        self.process.kill()
        self.process.wait()
        return time.monotonic()


@contextmanager
def process(code: str) -> Iterator[Process]:
    made = Process(code)
    try:
        yield made
    finally:
        made.kill()
        if made.process.stdout is not None:
            made.process.stdout.close()


def test_a_killed_body_is_gone_at_once() -> None:
    with switchboard() as (hub, heard), process(f"body({hub.address!r}, 3); time.sleep(60)") as child:
        assert heard.wait_for_messages(1) == [(3, {"kind": "hello"})]
        died = child.kill()
        body, why, at = heard.wait_for_end()
        assert (body, why) == (3, "its process ended")
        assert at - died < AT_ONCE
        assert not hub.send(3, {"kind": "late"})
        time.sleep(5 * BEAT)
        assert len(heard.gone) == 1


def test_a_child_that_a_body_forked_does_not_hide_its_death() -> None:
    code = "made = body({!r})\nchild = os.fork()\nif child: made.send(dict(kind='child', pid=child))\ntime.sleep(60)"
    with switchboard() as (hub, heard), process(code.format(hub.address)) as parent:
        child = heard.wait_for_messages(2)[1][1]["pid"]
        try:
            time.sleep(5 * BEAT)
            assert not heard.gone
            died = parent.kill()
            assert heard.wait_for_end()[2] - died < AT_ONCE
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_frozen_body_is_gone_after_patience_and_learns_it_when_it_wakes() -> None:
    code = "made = body({!r})\nwhile made.send(dict(kind='again')): time.sleep(0.01)\nsay(ended=True)\ntime.sleep(60)"
    with switchboard(PATIENCE) as (hub, heard), process(code.format(hub.address)) as child:
        heard.wait_for_messages(10)
        stopped = child.signal(signal.SIGSTOP)
        _, why, at = heard.wait_for_end()
        assert why.startswith("silent for 1.")
        assert PATIENCE - BEAT < at - stopped < LATEST
        count = len(heard.messages)
        child.signal(signal.SIGCONT)
        said = [child.said(), child.said()]
        assert {"lost": "the hub ended the connection"} in said
        assert {"ended": True} in said  # the late message went nowhere
        assert (len(heard.messages), len(heard.gone)) == (count, 1)


def test_a_body_learns_at_once_that_the_hub_was_killed() -> None:
    with process("hub(); time.sleep(60)") as child, link(child.said()["address"]) as (made, heard):
        assert child.said()["message"] == {"kind": "hello"}
        died = child.kill()
        _, why, at = heard.wait_for_end()
        assert why == "the hub ended the connection"
        assert at - died < AT_ONCE
        assert not made.send({"kind": "late"})


def test_a_body_gives_a_frozen_hub_up_after_patience() -> None:
    with process("hub(); time.sleep(60)") as child, link(child.said()["address"], patience=PATIENCE) as (_, heard):
        child.said()
        stopped = child.signal(signal.SIGSTOP)
        _, why, at = heard.wait_for_end()
        assert why.startswith("silent for 1.")
        assert PATIENCE - BEAT < at - stopped < LATEST
        child.signal(signal.SIGCONT)
        assert child.said()["gone"] == "its process ended"


def test_a_hub_that_paused_does_not_take_its_pause_for_silence() -> None:
    code = f"hub({PATIENCE}); time.sleep(60)"
    with process(code) as child, link(child.said()["address"]) as (made, heard):
        child.said()
        child.signal(signal.SIGSTOP)
        time.sleep(PATIENCE + 0.5)
        child.signal(signal.SIGCONT)
        time.sleep(5 * BEAT)
        made.send({"kind": "alive"})
        assert child.said()["message"] == {"kind": "alive"}
        assert not heard.gone


def test_a_body_that_computes_outside_the_interpreter_is_not_silent() -> None:
    work = "hashlib.pbkdf2_hmac('sha512', b'a', b'b', 100_000)"
    code = f"made = body({{!r}})\nuntil = time.monotonic() + {2 * PATIENCE}\nwhile time.monotonic() < until: {work}\n"
    code += "made.send(dict(kind='done')); time.sleep(60)"
    with switchboard(PATIENCE) as (hub, heard), process(code.format(hub.address)):
        assert heard.wait_for_messages(2)[1] == (0, {"kind": "done"})
        assert not heard.gone


class Proxy:
    """A network between a hub and one body, whose directions can be cut: what is sent is lost, and so is an end."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.cut: set[str] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.hub = socket.create_connection((host, int(port)))
        self.body: socket.socket | None = None
        self.threads = [threading.Thread(target=self._run, daemon=True)]
        self.threads[0].start()

    def _run(self) -> None:
        self.body = self.listener.accept()[0]
        back = threading.Thread(target=self._pump, args=(self.hub, self.body, "to body"), daemon=True)
        self.threads.append(back)
        back.start()
        self._pump(self.body, self.hub, "to hub")

    def _pump(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if way not in self.cut:
                    target.sendall(data)
        if way not in self.cut:
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self.hub, self.body):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for each in (self.hub, self.body, self.listener):
            if each is not None:
                each.close()


@pytest.mark.parametrize("cut", [("to hub", "to body"), ("to hub",), ("to body",)], ids=" and ".join)
def test_both_sides_notice_a_network_that_is_cut(cut: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        hub, at_hub = stack.enter_context(switchboard(PATIENCE))
        proxy = Proxy(hub.address)
        stack.callback(proxy.close)
        made, at_body = stack.enter_context(link(proxy.address, patience=PATIENCE))
        at_hub.wait_for_messages(1)
        hub.send(0, {"kind": "there"})
        made.send({"kind": "here"})
        at_hub.wait_for_messages(2)
        at_body.wait_for_messages(1)
        time.sleep(PATIENCE + 0.5)
        assert not at_hub.gone + at_body.gone

        proxy.cut.update(cut)
        began = time.monotonic()
        ends = [at_hub.wait_for_end(), at_body.wait_for_end()]
        assert all(at - began < LATEST for _, _, at in ends)
        assert any(why.startswith("silent for") for _, why, _ in ends)
        time.sleep(3 * BEAT)
        assert (len(at_hub.gone), len(at_body.gone)) == (1, 1)


def hello(**changes: Any) -> bytes:
    return json.dumps({"kind": "hello", "token": TOKEN, "body": 9, **changes}).encode() + b"\n"


STRANGERS = {
    "nothing": b"\n",
    "bytes": bytes(range(256)) + b"\n",
    "another protocol": b"GET / HTTP/1.1\r\nHost: raylm\r\n\r\n",
    "a number": b"7\n",
    "depth": b"[" * 500_000 + b"\n",
    "wrong token": hello(token="another"),
    "no token": hello(token=None),
    "a token of half a character": hello(token="\ud800"),
    "a beat first": wires.BEAT,
    "a body without a number": hello(body="9"),
    "a huge line": b"x" * (2 * wires.LINE_BYTES),
    "a huge hello": hello(extra="x" * wires.LINE_BYTES),
}


def closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection in time, having said nothing."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def plain(hub: Switchboard, data: bytes) -> socket.socket:
    """A connection to the hub on which so many bytes are sent."""
    host, _, port = hub.address.rpartition(":")
    made = socket.create_connection((host.strip("[]"), int(port)))
    with suppress(ConnectionError):
        made.sendall(data)
    return made


@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_sent_away_without_a_word(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with switchboard() as (hub, heard), plain(hub, data) as stranger:
        assert closed(stranger, 10.0)
        with link(hub.address, 9):
            assert heard.wait_for_messages(1) == [(9, {"kind": "hello"})]
    assert not caplog.records


def test_who_does_not_say_hello_in_time_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "HELLO_SECONDS", 1.0)
    with switchboard() as (hub, heard), plain(hub, hello()[:-5]) as half, plain(hub, b"") as silent:
        began = time.monotonic()
        assert closed(half, 10.0)
        assert closed(silent, 10.0)
        assert 0.5 < time.monotonic() - began < 2.5
    assert not heard.messages + heard.gone


@pytest.mark.parametrize("data", [b"what\n", b'{"kind": 1}\n', b"[]\n", hello(), b"x" * (2 * wires.LINE_BYTES)])
def test_a_body_that_sends_no_message_is_gone(data: bytes) -> None:
    with switchboard() as (hub, heard), plain(hub, hello() + b'{"kind":"first"}\n' + data) as body:
        assert heard.wait_for_end()[:2] == (9, "what it sent is no message")
        assert [message["kind"] for _, message in heard.messages] == ["hello", "first"]
        body.close()


def test_half_a_line_after_the_hello_is_silence() -> None:
    with switchboard(PATIENCE) as (hub, heard), plain(hub, hello() + b'{"kind"'):
        assert heard.wait_for_end()[1].startswith("silent for")
        assert len(heard.messages) == 1


def test_a_body_is_let_in_once() -> None:
    with switchboard() as (hub, heard):
        with link(hub.address, 4, node="a", held=[1, 2]) as (first, _):
            assert heard.wait_for_messages(1) == [(4, {"kind": "hello", "node": "a", "held": [1, 2]})]
            with link(hub.address, 4) as (_, second):
                assert second.wait_for_end()[1] == "the hub ended the connection"
            first.send({"kind": "still here"})
            heard.wait_for_messages(2)
            assert not heard.gone
        heard.wait_for_end()
        with link(hub.address, 4) as (_, third):
            third.wait_for_end()
        assert (len(heard.messages), len(heard.gone)) == (2, 1)


def test_a_body_that_is_dropped_gets_what_was_queued_and_is_not_called_gone() -> None:
    text = "x" * 10_000
    with switchboard() as (hub, at_hub), link(hub.address) as (made, at_body):
        at_hub.wait_for_messages(1)
        for number in range(300):
            assert hub.send(0, {"kind": "queued", "number": number, "text": text})
        hub.drop(0)
        assert not hub.send(0, {"kind": "late"})
        at_body.wait_for_end()
        assert [message["number"] for _, message in at_body.messages] == list(range(300))
        assert not made.send({"kind": "late"})
        hub.drop(1)
        for dropped in (0, 1):
            with link(hub.address, dropped) as (_, again):
                again.wait_for_end()
        assert (len(at_hub.messages), at_hub.gone) == (1, [])


def test_what_is_sent_before_a_link_is_closed_arrives() -> None:
    with switchboard() as (hub, heard):
        with link(hub.address) as (made, at_body):
            for number in range(300):
                made.send({"kind": "queued", "number": number, "text": "x" * 10_000})
        heard.wait_for_end()
        assert [message.get("number") for _, message in heard.messages] == [None, *range(300)]
        assert not at_body.gone


def test_a_body_that_beats_but_does_not_read_is_gone() -> None:
    with switchboard() as (hub, heard), plain(hub, hello()) as body:
        heard.wait_for_messages(1)
        tried = 0
        while hub.send(9, {"kind": "much", "text": "x" * 500_000}):
            tried += 1
            assert tried < 1000
        assert heard.wait_for_end()[:2] == (9, "silent: it left 8 MiB of messages unread")
        body.close()


def test_three_hundred_bodies_at_once_each_in_order() -> None:
    bodies, count = 300, 20
    heard = Heard()

    def answer(body: int, message: dict[str, Any]) -> None:
        heard.message(body, message)
        if message["kind"] == "hello":
            for number in range(count):
                hub.send(body, {"kind": "number", "number": number})

    code = f"""
made = {{}}
def start(number):
    made[number] = body(sys.argv[1], number, on_message=lambda message: ready.wait() and made[number].send(message))
ready = threading.Event()
threads = [threading.Thread(target=start, args=(number,)) for number in range({bodies})]
for thread in threads: thread.start()
for thread in threads: thread.join()
ready.set()
time.sleep(60)
"""
    hub = Switchboard(TOKEN, answer, heard.ended, CALM, BEAT)
    try:
        with process(code.replace("sys.argv[1]", repr(hub.address))):
            heard.wait(lambda: len(heard.messages) == bodies * (count + 1), 60.0)
            came: dict[int, list[int | None]] = {body: [] for body in range(bodies)}
            for body, message in heard.messages:
                came[body].append(message.get("number"))
            assert all(numbers == [None, *range(count)] for numbers in came.values())
            assert not heard.gone
        heard.wait(lambda: len(heard.gone) == bodies)
        assert sorted(body for body, _, _ in heard.gone) == list(range(bodies))
    finally:
        hub.close()


def test_messages_of_several_threads_arrive_whole_and_each_threads_in_order() -> None:
    threads, count = 8, 200

    def from_many(send: Callable[[dict[str, Any]], bool]) -> None:
        def run(thread: int) -> None:
            for number in range(count):
                assert send({"kind": "number", "thread": thread, "number": number, "text": "é" * (number * 7 % 300)})

        started = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
        for each in started:
            each.start()
        for each in started:
            each.join()

    with switchboard() as (hub, at_hub), link(hub.address) as (made, at_body):
        at_hub.wait_for_messages(1)
        from_many(made.send)
        from_many(lambda message: hub.send(0, message))
        for heard, skip in ((at_hub, 1), (at_body, 0)):
            came = [message for _, message in heard.wait_for_messages(threads * count + skip)][skip:]
            for thread in range(threads):
                assert [m["number"] for m in came if m["thread"] == thread] == list(range(count))


def test_a_callback_that_raises_ends_nothing_and_no_log_holds_the_token(caplog: pytest.LogCaptureFixture) -> None:
    heard, at_body = Heard(), Heard()

    def message(body: int, message: dict[str, Any]) -> None:
        heard.message(body, message)
        raise RuntimeError("of the hub")

    def gone(body: int, why: str) -> None:
        heard.ended(body, why)
        raise RuntimeError("of the hub, at the end")

    def answer(message: dict[str, Any]) -> None:
        at_body.message(0, message)
        raise RuntimeError("of the body")

    caplog.set_level(logging.DEBUG)
    hub = Switchboard(TOKEN, message, gone, CALM, BEAT)
    made = Link(hub.address, TOKEN, 0, answer, lambda why: at_body.ended(0, why), CALM, BEAT)
    heard.wait_for_messages(1)
    for number in range(2):
        made.send({"kind": "to hub"})
        heard.wait_for_messages(number + 2)
        hub.send(0, {"kind": "to body"})
        at_body.wait_for_messages(number + 1)
    assert not at_body.gone
    made.close()
    heard.wait_for_end()
    hub.close()
    for what in ("of the hub", "of the body", "of the hub, at the end"):
        assert f"RuntimeError: {what}\n" in caplog.text + "\n"
    assert TOKEN not in caplog.text + repr(hub) + repr(made) + repr(heard.messages)


def test_only_json_is_sent_and_no_line_that_is_too_long() -> None:
    with switchboard() as (hub, heard), link(hub.address) as (made, _):
        heard.wait_for_messages(1)
        with pytest.raises(TypeError):
            made.send({"kind": "a", "value": object()})
        with pytest.raises(ValueError, match="a message of 1048600 bytes"):
            hub.send(0, {"kind": "a", "value": "x" * wires.LINE_BYTES})
        made.send({"kind": "a", "value": [1, 0.5, "é\n", None, True, {"b": {}}]})
        assert heard.wait_for_messages(2)[1][1] == {"kind": "a", "value": [1, 0.5, "é\n", None, True, {"b": {}}]}


def test_a_link_says_where_no_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylm.runtime.link.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"no hub at {address} for "), link(address):
        pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
def test_a_hub_listens_on_ipv6_too() -> None:
    with switchboard(host="::1") as (hub, heard):
        try:
            plain(hub, b"").close()
        except OSError:
            pytest.skip("no IPv6 on this machine")
        with link(hub.address) as (made, _):
            made.send({"kind": "here"})
            heard.wait_for_messages(2)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_close_ends_every_thread_and_connection() -> None:
    before = set(threading.enumerate()), open_files()
    with ExitStack() as stack:
        hub, heard = stack.enter_context(switchboard())
        stack.enter_context(plain(hub, b"half"))
        links = [stack.enter_context(link(hub.address, body)) for body in range(5)]
        heard.wait_for_messages(5)
        began = time.monotonic()
        hub.close()
        hub.close()
        assert time.monotonic() - began < 3.0
        assert not heard.gone
        for _, at_body in links:
            at_body.wait_for_end()
    assert (set(threading.enumerate()), open_files()) == before


def test_a_callback_may_close_its_own_side() -> None:
    before = set(threading.enumerate())
    heard = Heard()

    def stop(body: int, message: dict[str, Any]) -> None:
        hub.send(body, {"kind": "bye"})
        hub.close()

    hub = Switchboard(TOKEN, stop, heard.ended, CALM, BEAT)
    with link(hub.address) as (_, at_body):
        assert at_body.wait_for_messages(1)[0][1] == {"kind": "bye"}
        at_body.wait_for_end()
    hub._thread.join(5)
    assert set(threading.enumerate()) == before
