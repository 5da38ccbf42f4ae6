"""One optimizer step on any number of workers: the only door to DeepSpeed besides checkpoint/layout.

Comes in: a module, a group, settings, then this rank's micro-batches of each global batch. Leaves: loss sums, gradient
norms and an updated module. An engine can be destroyed and another built at another size in the same process.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylm.config.model import ModelSettings
from raylm.config.optim import OptimSettings, ZeroSettings
from raylm.errors import TrainingError
from raylm.model.loss import IGNORED, loss_sum, target_tokens
from raylm.records import MicroBatch
from raylm.train.group import Group

LossSum = Callable[[Any, Tensor, Tensor, Sequence[NDArray[np.int32]] | None], Tensor]

# Elements of gradient sent at once. DeepSpeed's default of 5e8 is 2 GB of buffer, whatever the model's size.
BUCKET_ELEMENTS = 50_000_000


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave, the same on every rank. `loss_sum` is in nats over all lanes."""

    loss_sum: float
    grad_norm: float
    skipped: bool


class Engine:
    """A module under ZeRO, stepped a global batch at a time. One lives in a process at any time."""

    def __init__(self, raw: Any, group: Group, accumulation: int, loss: LossSum, optim: OptimSettings) -> None:
        self.raw = raw  # DeepSpeed's own engine, for checkpoint/layout
        self.group = group
        self.accumulation = accumulation
        self._loss = loss
        self._clip = optim.max_grad_norm
        # Plain stage 0 in fp32 is torch's own AdamW: DeepSpeed neither checks nor clips there.
        self._bare = isinstance(raw.optimizer, torch.optim.Optimizer)

    @classmethod
    def build(
        cls,
        model: torch.nn.Module,
        group: Group,
        *,
        zero: ZeroSettings,
        optim: OptimSettings,
        model_settings: ModelSettings,
        micro_batch: int,
        accumulation: int,
        loss: LossSum = loss_sum,
    ) -> Self:
        """Puts `model` under ZeRO on this group; the module is taken over and must not be used elsewhere."""
        deepspeed = _deepspeed()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TrainingError("the model has no parameter to train", hint="unfreeze some of its parameters")
        config = deepspeed_config(
            zero,
            optim,
            bf16=model_settings.dtype == "bf16",
            micro_batch=micro_batch,
            group=group,
            elements=_elements(trained),
        )
        optimizer = _adamw(trained, optim)
        with group.watched():
            raw, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        if type(raw.optimizer).__name__ == "FP16_UnfusedOptimizer":
            # Its constructor takes a step with zero gradients, which decays the masters and counts as one.
            raw.optimizer.refresh_fp32_params()
            raw.optimizer.state.clear()
        if not model_settings.document_attention:
            loss = _without_documents(loss)
        return cls(raw, group, accumulation, loss, optim)

    @property
    def model(self) -> torch.nn.Module:
        """The module; under stage 3 its parameters are spread over the ranks."""
        module: torch.nn.Module = self.raw.module
        return module

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        step: int,
        seed: int,
        global_tokens: int,
        lr: float,
        skip_bad: bool,
    ) -> StepResult:
        """Train on one global batch, of which these are this rank's lanes and `global_tokens` everyone's targets.

        Gradients are those of the mean over the global batch at any number of ranks. A loss or gradient that is not
        finite changes nothing, on any rank: it raises TrainingError, or with `skip_bad` is reported as skipped. Nor
        does a batch without any target, which is no error.
        """
        if global_tokens < 1:
            return StepResult(0.0, 0.0, skipped=False)
        for options in self.raw.optimizer.param_groups:
            options["lr"] = lr
        # DeepSpeed averages over ranks; the mean over the global batch's tokens is a sum over ranks.
        scale = self.group.size / global_tokens
        with self.group.watched():
            total = self._accumulate(self._micro_steps(micro_batches), step, seed, scale)
            norm, skipped = self._update()
        result = StepResult(float(total), norm, skipped)
        if skipped and not skip_bad:
            raise TrainingError(
                f"step {step}: loss {result.loss_sum / global_tokens:g} a token, gradient norm {norm:g}; "
                "nothing was updated",
                hint="lower optim.lr, or set train.bad_loss to skip",
            )
        return result

    def evaluate(self, micro_batches: Iterable[MicroBatch], count: int) -> tuple[float, int]:
        """Loss sum and target tokens over all ranks' micro-batches, of which every rank runs `count`, padded."""
        batches = iter(micro_batches)
        total, tokens = 0.0, 0
        self.raw.eval()
        try:
            with torch.no_grad(), self.group.watched():
                for _ in range(count):
                    # Under stage 3 every rank takes part in every gather, so one without a batch runs an empty one.
                    batch = next(batches, None) or _EMPTY
                    total += float(self._loss_of(batch))
                    tokens += target_tokens(batch.labels)
        finally:
            self.raw.train()
        total, summed_tokens = self.group.all_reduce_sum([total, tokens])
        return total, int(summed_tokens)

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
        return [_zero_weight(micro_batches[0])] * missing + list(micro_batches)

    def _accumulate(self, turns: Sequence[MicroBatch], step: int, seed: int, scale: float) -> Tensor:
        """Forward and backward over all turns; returns the global loss sum, still on the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        for turn, batch in enumerate(turns, start=1):
            self.raw.set_gradient_accumulation_boundary(turn == len(turns))
            torch.manual_seed(lane_seed(seed, step, batch.lane))
            loss = self._loss_of(batch)
            total += loss.detach()
            # An infinite loss may come with finite gradients. This makes them NaN without waiting for the device or
            # for other ranks, and the optimizer refuses NaN on every rank by a path that also clears what was gathered.
            loss = loss * torch.where(loss.isfinite(), 1.0, math.nan).to(loss.dtype)
            self.raw.backward(loss * scale, scale_wrt_gas=False)
        self.group.all_reduce(total)  # after the gradients: before them, every rank would wait for the slowest forward
        return total

    def _update(self) -> tuple[float, bool]:
        """Clip and step, unless a gradient is not finite; returns the norm before clipping, and whether it refused."""
        if self._bare:
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
        if skipped and hasattr(self.raw.optimizer, "single_partition_of_fp32_groups"):
            # Stages 1 and 2 with offload in bf16 keep the bad gradients and would add the next step's to them.
            for index in self.raw.optimizer.averaged_gradients:
                self.raw.optimizer.averaged_gradients[index] = None
        return float(self.raw.get_global_grad_norm()), skipped

    def _loss_of(self, batch: MicroBatch) -> Tensor:
        tokens = torch.from_numpy(batch.tokens).to(self.group.device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(self.group.device, non_blocking=True)
        return self._loss(self.raw, tokens, labels, batch.document_starts)


def deepspeed_config(
    zero: ZeroSettings, optim: OptimSettings, *, bf16: bool, micro_batch: int, group: Group, elements: int
) -> dict[str, Any]:
    """DeepSpeed's settings for one engine; whatever decides numbers is spelled out rather than left to a default."""
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
        "train_micro_batch_size_per_gpu": micro_batch,
        # Turns are counted here: the boundary is set by hand and the loss is scaled by the global batch's tokens.
        "gradient_accumulation_steps": 1,
        # Its default is 1.0, which also hides wrong loss scales. Bare stage 0 is clipped by Engine.
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
    return config


