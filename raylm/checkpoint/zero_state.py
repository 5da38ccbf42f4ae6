"""Where training state stands inside DeepSpeed: the only module that knows its internals (0.19).

An engine's state is seen as 1-D views with the `Chunk` that says what each is; filled again, they are its state. That
every rank owns a contiguous fragment of each flattened tensor is what all ZeRO stages share.

What holds the fp32 weights of trained parameters, and so is the key of the optimizer's state:

    stage 1, 2                DeepSpeedZeroOptimizer       a rank's slice of each flattened parameter group
    stage 1, bf16             BF16_Optimizer               the same under other names
    stage 3                   ..._Stage3                   a rank's slice of each parameter, one after another
    stage 0, bf16             FP16_UnfusedOptimizer        a whole copy of each parameter
    stage 0, fp32             torch's own AdamW            the parameters themselves
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raylm.checkpoint.chunks import Chunk, Kind
from raylm.errors import CheckpointError

MOMENTS: tuple[Kind, Kind] = ("exp_avg", "exp_avg_sq")
STEP = "optimizer_step"


@dataclass(frozen=True)
class _Fragment:
    """Elements [start, start + length) of parameter `name`, at `offset` of the optimizer's fp32 tensor `holder`."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    holder: Tensor
    offset: int
    options: dict[str, Any]

    def view(self, tensor: Tensor) -> Tensor:
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)

    def chunk(self, kind: Kind, dtype: torch.dtype) -> Chunk:
        return _chunk(self.name, kind, self.start, self.length, dtype, self.shape)


def state_to_save(engine: Any) -> list[tuple[Chunk, Tensor]]:
    """What this rank saves: over all ranks every element of the state exactly once, without a copy."""
    rank, size = dist.get_rank(), dist.get_world_size()
    replicated = _stage(engine) == 0
    pairs = [_share(pair, rank, size) if replicated else pair for pair in _trained(engine)]
    for pair, whole in _untrained(engine):
        pairs.append(_share(pair, rank, size) if whole else pair)
    return [pair for pair in pairs if pair[0].length]


def state_to_fill(engine: Any) -> list[tuple[Chunk, Tensor]]:
    """What this rank has to be filled with, before `after_fill`: 1-D views into the live state."""
    pairs = [*_trained(engine), *(pair for pair, _ in _untrained(engine))]
    return [pair for pair in pairs if pair[0].length]


def scalars(engine: Any) -> dict[str, int | float]:
    """The state that is not a tensor of the model's: how often the optimizer has stepped, the same on every rank."""
    steps = {int(state["step"]) for state in _adam(engine).state.values() if "step" in state}
    assert len(steps) <= 1, f"parameters have stepped {sorted(steps)} times"
    return {STEP: steps.pop() if steps else 0}


@torch.no_grad()
def after_fill(engine: Any, values: Mapping[str, int | float]) -> None:
    """Makes the filled views take effect: step counters set, weights cast from masters. Every rank must call it."""
    if STEP not in values:
        raise CheckpointError(
            f"the state lacks {STEP!r} (it has: {', '.join(sorted(values)) or 'nothing'})",
            hint="it was not written by this version of raylm, or is damaged: resume from another checkpoint",
        )
    for fragment in _fragments(engine):
        _state_of(engine, fragment)["step"].fill_(int(values[STEP]))
    optimizer, stage = engine.optimizer, _stage(engine)
    if stage == 3:
        optimizer._partition_all_parameters()  # gathered copies would outlive the change
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif stage in (1, 2):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                weight.copy_(master)


def _trained(engine: Any) -> Iterator[tuple[Chunk, Tensor]]:
    """This rank's masters and moments, as far as it has them."""
    for fragment in _fragments(engine):
        yield fragment.chunk("master", fragment.holder.dtype), fragment.view(fragment.holder)
        state = _state_of(engine, fragment)
        for kind in MOMENTS:
            yield fragment.chunk(kind, state[kind].dtype), fragment.view(state[kind])


