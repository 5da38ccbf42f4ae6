"""What the phases of a regroup, a restart, a copy and a save of 7B take: arithmetic over named assumptions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

Redo = Literal["whole_step", "micro_batches"]
Leave = Literal["at_once", "late"]


def assumed(value: Any, source: str) -> Any:
    """A field with its value and where that comes from."""
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class Assumptions:
    """Every number that the simulation takes for given. `sources()` says where each comes from."""

    parameters: int = assumed(6_738_415_616, "arithmetic: llama-7b with 32,000 words")
    state_bytes_a_parameter: int = assumed(12, "arithmetic: fp32 weights and Adam's two moments")
    flops_a_token: float = assumed(46_086_512_640, "arithmetic: raylm.model.flops at rows of 4,096")
    batch_tokens: int = assumed(4_194_304, "chosen: 4 M tokens, as models of 7B are trained with")
    gpu_flops_per_second: float = assumed(395e12, "published: 40 % of an H100's dense bf16 peak")
    lanes: int = assumed(0, "chosen: 0 divides a step's work evenly; 1,024 is the batch in micro-batches of one row")
    min_gpus: int = assumed(2, "arithmetic: 16 bytes a parameter and activations on cards of 80 GB")
    max_nodes: int = assumed(32, "chosen: the largest published trace of node events has 32 nodes")
    network_1_bytes_per_second: float = assumed(25e9 / 8, "published: 25 Gbit/s for machines of one GPU")
    network_8_bytes_per_second: float = assumed(100e9 / 8, "published: 100 Gbit/s, the least for machines of eight")
    pcie_bytes_per_second: float = assumed(20e9, "published: PCIe 4 x16, pinned memory")
    storage_bytes_per_second: float = assumed(1e9, "assumed: one node and an object store")
    aws_notice_seconds: float = assumed(120, "published: AWS, on a best-effort basis")
    gcp_notice_seconds: float = assumed(30, "published: Google Cloud, on a best-effort basis")

    detect_seconds: float = assumed(0.3, "measured here on CPUs: a dead process ends its connection")
    close_seconds: float = assumed(0.05, "measured here on CPUs: leaving the old group, deciding the round")
    form_seconds: float = assumed(0.05, "measured here on CPUs: gloo, three ranks")
    nccl_seconds: float = assumed(4.0, "assumed, not measured: communicators of 32 to 256 GPUs")
    build_seconds: float = assumed(0.5, "measured here on CPUs: an empty model and its engine at stage 3")
    first_batch_seconds: float = assumed(0.3, "measured here: the first batch from S3")
    first_step_seconds: float = assumed(2.0, "measured here on CPUs at stage 3: what the first step takes longer")
    join_seconds: float = assumed(25, "measured here on CPUs: a node's arrival to its body's word, the slowest of ten")
    copy_drag: float = assumed(0.25, "assumed: training loses this part of a copy's network time; 1 hides nothing")
    copy_share: float = assumed(0.02, "chosen: copies may slow training down by this much")
    regroup_costs: float = assumed(3.0, "chosen: least time between voluntary regroups, in pauses of one regroup")

    restart_detect_seconds: float = assumed(2.5, "measured here on CPUs, before bodies outlived a loss")
    restart_processes_seconds: float = assumed(10, "measured here on CPUs: old group down, actors, imports")
    restart_build_seconds: float = assumed(115, "measured here on CPUs: random fp32 weights of 7B")
    restart_empty_build_seconds: float = assumed(0.1, "measured here on CPUs: 7B on the meta device")
    restart_transfer_seconds: float = assumed(4, "arithmetic: 13.5 GB over PCIe and NVLink")
    restart_warm_up_seconds: float = assumed(7, "measured here on CPUs: windows of rows, first step")
    index_seconds_a_gpu: float = assumed(0.022, "measured here on CPUs: reading every rank's index")
    restart_join_seconds: float = assumed(60, "the controller looked for new nodes once a minute")

    def sources(self) -> dict[str, list[Any]]:
        """Value and source of every field."""
        return {one.name: [getattr(self, one.name), one.metadata["source"]] for one in fields(self)}


@dataclass(frozen=True)
class Way:
    """What a run does about losses, notices and newcomers.

    `stays`: bodies outlive a loss, and a group pauses for a regroup in place of a restart. `copies` counts what copies
    in host memory cost and what is lost when they are old or die; without, they are free, current and safe. With
    `notices` every removal is announced, and members leave after the step that is under way (`at_once`) or after the
    last one that ends in time (`late`). `redo` is what of a step is done again after a loss: all of it, or the
    micro-batches of the lost ranks alone. `fixed_pause_seconds` takes the place of the phases.
    """

    name: str
    stays: bool = True
    empty_build: bool = True
    copies: bool = True
    notices: bool = False
    leave: Leave = "at_once"
    redo: Redo = "whole_step"
    fixed_pause_seconds: float | None = None
    join_seconds: float | None = None


@dataclass(frozen=True)
class Costs:
    """Seconds of everything that takes some, on nodes of one shape."""

    assumptions: Assumptions
    way: Way
    gpus_a_node: int

    @cached_property
    def state_bytes(self) -> float:
        return float(self.assumptions.parameters * self.assumptions.state_bytes_a_parameter)

    @cached_property
    def network_bytes_per_second(self) -> float:
        given = self.assumptions
        return given.network_1_bytes_per_second if self.gpus_a_node == 1 else given.network_8_bytes_per_second

    @cached_property
    def batch_gpu_seconds(self) -> float:
        """The useful GPU time in one optimizer step."""
        given = self.assumptions
        return given.flops_a_token * given.batch_tokens / given.gpu_flops_per_second

    @cached_property
    def join_seconds(self) -> float:
        """From a node's arrival until it may be a member."""
        if self.way.join_seconds is not None:
            return self.way.join_seconds
        return self.assumptions.join_seconds if self.way.stays else self.assumptions.restart_join_seconds

    def step_seconds(self, nodes: int) -> float:
        """One optimizer step, without copies; ranks that have fewer lanes than others wait for them."""
        gpus, lanes = nodes * self.gpus_a_node, self.assumptions.lanes
        return self.batch_gpu_seconds * (math.ceil(lanes / gpus) / lanes if lanes else 1 / gpus)

    def copy_seconds(self, nodes: int) -> float:
        """Every node's shards on their way to a neighbour; 0 where there is none."""
        return self.state_bytes / nodes / self.network_bytes_per_second if nodes > 1 else 0.0

    def copy_every_steps(self, nodes: int) -> int:
        """The fewest steps between copies at which they cost no more than they may."""
        held_up = self.copy_seconds(nodes) * self.assumptions.copy_drag
        return max(1, math.ceil(held_up / (self.assumptions.copy_share * self.step_seconds(nodes)) - 1e-9))

    def step_with_copies_seconds(self, nodes: int) -> float:
        """One optimizer step, a share of the copies with it."""
        if not (self.way.stays and self.way.copies):
            return self.step_seconds(nodes)
        held_up = self.copy_seconds(nodes) * self.assumptions.copy_drag
        return self.step_seconds(nodes) + held_up / self.copy_every_steps(nodes)

    def save_stall_seconds(self, nodes: int) -> float:
        """Staging a save in host memory."""
        return self.state_bytes / (nodes * self.gpus_a_node) / self.assumptions.pcie_bytes_per_second

    def storage_seconds(self, nodes: int) -> float:
        """Writing the state to storage, or reading it."""
        return self.state_bytes / nodes / self.assumptions.storage_bytes_per_second

    def restore_seconds(self, nodes: int) -> float:
        """Indexes and state out of storage."""
        gpus = nodes * self.gpus_a_node
        return self.assumptions.index_seconds_a_gpu * gpus + self.storage_seconds(nodes)

    def restart_seconds(self, nodes: int, *, lost: bool) -> float:
        """All workers anew, from storage; after a loss that has to be seen, or by choice after a save."""
        given = self.assumptions
        build = given.restart_empty_build_seconds if self.way.empty_build else given.restart_build_seconds
        before = given.restart_detect_seconds if lost else self.storage_seconds(nodes)
        start = given.restart_processes_seconds + given.nccl_seconds + build + given.restart_transfer_seconds
        return before + start + self.restore_seconds(nodes) + given.restart_warm_up_seconds

    def regroup_seconds(self, nodes: int, *, lost: bool, moved: float, stored: bool = False) -> float:
        """Members leave a group and form the next one. `moved` is the largest share of the state that a node passes on
        or receives; with `stored` the state comes out of storage."""
        if self.way.fixed_pause_seconds is not None:
            return self.way.fixed_pause_seconds
        given = self.assumptions
        group = given.close_seconds + given.form_seconds + given.nccl_seconds + given.build_seconds
        state = moved * self.state_bytes / self.network_bytes_per_second
        to_gpu = self.save_stall_seconds(nodes)
        first = given.first_batch_seconds + given.first_step_seconds + self.copy_seconds(nodes)
        return (
            (given.detect_seconds if lost else 0.0)
            + group
            + (self.restore_seconds(nodes) if stored else state)
            + to_gpu
            + first
        )


def state_moved(ring: Sequence[str], gone: Collection[str], members: Sequence[str]) -> float:
    """The largest share of the state that one node sends or receives when it is cut anew.

    Node i of a ring of n holds the i-th n-th and a copy of the one before. The owner sends what a member lacks, or the
    holder of the copy where the owner is gone.
    """
    traffic: dict[str, float] = {}
    size, ahead = len(ring), len(members)
    for place, member in enumerate(members):
        first, last = place / ahead, (place + 1) / ahead
        for owner in range(math.floor(first * size), min(size, math.ceil(last * size))):
            part = min(last, (owner + 1) / size) - max(first, owner / size)
            holder = ring[(owner + 1) % size]
            if part <= 0 or member in (ring[owner], holder):
                continue
            sender = holder if ring[owner] in gone else ring[owner]
            traffic[f"out {sender}"] = traffic.get(f"out {sender}", 0.0) + part
            traffic[f"in {member}"] = traffic.get(f"in {member}", 0.0) + part
    return max(traffic.values(), default=0.0)
