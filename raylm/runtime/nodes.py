"""Nodes of a cluster: how many workers fit on those that live, answer and are not about to be reclaimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylm.runtime.ports import refusal
from raylm.runtime.ray_internals import draining_nodes, free_resources

ANSWER_SECONDS = 1.0


def slots(resources: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """Workers that fit into one node's resources."""
    wanted = {name: amount for name, amount in needed.items() if amount > 0}
    if not wanted:
        return 1
    # The tolerance is for fractional resources that have been taken and given back.
    return int(min((resources.get(name, 0.0) + 1e-6) // amount for name, amount in wanted.items()))


def answers(node: Mapping[str, Any]) -> bool:
    """Whether a node's raylet takes connections.

    One that was killed a moment ago is still called alive, and a group that is placed on it waits until it times out.
    """
    return refusal(node["NodeManagerAddress"], node["NodeManagerPort"], patience_seconds=ANSWER_SECONDS) is None


def usable_nodes() -> list[Mapping[str, Any]]:
    """The nodes that Ray calls alive and that nobody is about to reclaim."""
    import ray

    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def capacity(needed: Mapping[str, float], held: Sequence[str] = ()) -> int:
    """Workers that fit now; `held` names the node of each worker whose resources are about to be given back.

    Those are not among the free ones yet.
    """
    free = free_resources()
    fits = 0
    for node in usable_nodes():
        name = node["NodeID"]
        fitting = min(slots(free.get(name, {}), needed) + held.count(name), slots(node["Resources"], needed))
        fits += fitting if fitting and answers(node) else 0
    return fits
