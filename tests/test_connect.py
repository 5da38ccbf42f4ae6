"""The one way to Ray: which cluster, errors in words, one connection for all users, and a process left as it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from raylm.errors import ClusterError, first_line
from raylm.runtime.connect import LocalRay, connected
from raylm.runtime.ports import free_port

LOCAL = LocalRay(cpus=1)


class FakeRay:
    """Takes the place of Ray's own functions and remembers how they were called."""

    def __init__(self) -> None:
        self.initialized = False
        self.inits: list[dict[str, Any]] = []
        self.shutdowns = 0
        self.during: Callable[[], None] = lambda: None

    def init(self, **settings: Any) -> None:
        self.inits.append(settings)
        self.during()
        self.initialized = True

    def shutdown(self) -> None:
        self.shutdowns += 1
        self.initialized = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(ray, "init", made.init)
    monkeypatch.setattr(ray, "shutdown", made.shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: made.initialized)
    monkeypatch.setattr("raylm.runtime.connect.read_environment_again", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return made


@pytest.fixture
def address() -> Iterator[str]:
    """Where somebody listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("said", "line"), [("refused\nat 10.0.0.1", "refused"), ("\n  refused  \n", "refused"), ("", "ValueError")]
)
def test_an_error_is_said_in_one_line(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line


def test_without_an_address_a_ray_is_started_here_and_ended(fake: FakeRay) -> None:
    with connected(None, LocalRay(cpus=3, object_store_bytes=9)) as own:
        assert own
        assert (fake.inits[0]["address"], fake.inits[0]["num_cpus"]) == ("local", 3)
        assert fake.inits[0]["object_store_memory"] == 9
    assert fake.shutdowns == 1


def test_a_job_of_a_cluster_joins_it_and_a_named_address_comes_first(
    fake: FakeRay, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with connected(None, LOCAL):
        assert fake.inits[-1]["address"] == address
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with connected(address, LOCAL):
        assert fake.inits[-1]["address"] == address


def test_a_ray_that_is_somebody_elses_is_used_and_left_alone(fake: FakeRay) -> None:
    fake.initialized = True
    with connected("127.0.0.1:1", LOCAL) as own:
        assert not own
    assert (fake.inits, fake.shutdowns) == ([], 0)


def test_users_share_one_connection_and_the_last_one_closes_it(fake: FakeRay, address: str) -> None:
    with connected(address, LOCAL):
        with connected(address, LOCAL), connected(None, LOCAL):
            pass
        assert (len(fake.inits), fake.shutdowns) == (1, 0)
        with (
            pytest.raises(ClusterError, match=r"cannot use the one at 127\.0\.0\.1:1 as well"),
            connected("127.0.0.1:1", LOCAL),
        ):
            pass
        assert fake.initialized
    assert fake.shutdowns == 1
    with connected(address, LOCAL):
        assert len(fake.inits) == 2


def test_nobody_at_an_address_is_said_without_ray(fake: FakeRay) -> None:
    port = free_port()
    with (
        pytest.raises(ClusterError, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port}: Connection refused"),
        connected(f"127.0.0.1:{port}", LOCAL),
    ):
        pass
    assert fake.inits == []


def test_other_versions_are_named(fake: FakeRay, address: str) -> None:
    from ray._private.utils import check_version_info

    fake.during = lambda: check_version_info({"ray_version": "9.9.9", "python_version": "3.4.5"}, "here")
    ours = rf"runs Ray 9\.9\.9 on Python 3\.4\.5, this process Ray {ray.__version__} on Python 3\.11"
    with pytest.raises(ClusterError, match=ours) as caught, connected(address, LOCAL):
        pass
    assert "versions" in str(caught.value.hint)


@pytest.mark.parametrize(
    "error", [ConnectionError("ray failed to connect\nmore"), ray.exceptions.AuthenticationError("InvalidAuthToken")]
)
def test_a_cluster_that_does_not_let_us_in_is_one_error_with_a_hint(
    fake: FakeRay, address: str, error: Exception
) -> None:
    def refuse() -> None:
        raise error

    fake.during = refuse
    with pytest.raises(ClusterError, match=address) as caught, connected(address, LOCAL):
        pass
    assert "RAY_AUTH_TOKEN" in str(caught.value.hint)
    assert "\n" not in caught.value.message


def test_the_users_token_is_sent_and_the_environment_is_as_before(fake: FakeRay, address: str, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    seen: list[str | None] = []

    def meddle() -> None:
        seen.append(os.environ.get("RAY_AUTH_MODE"))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "?"
        os.environ["PYTHONBREAKPOINT"] = "?"

    fake.during = meddle
    before = dict(os.environ)
    with connected(address, LOCAL):
        assert dict(os.environ) == before
    assert seen == ["token"]


@pytest.mark.parametrize("in_thread", [False, True])
def test_signal_handlers_are_as_before(fake: FakeRay, in_thread: bool) -> None:
    import ctypes

    libc = ctypes.CDLL(None)

    def meddle() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: None)
        libc.signal(int(signal.SIGUSR2), ctypes.c_void_p(1))  # SIG_IGN, which Python does not see

    fake.during = meddle
    heard: list[int] = []
    kept = [
        (number, signal.signal(number, lambda n, _: heard.append(n))) for number in (signal.SIGTERM, signal.SIGUSR2)
    ]
    try:
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}

        def use() -> None:
            with connected(None, LOCAL):
                pass

        if in_thread:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        else:
            use()
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
        for number, _ in kept:
            signal.raise_signal(number)
        assert heard == [signal.SIGTERM, signal.SIGUSR2]
    finally:
        for number, handler in kept:
            signal.signal(number, handler)