def lane_seed(seed: int, step: int, lane: int) -> int:
    """The seed of dropout for one micro-batch: a function of what is trained on, not of who trains on it."""
    digest = hashlib.blake2b(f"{seed}/{step}/{lane}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def forget_group() -> None:
    """Drop what DeepSpeed keeps in module globals about a group, so that it adopts the next one.

    Stage 3's parameter and module numbers count up for as long as the process lives and are compared between ranks,
    so that a survivor and a newcomer would disagree: they start from 0 again.
    """
    _deepspeed()
    comm: Any = importlib.import_module("deepspeed.comm.comm")
    comm.cdb = None
    importlib.reload(importlib.import_module("deepspeed.utils.groups"))
    partition = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    partition.Init.param_id = 0
    offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    offload.FWD_MODULE_STACK.clear()
    if hasattr(partition.Init, "linear_bk"):
        torch.nn.functional.linear = partition.Init.linear_bk
    gc.collect()


def prebuild() -> None:
    """Import what an engine needs, so that set-up fails where training would; nothing has to be compiled."""
    _deepspeed()


_EMPTY = MicroBatch(
    lane=0,
    tokens=np.zeros((1, 8), dtype=np.int64),
    labels=np.full((1, 8), IGNORED, dtype=np.int64),
    document_starts=(np.zeros(1, dtype=np.int32),),
    ids=np.zeros(1, dtype=np.int64),
    epochs=np.zeros(1, dtype=np.int64),
)


def _zero_weight(batch: MicroBatch) -> MicroBatch:
    return replace(batch, labels=np.full_like(batch.labels, IGNORED))


def _without_documents(loss: LossSum) -> LossSum:
    def whole_rows(model: Any, tokens: Tensor, labels: Tensor, starts: Sequence[NDArray[np.int32]] | None) -> Tensor:
        return loss(model, tokens, labels, None)

    return whole_rows


def _elements(parameters: Sequence[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _adamw(parameters: Sequence[torch.nn.Parameter], optim: OptimSettings) -> torch.optim.AdamW:
    """torch's fused AdamW, on the GPU and on the CPU.

    Also where the state is offloaded: it is one vectorised pass like DeepSpeedCPUAdam, needs no compiler on the
    machine, and gives the same numbers with and without offload.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )


@cache
def _deepspeed() -> Any:
    """DeepSpeed, quiet, and kept from compiling a helper that it would only use to save microseconds."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.utils").logger.setLevel(logging.WARNING)
    bf16_optimizer: Any = importlib.import_module("deepspeed.runtime.bf16_optimizer")
    bf16_optimizer.see_memory_usage = _silent  # it prints, whatever the log level
    nvtx: Any = importlib.import_module("deepspeed.utils.nvtx")
    nvtx.enable_nvtx = False  # its profiling marks break a compiled model's graph at every hook
    # It calls torch by older names on every step, and torch says so each time.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Its first use compiles for up to 200 s, and a killed build leaves a lock that hangs the next one.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _silent(message: str, force: bool = False) -> None:
    pass
