"""A canary for each private name of Ray: it still exists, and does what the package uses it for."""

from __future__ import annotations

import base64
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from raylm.runtime import ray_internals


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """A Ray of this machine with two CPUs."""
    from raylm.runtime.connect import LocalRay, connected

    with connected(None, LocalRay(cpus=2, object_store_bytes=80_000_000)):
        import ray

        yield ray


def test_resources_and_drains_are_told_by_node(ray_here: Any) -> None:
    (node,) = ray_here.nodes()
    assert ray_internals.draining_nodes() == {}
    assert ray_internals.free_resources()[node["NodeID"]]["CPU"] == 2
    assert {"NodeManagerAddress", "NodeManagerPort", "Alive", "Resources"} <= set(node)


def children() -> list[list[str]]:
    """The command lines of this process's children."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found.append(child.cmdline() or [""])
    return found


def test_a_raylets_command_line_names_its_node(ray_here: Any) -> None:
    found = {ray_internals.raylet_node_id(child) for child in children()}
    assert found - {None} == {ray_here.nodes()[0]["NodeID"]}


def test_the_health_checks_are_known_to_ray(ray_here: Any) -> None:
    from ray._raylet import Config  # type: ignore[attr-defined]

    assert set(ray_internals.HEALTH_CHECKS) <= set(dir(Config))


def test_a_ray_of_one_node_is_as_patient_as_rays_own(ray_here: Any) -> None:
    """A busy machine answers late; nothing is won by declaring its only node dead."""
    given = [
        json.loads(base64.b64decode(word.removeprefix("--config_list=")))
        for child in children()
        for word in child
        if "gcs_server" in child[0] and word.startswith("--config_list=")
    ]
    assert given
    assert not given[0].keys() & ray_internals.HEALTH_CHECKS.keys()


def test_the_warnings_of_a_start_are_still_worded_so_and_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    from importlib import import_module

    for name, words in ray_internals.START_WARNINGS.items():
        assert f'"{words} ' in inspect.getsource(import_module(name))
        logger = logging.getLogger(name)
        with caplog.at_level(logging.WARNING, logger=name), ray_internals.quiet_start():
            logger.warning(f"{words} and so on")
        logger.warning("another warning")
        assert logger.filters == []


def test_the_token_mode_is_read_again() -> None:
    """Asked of Ray in a process of its own, where it is imported before the variable is set."""
    import subprocess
    import sys

    code = """if True:
        import os
        import ray
        from ray._raylet import get_authentication_mode, AuthenticationMode
        from raylm.runtime.ray_internals import read_environment_again
        before = get_authentication_mode()
        os.environ["RAY_AUTH_MODE"] = "token"
        read_environment_again()
        print(before == AuthenticationMode.TOKEN, get_authentication_mode() == AuthenticationMode.TOKEN)
    """
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_an_actors_method_runs_in_the_group_it_is_marked_for(ray_here: Any) -> None:
    class Two:
        @ray_internals.in_concurrency_group("one")
        def first(self) -> int:
            return threading.get_ident()

        @ray_internals.in_concurrency_group("other")
        def second(self) -> int:
            return threading.get_ident()

    actor = ray_here.remote(num_cpus=0, concurrency_groups={"one": 1, "other": 1})(Two).remote()
    assert ray_here.get(actor.first.remote()) != ray_here.get(actor.second.remote())


def test_an_execution_that_a_thread_waits_in_is_ended(ray_here: Any) -> None:
    import ray.data

    ray_internals.quiet_ray_data()
    assert all(logging.getLogger(name).level == logging.ERROR for name in ray_internals.DATA_LOGGERS)

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        time.sleep(3.0)
        return row

    dataset = ray.data.range(40, override_num_blocks=40).map(slow)
    ended = threading.Event()

    def consume() -> None:
        for _ in dataset.iter_rows():
            pass
        ended.set()

    threading.Thread(target=consume, daemon=True).start()
    until = time.monotonic() + 30
    while getattr(dataset, "_current_executor", None) is None and time.monotonic() < until:
        time.sleep(0.05)
    ray_internals.end_execution(dataset)
    assert ended.wait(20), "40 tasks of 3 s on two CPUs take 60 s"
