"""NCCL's settings for groups that are aborted and formed anew."""

from __future__ import annotations

import os

# What torch records of NCCL's collectives, and writes out when one fails: it held the next group up for 4 s.
FLIGHT_RECORDER = ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT")


def without_flight_recorder() -> None:
    """Switch it off for this process, unless somebody set it; to be called before torch is imported."""
    for name in FLIGHT_RECORDER:
        os.environ.setdefault(name, "0")