def _untrained(engine: Any) -> Iterator[tuple[tuple[Chunk, Tensor], bool]]:
    """Frozen parameters and persistent buffers, each with whether every rank holds the whole of it."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if not hasattr(parameter, "ds_tensor"):
            yield _whole(name, "frozen", parameter), True
            continue
        start, length = _slice_of(parameter)
        shard = parameter.ds_tensor.detach().view(-1).narrow(0, 0, length)
        yield (_chunk(name, "frozen", start, length, shard.dtype, tuple(parameter.ds_shape)), shard), False
    for prefix, module in engine.module.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:  # made anew from the config
                continue
            if not buffer.is_contiguous():
                buffer.data = buffer.contiguous()
            yield _whole(f"{prefix}.{name}" if prefix else name, "buffer", buffer), True


def _fragments(engine: Any) -> Iterator[_Fragment]:
    """This rank's part of every trained parameter, in the order of the optimizer's groups."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        yield from _fragments_of_parameters(engine, optimizer)
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        for index, holder in enumerate(optimizer.single_partition_of_fp32_groups):
            parameters = optimizer.round_robin_bit16_groups[index]
            offsets = optimizer.round_robin_bit16_offsets[index]
            yield from _fragments_of_group(engine, index, holder, parameters, offsets)
    elif hasattr(optimizer, "fp32_groups_flat_partition"):
        for index, holder in enumerate(optimizer.fp32_groups_flat_partition):
            parameters = optimizer.bf16_groups[index]
            yield from _fragments_of_group(engine, index, holder, parameters, _running(p.numel() for p in parameters))
    elif hasattr(optimizer, "fp32_groups"):
        for index, masters in enumerate(optimizer.fp32_groups):
            for master, weight in zip(masters, optimizer.fp16_groups[index], strict=True):
                yield _whole_fragment(engine, weight, master, optimizer.param_groups[index])
    elif isinstance(optimizer, torch.optim.Optimizer):
        for options in optimizer.param_groups:
            for parameter in options["params"]:
                yield _whole_fragment(engine, parameter, parameter, options)
    else:
        raise CheckpointError(
            f"state cannot be found inside DeepSpeed's {type(optimizer).__name__}",
            hint="install the DeepSpeed version that raylm's constraints file names",
        )


def _fragments_of_group(
    engine: Any, index: int, holder: Tensor, parameters: list[Any], offsets: list[int]
) -> Iterator[_Fragment]:
    """Stages 1 and 2: the group laid end to end and cut into as many equal parts as there are ranks."""
    first = holder.numel() * dist.get_rank()
    for parameter, offset in zip(parameters, offsets, strict=True):
        start, stop = max(offset, first), min(offset + parameter.numel(), first + holder.numel())
        if start < stop:
            name, shape = engine.param_names[parameter], tuple(parameter.shape)
            options = engine.optimizer.param_groups[index]
            yield _Fragment(name, shape, start - offset, stop - start, holder, start - first, options)


def _fragments_of_parameters(engine: Any, optimizer: Any) -> Iterator[_Fragment]:
    """Stage 3: every parameter cut into equal parts, the last ones short or empty; a rank's parts end to end."""
    for index, holder in enumerate(optimizer.fp32_partitioned_groups_flat):
        options = optimizer.param_groups[optimizer.sub_group_to_group_id[index]]
        offset = 0
        for parameter in optimizer.fp16_groups[index]:
            start, length = _slice_of(parameter)
            if length:
                shape = tuple(parameter.ds_shape)
                yield _Fragment(engine.param_names[parameter], shape, start, length, holder, offset, options)
            offset += parameter.partition_numel()


def _whole_fragment(engine: Any, parameter: Any, holder: Tensor, options: dict[str, Any]) -> _Fragment:
    return _Fragment(engine.param_names[parameter], tuple(parameter.shape), 0, parameter.numel(), holder, 0, options)


def _state_of(engine: Any, fragment: _Fragment) -> dict[str, Any]:
    """The optimizer's state of a holder, made as its first step would make it."""
    state: dict[str, Any] = _adam(engine).state[fragment.holder]
    if not state:
        # Fused AdamW counts on the device, in fp32.
        device = fragment.holder.device if fragment.options.get("fused") else "cpu"
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(fragment.holder, requires_grad=False)
    return state


def _adam(engine: Any) -> Any:
    """torch's optimizer inside DeepSpeed's."""
    return engine.optimizer if isinstance(engine.optimizer, torch.optim.Optimizer) else engine.optimizer.optimizer


def _stage(engine: Any) -> int:
    return int(engine.zero_optimization_stage())


def _slice_of(parameter: Any) -> tuple[int, int]:
    """Stage 3: start and length of this rank's part of a parameter, without padding."""
    part = parameter.partition_numel()
    start = min(part * dist.get_rank(), parameter.ds_numel)
    return start, min(part, parameter.ds_numel - start)


def _whole(name: str, kind: Kind, tensor: Tensor) -> tuple[Chunk, Tensor]:
    chunk = _chunk(name, kind, 0, tensor.numel(), tensor.dtype, tuple(tensor.shape))
    return chunk, tensor.detach().view(-1)


def _share(pair: tuple[Chunk, Tensor], rank: int, size: int) -> tuple[Chunk, Tensor]:
    """One rank's part of what every rank holds the whole of."""
    chunk, tensor = pair
    start, stop = chunk.length * rank // size, chunk.length * (rank + 1) // size
    part = Chunk(chunk.name, chunk.kind, start, stop - start, chunk.dtype, chunk.numel, chunk.shape)
    return part, tensor.narrow(0, start, stop - start)


def _chunk(name: str, kind: Kind, start: int, length: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Chunk:
    return Chunk(name, kind, start, length, str(dtype).removeprefix("torch."), torch.Size(shape).numel(), shape)


def _running(sizes: Iterator[int]) -> list[int]:
    """Where each of several things begins when they are laid end to end."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return starts
