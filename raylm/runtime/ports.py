"""Ports: one that is free, and whether somebody listens on one."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def refusal(host: str, port: int, *, patience_seconds: float) -> OSError | None:
    """Why a connection to host:port fails; None when somebody listens there."""
    try:
        socket.create_connection((host, port), patience_seconds).close()
    except OSError as error:
        return error
    return None
