"""Every private name of Ray that the package uses (2.60), and what each does for it.

pyproject.toml pins Ray's minor version; tests/test_ray_internals.py has a canary for each name. Ray is imported when
a name is first used, not with this module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# For clusters of several nodes that raylm starts: a dead node is declared after about two seconds, not ten or more.
# `ray start --system-config` is private.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}
# What Ray warns of at its start, by logger: that tokens are in use, which is as wanted, and that it sets no handler of
# SIGTERM in another thread than the main one, which is as wanted too.
START_WARNINGS = {
    "ray._private.authentication.authentication_token_setup": "Token authentication is enabled",
    "ray._private.worker": "SIGTERM handler is not set",
}
# Loggers of Ray Data that write a line for each execution and for the missing progress bar.
DATA_LOGGERS = ("ray.data._internal.execution.streaming_executor", "ray.data._internal.progress")


# -- nodes -----------------------------------------------------------------------------------------------------------


def draining_nodes() -> dict[str, float | None]:
    """Node id → seconds until its deadline (None when unknown) of every node about to be reclaimed."""
    from ray._private import state

    now_ms = time.time() * 1000
    draining = state.state.get_draining_nodes() or {}
    return {node: max(0.0, (deadline - now_ms) / 1000) if deadline else None for node, deadline in draining.items()}


def free_resources() -> dict[str, dict[str, float]]:
    """Node id → what nobody holds of each of its resources."""
    from ray._private import state

    found: dict[str, dict[str, float]] = state.available_resources_per_node()
    return found


def raylet_node_id(command_line: list[str]) -> str | None:
    """Ray's id of the node whose raylet was started with this command line; None when it is no raylet's."""
    if not command_line or Path(command_line[0]).name != "raylet":
        return None
    return next((word.removeprefix("--node_id=") for word in command_line if word.startswith("--node_id=")), None)


# -- connections and actors --------------------------------------------------------------------------------------------


@contextmanager
def quiet_start() -> Iterator[None]:
    """Without START_WARNINGS in this block."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(START_WARNINGS[record.name])

    for name in START_WARNINGS:
        logging.getLogger(name).addFilter(wanted)
    try:
        yield
    finally:
        for name in START_WARNINGS:
            logging.getLogger(name).removeFilter(wanted)


def read_environment_again() -> None:
    """Have Ray read RAY_* settings anew: RAY_AUTH_MODE is read once, when Ray is imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")


def wants_token(address: str, *, patience_seconds: float) -> bool:
    """Whether the cluster at host:port refuses whoever brings no token; False where it says nothing of that.

    `ray.init` goes on asking for twenty seconds, with a line on standard error for each.
    """
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
        try:
            ask(gcs_service_pb2.GetClusterIdRequest(), timeout=patience_seconds)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def in_concurrency_group(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`ray.method(concurrency_group=…)`, without importing Ray with the module of the actor's class."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__ray_concurrency_group__ = name  # type: ignore[attr-defined]
        return method

    return mark


# -- Ray Data ------------------------------------------------------------------------------------------------------


def quiet_ray_data() -> None:
    """Silence the lines that Ray Data logs for each execution."""
    for name in DATA_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def end_execution(dataset: Any) -> None:
    """End the execution that a thread waits in: an iterator of Ray Data cannot be closed from another thread.

    Without this it ends by itself, once its tasks are done and the dataset is collected.
    """
    executor = getattr(dataset, "_current_executor", None)
    if executor is not None:
        executor.shutdown(force=False)
