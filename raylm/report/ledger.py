"""The ledger of a run's starts: for each why, who came and went, what it took, and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from raylm.humanize import duration, moment
from raylm.run.events import PreemptionNotice, ShrinkRequested, WorkerLost
from raylm.run.history import History
from raylm.run.regroups import Regroup, in_order, regroups, seconds_of

# More starts than this are not all listed.
MAX_STARTS = 200
# More lost workers than this are not all named in one row.
MAX_NAMES = 4


def ledger(history: History) -> str:
    """A row for each start of a generation, the newest ones where there are very many."""
    starts = regroups(history)
    if not starts:
        return ""
    listed = starts[-MAX_STARTS:]
    names = in_order({name for one in listed for name in one.phases})
    heads = ["time (UTC)", "step", "why", "workers", *names, "sum", "since loss", "steps lost"]
    top = "".join(f"<th>{escape(head)}</th>" for head in heads[:4])
    top += "".join(f'<th class="n">{escape(head)}</th>' for head in heads[4:])
    left_out = len(starts) - len(listed)
    note = f" {left_out:,} earlier starts are left out; the run folder's events hold them." if left_out else ""
    return (
        f"<section><h2>Starts and regroups</h2><p>{_summary(starts)}{note}</p>"
        f'<div class="wide"><table class="grid ledger"><tr>{top}</tr>'
        f"{''.join(_row(one, names) for one in listed)}</table></div></section>"
    )


def why(one: Regroup) -> str:
    """What led to a start, in words."""
    lost = [event for event in one.before if isinstance(event, WorkerLost)]
    reasons = []
    for verb, events in (
        ("lost", [event for event in lost if not _own_error(event)]),
        ("failed", [event for event in lost if _own_error(event)]),
    ):
        if events:
            reasons.append(f"{verb}: {_some([who for event in events for who in _who(event)])}")
    noticed = [event for event in one.before if isinstance(event, PreemptionNotice)]
    if noticed:
        ranks = sorted({rank for event in noticed for rank in event.ranks})
        reasons.append(f"notice: {_some([f'rank {rank}' for rank in ranks]) or 'a node'}")
    if any(isinstance(event, ShrinkRequested) for event in one.before):
        reasons.append("shrink: another run's share")
    before, now = one.workers_before, one.start.workers
    if one.of_a_driver:
        reasons.insert(0, "driver start")
    elif before is not None and now is not None and now > before:
        reasons.append(f"join: {now - before} more")
    elif before is not None and now is not None and now < before and not reasons:
        reasons.append(f"leave: {before - now} fewer")
    return "; ".join(reasons) or "regroup at the same size"


def _summary(starts: Sequence[Regroup]) -> str:
    """All starts of groups that followed another one, in a sentence."""
    took = sorted(seconds_of(one.start.since_loss_seconds) for one in starts if not one.of_a_driver)
    lost = sum(one.start.steps_lost or 0 for one in starts)
    drivers = sum(one.of_a_driver for one in starts)
    words = f"{drivers:,} by a driver, {len(took):,} regroup{'s' if len(took) != 1 else ''}"
    if took:
        words += f" (median {duration(took[len(took) // 2])}, longest {duration(took[-1])})"
    return f"{words}; {lost:,} finished step{'s' if lost != 1 else ''} lost. All times in seconds."


def _row(one: Regroup, names: Sequence[str]) -> str:
    start = one.start
    before = "-" if one.workers_before is None else f"{one.workers_before}"
    now = "?" if start.workers is None else f"{start.workers}"
    messages = " / ".join(event.message for event in one.before if isinstance(event, WorkerLost))[:500]
    numbers = [
        *(_number(one.phases.get(name)) for name in names),
        _number(one.seconds),
        _number(start.since_loss_seconds),
        f"{start.steps_lost or 0:,}",
    ]
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    return (
        f"<tr><td>{moment(start.at).removesuffix(' UTC')}</td><td>{start.step:,}</td>"
        f'<td title="{escape(messages)}">{escape(why(one))}</td><td>{before} → {now}</td>'
        f"{cells}</tr>"
    )


def _number(seconds: float | None) -> str:
    """Seconds in at most four digits or so; nothing where the log tells none."""
    if seconds is None:
        return ""
    return f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"


def _own_error(event: WorkerLost) -> bool:
    """Whether the program failed there, rather than its process or machine."""
    return event.message.startswith("error: ")


def _who(event: WorkerLost) -> list[str]:
    """Each rank of the event, with its node's name where that is told."""
    if len(event.nodes) != len(event.ranks):
        return [f"rank {rank}" for rank in event.ranks] + [str(node) for node in event.nodes] or ["a worker"]
    return [f"rank {rank} on {node}" for rank, node in zip(event.ranks, event.nodes, strict=True)] or ["a worker"]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
