"""Ports: one that is free, and whether somebody listens on one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AT_ONCE = 32  # connections that are tried


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


def listening(addresses: Mapping[T, str], *, patience_seconds: float) -> list[T]:
    """Those at whose "host:port" somebody listens, tried many at once."""

    def listens(address: str) -> bool:
        host, _, port = address.rpartition(":")
        return refusal(host.strip("[]"), int(port), patience_seconds=patience_seconds) is None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(listens, addresses.values())
        return [name for name, listened in zip(addresses, found, strict=True) if listened]
