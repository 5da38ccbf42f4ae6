"""One optimizer step on any number of workers; its private dealings with DeepSpeed are in `deepspeed_internals`.

An engine can be destroyed and another built at another size in the same process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from raylm.config.job import Job
from raylm.config.optim import OptimSettings, ZeroSettings
from raylm.errors import TrainingError
from raylm.model.budget import BUCKET_ELEMENTS
from raylm.model.first_weights import FirstWeights, Nothing, place
from raylm.objectives.base import LossSums, Objective, on_device
from raylm.records import MicroBatch
from raylm.train.accumulation import micro_batches_per_rank
from raylm.train.deepspeed_internals import (
    drop_refused_gradients,
    forget_group,
    is_plain,
    parameter_divider,
    quiet_deepspeed,
    undo_first_step,
    whole_shape,
)
from raylm.train.group import Group
from raylm.train.probe import Probe


@dataclass(frozen=True)
class EngineSettings:
    """How a module is trained. accumulation: micro-steps of each rank. overrides: further settings of DeepSpeed's.

    compiled: its forward pass is one graph, in which nothing can be measured.
    """

    zero: ZeroSettings
    optim: OptimSettings
    micro_batch: int
    accumulation: int
    bf16: bool = True
    compiled: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, world_size: int) -> Self:
        """A job's, on this many workers."""
        accumulation = micro_batches_per_rank(job.batch.lanes, world_size)
        bf16, compiled = job.model.dtype == "bf16", job.model.compile
        return cls(job.zero, job.optim, job.batch.micro_batch, accumulation, bf16, compiled)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave, the same on every rank; sums are over all lanes."""

    loss_sum: float
    grad_norm: float
    skipped: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOutSums:
    """What an evaluation gave, the same on every rank: sums over all ranks' micro-batches."""

    loss_sum: float
    weight: float
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Engine:
    """A module under ZeRO, stepped a global batch at a time. One lives in a process at any time."""

    def __init__(self, raw: Any, group: Group, objective: Objective, settings: EngineSettings) -> None:
        self.raw = raw  # DeepSpeed's own engine, for checkpoint/zero_state
        self.group = group
        self.objective = objective
        self.accumulation = settings.accumulation
        self.under_way = 0  # micro-batches of a step that is not finished
        self.probe = Probe(group.device)
        if settings.zero.stage == 3:
            self.probe.sample([] if settings.compiled else raw.module.modules())
        self._clip = settings.optim.max_grad_norm
        self._plain = is_plain(raw.optimizer)

    @classmethod
    def build(
        cls,
        model: torch.nn.Module,
        group: Group,
        objective: Objective,
        settings: EngineSettings,
        weights: FirstWeights = Nothing(),  # noqa: B008  # it holds nothing
    ) -> Self:
        """Puts `model` under ZeRO on this group; the module is taken over and must not be used elsewhere.

        weights: give values to the parameters that have no memory yet, which none holds whole under stage 3.
        """
        deepspeed = quiet_deepspeed()
        elements = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if not elements:
            raise TrainingError("the model has no parameter to train", hint="unfreeze some of its parameters")
        config = deepspeed_config(settings, group, elements=elements)
        dtype = torch.bfloat16 if settings.bf16 else torch.float32
        with group.watched():
            divide = parameter_divider(config, dtype) if settings.zero.stage == 3 and _unfilled(model) else None
            place(model, weights, among=group, device=group.device, dtype=dtype, settle=divide)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = _adamw(trained, settings.optim)
            raw, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        undo_first_step(raw.optimizer)
        return cls(raw, group, objective, settings)

    @property
    def model(self) -> torch.nn.Module:
        """The module; under stage 3 its parameters are spread over the ranks."""
        module: torch.nn.Module = self.raw.module
        return module

    def step(
        self, micro_batches: Sequence[MicroBatch], *, step: int, seed: int, global_weight: float, lr: float
    ) -> StepResult:
        """Train on one global batch, of which these are this rank's lanes and `global_weight` is everyone's weight.

        Gradients are those of the mean over the global batch at any number of ranks. A loss or gradient that is not
        finite changes nothing, on any rank, and is reported as skipped. Nor does a batch without weight, which is
        no fault.
        """
        if global_weight <= 0:
            return StepResult(0.0, 0.0, skipped=False)
        for options in self.raw.optimizer.param_groups:
            options["lr"] = lr
        # DeepSpeed averages over ranks; the mean over the global batch's weight is a sum over ranks.
        scale = self.group.size / global_weight
        with self.group.watched():
            total = self._accumulate(self._micro_steps(micro_batches), step, seed, scale)
            norm, skipped = self._update()
        self.under_way = 0
        loss, *metrics = total.tolist()
        return StepResult(loss, norm, skipped, dict(zip(self.objective.metrics, metrics, strict=True)))

    def evaluate(self, dealt: Iterable[tuple[MicroBatch, bool, int]], *, sources: int = 1) -> list[HeldOutSums]:
        """Sums over all ranks' micro-batches, for each source; every rank has to give as many micro-batches.

        dealt: micro-batches, each with whether it counts and the number of the source that it is of. Under stage 3
        every rank takes part in every gather, so that one without a batch runs one that does not count.
        """
        objective = self.objective
        totals = torch.zeros(sources, 3 + len(objective.metrics), dtype=torch.float64)
        self.raw.eval()
        try:
            with torch.no_grad(), self.group.watched():
                for given, counts, source in dealt:
                    batch = given if counts else objective.without_weight(given)
                    sums = objective.held_out_sums(self.raw, on_device(batch, self.group.device))
                    weighed = [objective.weight(batch), objective.tokens(batch)]
                    totals[source, :2] += torch.tensor(weighed, dtype=torch.float64)
                    totals[source, 2:] += self._stacked(sums).cpu()
        finally:
            self.raw.train()
            self.probe.seconds()  # they are no step's
        width = totals.shape[1]
        flat = self.group.all_reduce_sum(totals.flatten().tolist())
        rows = [flat[first : first + width] for first in range(0, len(flat), width)]
        return [
            HeldOutSums(loss, weight, int(tokens), dict(zip(objective.metrics, metrics, strict=True)))
            for weight, tokens, loss, *metrics in rows
        ]

    def destroy(self) -> None:
        """Free everything, so that the group can be left and another engine built in this process."""
        self.raw.destroy()
        del self.raw
        forget_group()

    def _micro_steps(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches to run, as many on every rank: zero-weight copies first, so that a real one is last."""
        missing = self.accumulation - len(micro_batches)
        if missing < 0 or not micro_batches:
            raise TrainingError(
                f"rank {self.group.rank} got {len(micro_batches)} micro-batches for {self.accumulation} turns",
                hint="this is an error of the plan: every rank needs at least one lane and at most accumulation",
            )
        return [self.objective.without_weight(micro_batches[0])] * missing + list(micro_batches)

    def _accumulate(self, turns: Sequence[MicroBatch], step: int, seed: int, scale: float) -> Tensor:
        """Forward and backward over all turns; returns the global sums, loss first, still on the device."""
        total = torch.zeros(1 + len(self.objective.metrics), dtype=torch.float64, device=self.group.device)
        for turn, batch in enumerate(turns, start=1):
            self.raw.set_gradient_accumulation_boundary(turn == len(turns))
            torch.manual_seed(lane_seed(seed, step, batch.lane))
            with self.probe.forward():
                sums = self.objective.loss_sums(self.raw, on_device(batch, self.group.device))
            total += self._stacked(sums)
            # An infinite loss may come with finite gradients. This makes them NaN without waiting for the device or
            # for other ranks, and the optimizer refuses NaN on every rank by a path that also clears what was gathered.
            loss = sums.loss * torch.where(sums.loss.isfinite(), 1.0, math.nan).to(sums.loss.dtype)
            self.raw.backward(loss * scale, scale_wrt_gas=False)
            self.under_way = turn
        self.group.all_reduce(total)  # after the gradients: before them, every rank would wait for the slowest forward
        return total

    def _stacked(self, sums: LossSums) -> Tensor:
        """(1 + metrics,) the loss and the metrics in the objective's order."""
        numbers = [sums.loss, *(sums.metrics[name] for name in self.objective.metrics)]
        return torch.stack([number.detach().to(torch.float64) for number in numbers])

    def _update(self) -> tuple[float, bool]:
        """Clip and step, unless a gradient is not finite; returns the norm before clipping, and whether it refused."""
        if self._plain:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if not math.isfinite(norm):
                self.raw.zero_grad()
                return float(norm), True
            if self._clip > 0:
                torch.nn.utils.clip_grads_with_norm_(
                    [p for p in self.model.parameters() if p.grad is not None], self._clip, norm
                )
            self.raw.step()
            return float(norm), False
        self.raw.step()
        skipped = not self.raw.was_step_applied()
        if skipped:
            drop_refused_gradients(self.raw.optimizer)
        return float(self.raw.get_global_grad_norm()), skipped


def deepspeed_config(settings: EngineSettings, group: Group, *, elements: int) -> dict[str, Any]:
    """DeepSpeed's settings for one engine; whatever decides numbers is spelled out rather than left to a default.

    elements: how many numbers are trained.
    """
    zero, optim, bf16 = settings.zero, settings.optim, settings.bf16
    bucket = max(2, min(BUCKET_ELEMENTS, elements))
    zero_section: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": 2 * bucket,  # DeepSpeed wants it even
        "overlap_comm": group.device != "cpu",
        # Stage 3's own Linear frees gathered weights, which counts on a GPU; without it all stages agree bit for bit.
        "memory_efficient_linear": group.device != "cpu",
    }
    if zero.offload_optimizer:
        zero_section["offload_optimizer"] = {"device": "cpu", "pin_memory": group.device != "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        # Turns are counted here: the boundary is set by hand and the loss is scaled by the global batch's weight.
        "gradient_accumulation_steps": 1,
        # Its default is 1.0, which also hides wrong loss scales. Plain stage 0 is clipped by Engine.
        "gradient_clipping": 0.0 if zero.stage == 0 and not bf16 else optim.max_grad_norm,
        "zero_optimization": zero_section,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if bf16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if zero.stage > 0:  # stage 0 has no fp32 gradients to add up in
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config | dict(settings.overrides)


def lane_seed(seed: int, step: int, lane: int) -> int:
    """The seed of dropout for one micro-batch: a function of what is trained on, not of who trains on it."""
    digest = hashlib.blake2b(f"{seed}/{step}/{lane}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _unfilled(model: torch.nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _adamw(parameters: Sequence[torch.nn.Parameter], optim: OptimSettings) -> torch.optim.AdamW:
    """torch's fused AdamW, on the GPU and on the CPU.

    Also where the state is offloaded: it is one vectorized pass like DeepSpeedCPUAdam, needs no compiler on the
    machine, and gives the same numbers with and without offload.
    """
    groups = [
        {"params": [p for p in parameters if len(whole_shape(p)) >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if len(whole_shape(p)) < 2], "weight_decay": 0.0},  # norms and biases
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )
