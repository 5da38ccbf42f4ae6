"""The buffer that a save copies living tensors into, so that training may go on while they are written.

One buffer per process is kept and reused: fresh memory costs more to touch for the first time than to fill.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Staging:
    """One reused buffer, taken by `fill` on the training thread and given back by `release` on the upload's."""

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self._buffer: torch.Tensor | None = None
        self._pinned = False
        self._length = 0

    def fill(self, tensors: Sequence[tuple[int, torch.Tensor]], length: int) -> None:
        """Wait until the buffer is free, then copy each tensor to its byte offset."""
        self._taken.acquire()
        filled = False
        try:
            self._copy(tensors, length)
            filled = True
        finally:
            if not filled:
                self._taken.release()

    def bytes(self) -> memoryview:
        """What was filled in last."""
        assert self._buffer is not None, "nothing was staged"
        return self._buffer.numpy().data[: self._length]

    def release(self) -> None:
        """Let the next save have the buffer."""
        self._taken.release()

    def _copy(self, tensors: Sequence[tuple[int, torch.Tensor]], length: int) -> None:
        on_gpu = any(tensor.is_cuda for _, tensor in tensors)
        buffer = self._reserve(length, pinned=on_gpu)
        targets = []
        for offset, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            targets.append((buffer[offset : offset + size].view(tensor.dtype), tensor))
        to_host(targets)
        self._length = length

    def _reserve(self, length: int, *, pinned: bool) -> torch.Tensor:
        enough = self._buffer is not None and self._buffer.numel() >= length and self._pinned >= pinned
        if not enough:
            self._buffer = None  # before there is another
            self._buffer, self._pinned = host_buffer(max(length, 1), pinned=pinned), pinned
        assert self._buffer is not None
        return self._buffer


def host_buffer(length: int, *, pinned: bool) -> torch.Tensor:
    """So many new bytes of main memory; pinned, if the driver grants it, so that a GPU copies to them by itself."""
    import numpy as np
    import torch

    # numpy's, because its end is the end of the memory: a tensor may end before the views of it.
    memory = np.empty(length, dtype=np.uint8)
    buffer = torch.from_numpy(memory)
    # Registered rather than allocated pinned: torch's pinned allocator rounds up to a power of two.
    if pinned and length and _register(buffer):
        weakref.finalize(memory, _unregister, buffer.data_ptr()).atexit = False
    return buffer


def to_host(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy every second tensor into the first, a flat one in main memory; returns when all have arrived."""
    import torch

    for target, tensor in pairs:
        target.copy_(tensor.detach().reshape(-1), non_blocking=tensor.is_cuda)
    if any(tensor.is_cuda for _, tensor in pairs):
        torch.cuda.synchronize()


def _register(buffer: torch.Tensor) -> bool:
    # Portable (1): pinned for every CUDA context of the process.
    return int(_runtime().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 1)) == 0


def _unregister(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


STAGING = Staging()
