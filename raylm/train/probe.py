"""How long a rank itself computes in a step, without what it waits for others: what tells a slow one from its peers.

A step takes as long on every rank, since all meet in its collectives. Under ZeRO 0 to 2 no rank waits within a forward
pass, so that its seconds are the rank's own; under stage 3 weights are gathered in it, and what is taken instead is a
sample of modules, each after it has its weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SAMPLED = 16  # modules, evenly over the depth of the model


class Probe:
    """Marks of when a device began and ended to compute; read once a step, after the device has finished it."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._begun: dict[int, Any] = {}
        self._spans: list[tuple[Any, Any]] = []
        self._sampled = False

    def sample(self, modules: Iterable[nn.Module]) -> None:
        """From now on, take some of those modules that hold weights and no others, in place of whole forward passes."""
        holding = [one for one in modules if not list(one.children()) and list(one.parameters(recurse=False))]
        for module in holding[:: max(1, len(holding) // SAMPLED)]:
            module.register_forward_pre_hook(self._before)  # behind DeepSpeed's, which gathers its weights
            module.register_forward_hook(self._behind, prepend=True)  # before DeepSpeed's, which lets them go
        self._sampled = True

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass."""
        began = None if self._sampled else self._mark()
        yield
        if began is not None:
            self._spans.append((began, self._mark()))

    def seconds(self) -> float:
        """The seconds since the last call, 0 where nothing could be measured."""
        spans, self._spans = self._spans, []
        self._begun.clear()
        if not self._cuda:
            return float(sum(ended - began for began, ended in spans))
        if spans:
            spans[-1][1].synchronize()
        return float(sum(began.elapsed_time(ended) for began, ended in spans)) / 1000

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _before(self, module: nn.Module, _: Any) -> None:
        self._begun[id(module)] = self._mark()

    def _behind(self, module: nn.Module, _: Any, __: Any) -> None:
        began = self._begun.pop(id(module), None)
        if began is not None:
            self._spans.append((began, self._mark()))
