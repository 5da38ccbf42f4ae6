"""Where a Ray of this machine may keep its Unix sockets, whose paths may have 107 bytes and no more."""

from __future__ import annotations

import os

# Behind a cluster's folder stands /session_2026-11-27_00-41-41_943186_4194304/sockets/plasma_store.
FOLDER_BYTES = 40
USUAL = "/tmp"


def fits(folder: str) -> bool:
    """Whether the paths of sockets in a cluster's folder are short enough."""
    return len(os.fsencode(folder)) <= FOLDER_BYTES


def temporary_folder(below: str) -> str:
    """Where temporary files go, for a cluster whose folder is called `below` there: /tmp where TMPDIR is too long."""
    wanted = os.environ.get("TMPDIR") or USUAL
    return wanted if fits(f"{wanted}/{below}") else USUAL
