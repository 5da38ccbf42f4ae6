"""Counts the bytes of the tensors that torch makes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Bytes of all tensors made while it watches, now and at most."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def add(self, tensor: Any) -> None:
        """Take note of a tensor for as long as its memory lives."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.live or tensor.device.type == "meta":
            return
        self.live[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


@contextmanager
def metered(known: Any = None) -> Iterator[Meter]:
    """Counts every tensor that torch makes on this thread; those of `known` and their gradients weigh nothing."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    meter = Meter()

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(made):
                if isinstance(leaf, torch.Tensor):
                    meter.add(leaf)
            return made

    for parameter in known.parameters() if known is not None else ():
        for tensor in (parameter, parameter.grad):
            meter.live[tensor.untyped_storage()._cdata] = 0
    with Watch():  # type: ignore[no-untyped-call]
        yield meter
