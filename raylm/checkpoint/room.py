"""How much host memory there is for copies, and whether it is enough."""

from __future__ import annotations

from pathlib import Path

from raylm.humanize import size

# Of what is available, what copies may take: the rest is for batches, uploads and whatever else grows.
SHARE = 0.8
CGROUP = Path("/sys/fs/cgroup")
# Limit and use, in version 2 of control groups and in version 1.
CONTROL_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Host memory that can still be taken, here or in this container, whichever is less."""
    import psutil

    found = int(psutil.virtual_memory().available)
    for limit, used in CONTROL_FILES:
        try:
            found = min(found, max(0, int((cgroup / limit).read_text()) - int((cgroup / used).read_text())))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return found


def lacking(needed: int, available: int, *, workers: int) -> str | None:
    """Why so many workers of one node cannot each take so many bytes for copies; None when they can."""
    if needed * workers <= SHARE * available:
        return None
    each = f" for {workers} workers" if workers > 1 else ""
    return f"copies of the state need {size(needed * workers)} of host memory{each}, and {size(available)} is available"
