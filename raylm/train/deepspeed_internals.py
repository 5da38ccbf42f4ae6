"""Every private name of DeepSpeed (0.19) that training uses, and what each does for it.

checkpoint/zero_state.py is the other door: it knows how the state lies. tests/test_deepspeed_internals.py has a canary
for each name.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def quiet_deepspeed() -> Any:
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


def parameter_divider(config: dict[str, Any], dtype: torch.dtype) -> Callable[[torch.nn.Parameter], None]:
    """What gives one whole parameter to stage 3, after which every rank holds its share only.

    zero.Init's own way takes a module whole, or patches every class of torch while one is made.
    """
    partition = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    nobody = torch.nn.Module()  # with a module, it also sets up stage 3's own Linear
    init: Any = partition.Init(module=nobody, config_dict_or_path=config, dtype=dtype)

    def divide(parameter: torch.nn.Parameter) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]

    return divide


def whole_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """The shape of a parameter, also of one that stage 3 has divided."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def undo_first_step(optimizer: Any) -> None:
    """Undo what stage 0's bf16 optimizer does when built: a step with zero gradients, which decays the masters."""
    if type(optimizer).__name__ == "FP16_UnfusedOptimizer":
        optimizer.refresh_fp32_params()
        optimizer.state.clear()


def is_plain(optimizer: Any) -> bool:
    """Whether the optimizer is torch's own, as at stage 0 in fp32: then DeepSpeed neither checks nor clips."""
    return isinstance(optimizer, torch.optim.Optimizer)


def drop_refused_gradients(optimizer: Any) -> None:
    """Forget a refused step's gradients: with offload in bf16, stages 1 and 2 would add the next ones to them."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        for index in optimizer.averaged_gradients:
            optimizer.averaged_gradients[index] = None


def forget_group() -> None:
    """Drop what DeepSpeed keeps in module globals about a group, so that it adopts the next one.

    Stage 3's parameter and module numbers count up for as long as the process lives and are compared between ranks,
    so that a survivor and a newcomer would disagree: they start from 0 again.
    """
    quiet_deepspeed()
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


def _silent(message: str, force: bool = False) -> None:
    pass
