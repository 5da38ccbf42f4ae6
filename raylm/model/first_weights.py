"""A model's first weights, made some at a time and shared out, so that no process ever draws or reads all of them.

A model begins without memory for its parameters. `place` gives it some, unit by unit: one rank makes a unit's values,
the others receive them, and stage 3 keeps no more than its share before the next unit is made. What is drawn depends
on the seed and the unit's name alone, so that any number of ranks begins with the same weights.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Vectors and other small parameters keep what their constructor gave them: a family may count on it and not draw them.
CONSTRUCTED_ELEMENTS = 4096


@dataclass(frozen=True)
class Unit:
    """Parameters whose values are made together: those of one block in a stack of layers, or a module's own.

    rules: the model, or the part of a composite one, that says how they are drawn. parameters: by their full names.
    """

    name: str
    module: nn.Module
    rules: Any
    whole: bool
    parameters: Mapping[str, nn.Parameter]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return sum(parameter.numel() for parameter in self.parameters.values())


class FirstWeights(Protocol):
    """Where first values come from."""

    @property
    def anywhere(self) -> bool:
        """Whether every rank can make every unit; else rank 0 makes all."""

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """The unit's values on the CPU, by full name; they may be overwritten when the next unit's are made."""


class Sharing(Protocol):
    """The ranks that build one model together."""

    @property
    def rank(self) -> int:
        """This process's number."""

    @property
    def size(self) -> int:
        """How many they are."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor on every rank with that of one of them."""


@dataclass(frozen=True)
class Alone:
    """One process that builds a model for itself."""

    rank: int = 0
    size: int = 1

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Nobody else is there."""


@dataclass
class Drawn:
    """Random numbers by the rules of the model's family."""

    seed: int
    anywhere: bool = True
    _room: Tensor = field(default_factory=lambda: torch.empty(0))

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """The unit's values, which depend on the seed and its name alone."""
        if self._room.numel() < unit.elements:
            self._room = torch.empty(unit.elements)  # kept: fresh memory costs more than the numbers
        values, at = {}, 0
        for name, parameter in unit.parameters.items():
            values[name] = self._room[at : at + parameter.numel()].view(parameter.shape).zero_()
            at += parameter.numel()
            if (constructed := getattr(parameter, "constructed", None)) is not None:
                values[name].copy_(constructed)
        instead = [(unit.parameters[name], nn.Parameter(value)) for name, value in values.items()]
        # Rules fill all of a module, also a weight that is tied to another unit's, which may be placed or divided.
        own = {id(parameter) for parameter in unit.parameters.values()}
        others = [parameter for parameter in unit.module.parameters() if id(parameter) not in own]
        instead += [(parameter, nn.Parameter(torch.empty_like(parameter, device="meta"))) for parameter in others]
        digest = hashlib.blake2b(f"{self.seed}/{unit.name}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _Places(unit.module).holding(instead):
            torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            _draw(unit.module, unit.rules, deep=unit.whole)
        return values


@dataclass(frozen=True)
class Given:
    """The state of a model that is whole in this process's memory."""

    state: Mapping[str, Tensor]
    anywhere: bool = False

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """The unit's values out of it."""
        return {name: self.state[name] for name in unit.parameters}


@dataclass(frozen=True)
class Nothing:
    """No values: whoever restores a state fills them."""

    anywhere: bool = True

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}


def place(
    model: nn.Module,
    weights: FirstWeights,
    *,
    among: Sharing = Alone(),  # it holds nothing that changes
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    settle: Callable[[nn.Parameter], None] | None = None,
) -> None:
    """Give every parameter that has no memory yet some on `device`, with its values; collective over `among`.

    settle: what is done with each as soon as it has its values, such as dividing it. Buffers move to the device.
    """
    units = sorted(units_of(model), key=lambda unit: -unit.elements)  # each round's are of one size
    turns = among.size if weights.anywhere else 1
    filled = not isinstance(weights, Nothing)
    places = _Places(model)
    for first in range(0, len(units), turns):
        some = units[first : first + turns]
        mine = weights.of(some[among.rank]) if among.rank < len(some) else {}
        for source, unit in enumerate(some):
            for name, parameter in unit.parameters.items():
                flat = torch.empty(parameter.numel(), device=device, dtype=dtype)
                if name in mine:
                    flat.copy_(mine[name].reshape(-1))
                if filled and among.size > 1:
                    among.broadcast(flat.view(torch.uint8), source)
                real = nn.Parameter(flat.view(parameter.shape), requires_grad=parameter.requires_grad)
                places.put(parameter, real)
                if settle is not None:
                    settle(real)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def units_of(model: nn.Module) -> list[Unit]:
    """The parameters without memory, each in one unit: a tied one in the first that has it."""
    units: list[Unit] = []
    seen: set[int] = set()
    for name, module, rules, whole in _parts(model, "", model):
        new = {
            f"{name}.{local}" if name else local: parameter
            for local, parameter in module.named_parameters(recurse=whole)
            if parameter.is_meta and id(parameter) not in seen
        }
        seen.update(id(parameter) for parameter in new.values())
        if new:
            units.append(Unit(name, module, rules, whole, new))
    return units


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters made inside the block by this thread have no memory; buffers have theirs, with their values."""
    register = nn.Module.register_parameter
    here = threading.get_ident()

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        parameter = param
        if parameter is not None and not parameter.is_meta and threading.get_ident() == here:
            empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            if parameter.ndim < 2 or parameter.numel() <= CONSTRUCTED_ELEMENTS:
                empty.constructed = parameter.detach()  # type: ignore[attr-defined]
            parameter = empty
        register(self, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _parts(module: nn.Module, name: str, rules: Any) -> Iterator[tuple[str, nn.Module, Any, bool]]:
    """(name, module, who knows how it is drawn, whether with all inside it), blocks of layers whole."""
    if isinstance(module, PreTrainedModel):
        rules = module
    yield name, module, rules, False
    for local, child in module.named_children():
        inner = f"{name}.{local}" if name else local
        if isinstance(module, nn.ModuleList):
            yield inner, child, child if isinstance(child, PreTrainedModel) else rules, True
        else:
            yield from _parts(child, inner, rules)


def _draw(module: nn.Module, rules: Any, *, deep: bool) -> None:
    """Have the family's own rules fill a module, its children first, as transformers does."""
    for child in module.children() if deep else ():
        _draw(child, child if isinstance(child, PreTrainedModel) else rules, deep=True)
    if hasattr(rules, "_init_weights"):
        rules._init_weights(module)


class _Places:
    """Where each parameter of a module stands; a tied one stands in several."""

    def __init__(self, module: nn.Module) -> None:
        self._of: dict[int, list[tuple[nn.Module, str]]] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    self._of.setdefault(id(parameter), []).append((part, name))

    def put(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Put another parameter where this one stood when the places were found."""
        for part, name in self._of[id(old)]:
            part._parameters[name] = new

    @contextmanager
    def holding(self, instead: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> Iterator[None]:
        """The module with others in the place of some, inside the block."""
        for old, new in instead:
            self.put(old, new)
        try:
            yield
        finally:
            for old, _ in instead:
                self.put(old, old)
