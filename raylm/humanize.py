"""Numbers in, words for people out: counts, bytes, time spans, moments."""

from __future__ import annotations

from datetime import UTC, datetime


def count(number: float) -> str:
    """A count in three digits: 950, 12.3k, 1.24M, 7.0B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{letter}"
    return f"{number:.0f}"


def size(byte_count: float) -> str:
    """A number of bytes in binary units: 812 B, 1.5 MiB, 13.0 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if byte_count < 1024:
            return f"{byte_count:.0f} B" if unit == "B" else f"{byte_count:.1f} {unit}"
        byte_count /= 1024
    return f"{byte_count:.1f} TiB"


def duration(seconds: float) -> str:
    """A time span: 0.8s, 42s, 3m 20s, 5h 02m, 2d 04h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02d}h"


def moment(at: float) -> str:
    """A time in seconds since 1970: 2026-03-01 10:20:30 UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
