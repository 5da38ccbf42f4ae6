"""What a hub warns of, in words; None where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CLOCK_SECONDS = 10.0  # a hello is on its way for less


def of_clock(name: str, ahead_seconds: float) -> str | None:
    """A machine's clock is so far ahead of the driver's."""
    if abs(ahead_seconds) <= CLOCK_SECONDS:
        return None
    direction = "ahead of" if ahead_seconds > 0 else "behind"
    return (
        f"the clock of {name} is {abs(ahead_seconds):.0f} s {direction} the driver's: synchronize them, as the "
        "deadline of a notice is a time of day"
    )


def of_nodes(nodes: Sequence[str], names: Sequence[str]) -> str | None:
    """All ranks are on the same one of these nodes."""
    if len(nodes) < 2 or len(set(nodes)) > 1:
        return None
    return (
        f"all {len(nodes)} workers are on one node, {names[0]}: the loss of a worker costs no step, the loss of that "
        "node those since the last checkpoint"
    )


def of_partition(out: Sequence[str], back: Sequence[str]) -> Iterator[str]:
    """Workers of these machines are left out, as they do not reach the others; those of these are not any more."""
    if out:
        yield (
            f"the network is parted: workers on {', '.join(out)} do not reach all others, and are left out until they "
            "do; see that every node reaches every other on all ports"
        )
    if back:
        yield f"workers on {', '.join(back)} reach the others again"


def of_break(workers: int, why: str) -> str | None:
    """A group of so many workers that all reach each other broke by itself."""
    return f"a group of {workers} workers broke, though all reach each other: {why}" if why else None
