"""The contract of an objective: what a batch weighs, its loss as a sum, and what is measured beside it.

Sums, not means: the mean is taken over the global batch's weight, which no single worker knows. Modules of objectives
load without torch, since a job's schema imports them for their settings.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config.base import Settings
from raylm.config.job import Job
from raylm.config.model import ModelSettings
from raylm.config.objective import OBJECTIVES
from raylm.errors import ConfigError, TrainingError
from raylm.records import IGNORED, MicroBatch
from raylm.shards import WantedColumn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


# What an objective may not hold, as it may change in place.
MUTABLE = (list, dict, set, bytearray, deque)


@dataclass(frozen=True)
class DeviceBatch:
    """A MicroBatch whose arrays are tensors on the device; `document_starts` stay numpy's, one array per row."""

    tokens: Tensor
    labels: Tensor
    document_starts: Sequence[NDArray[np.int32]]
    columns: Mapping[str, Tensor]


@dataclass(frozen=True)
class LossSums:
    """Scalars summed over a micro-batch: the loss, with a graph, and each of the objective's metrics.

    What is reported is their sum over the global batch, divided by its weight.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What training minimizes. Gradients are those of the sum of `loss_sums` over the global batch's weight.

    It keeps no state from step to step: workers come and go, each with an objective of its own, and no checkpoint holds
    it. So its attributes are those of its constructor; to set one later is a TrainingError, and one that could change
    in place, such as a list, is a ConfigError of `objective_of`.

    columns: the optional columns that it reads. metrics: the names of the metrics that `loss_sums` gives each time.
    """

    columns: tuple[WantedColumn, ...] = ()
    metrics: tuple[str, ...] = ()
    _sealed = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._sealed:
            raise TrainingError(
                f"the objective {type(self).__name__} sets its attribute {name!r} while it trains, and no other worker "
                "and no checkpoint would know of it",
                hint="report it as a metric, or keep it in the model as a buffer",
            )
        super().__setattr__(name, value)

    @abstractmethod
    def row_weights(self, batch: MicroBatch) -> NDArray[Any]:
        """(rows,) what each row weighs in the mean, such as its number of targets."""

    @abstractmethod
    def loss_sums(self, model: Any, batch: DeviceBatch) -> LossSums:
        """The loss of a micro-batch. `model` is called, never reached into, so that a DeepSpeed engine's hooks run.

        Every call runs the model, and for a batch without weight the loss is 0, with a graph.
        """

    def held_out_sums(self, model: Any, batch: DeviceBatch) -> LossSums:
        """As loss_sums, for held-out sequences, without gradients."""
        return self.loss_sums(model, batch)

    def weight(self, batch: MicroBatch) -> float:
        """What a micro-batch weighs in the mean."""
        return float(self.row_weights(batch).sum())

    def tokens(self, batch: MicroBatch) -> int:
        """How many tokens of a micro-batch are trained on, for tokens per second: all labels but each row's first."""
        return int((batch.labels[:, 1:] != IGNORED).sum())

    def without_weight(self, batch: MicroBatch) -> MicroBatch:
        """The batch as one that weighs nothing: ranks with fewer lanes run it, so that all take part in gathers."""
        import numpy as np

        return dataclasses.replace(batch, labels=np.full_like(batch.labels, IGNORED))


@dataclass(frozen=True)
class ObjectiveKind:
    """One kind of objective, by the name that a job's `objective` gives it.

    make: the objective for these settings and the job's model. auto_class: the class of transformers that builds the
    model, such as AutoModelForCausalLM.
    """

    name: str
    settings: type[Settings]
    make: Callable[[Any, ModelSettings], Objective]
    auto_class: str = "AutoModelForCausalLM"


def register_objective(kind: ObjectiveKind, *, replace: bool = False) -> None:
    """Make an objective known by its name to job files; a name in use is a ConfigError.

    With `replace`, as in a notebook's cell that is run again, a registered one gives way; a built-in one never.
    """
    OBJECTIVES.register(kind.name, kind, replace=replace)


def objective_of(job: Job) -> Objective:
    """The job's objective; ConfigError for one that has room for state of its own."""
    objective: Objective = OBJECTIVES.get(job.objective.name).make(job.objective.settings, job.model)
    for name, value in vars(objective).items():
        if isinstance(value, MUTABLE):
            raise ConfigError(
                f"objective {job.objective.name}: its attribute {name!r} is a {type(value).__name__}, which could "
                "change from step to step, and no other worker and no checkpoint would know of it",
                hint="use a tuple, a frozenset or types.MappingProxyType",
            )
    object.__setattr__(objective, "_sealed", True)
    return objective


def on_device(batch: MicroBatch, device: Any) -> DeviceBatch:
    """The batch's arrays as tensors there."""
    import torch

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    columns = {name: moved(values) for name, values in batch.columns.items()}
    return DeviceBatch(moved(batch.tokens), moved(batch.labels), batch.document_starts, columns)
