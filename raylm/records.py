"""The data that travels from documents to optimizer steps, one frozen type for each part of the way.

Nothing here imports anything heavy; arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True)
class Document:
    """One text as it came from a source; `id` is stable between runs.

    meta: what is known about it, such as url, title, language and scores: text and numbers that JSON can hold.
    """

    id: str
    text: str
    source: str
    meta: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class MicroBatch:
    """What one lane trains on in one step: `rows` sequences of equal length.

    tokens: (rows, sequence) int64. document_starts: one ascending array of positions per row, the first always 0.
    labels: (rows, sequence) int64, already aligned with tokens (not shifted); IGNORED is not trained on.
    ids: (rows,) int64, the sequence's number over all datasets. epochs: (rows,) int64, of the row's own dataset.
    columns: optional ones of the datasets, by name: (rows, sequence, …) of one value per token, or (rows, …).
    """

    lane: int
    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: tuple[NDArray[np.int32], ...]
    ids: NDArray[np.int64]
    epochs: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One rank's share of global batch `step`: its lanes' micro-batches in ascending lane order."""

    step: int
    micro_batches: tuple[MicroBatch, ...]


@dataclass(frozen=True)
class Progress:
    """How far a run is. `step` counts finished optimizer steps, so it is also the next global batch's number."""

    step: int = 0
    tokens_seen: int = 0
    sequences_seen: int = 0


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step gave, as means over the whole global batch's weight (for a causal model nats per token).

    tokens: trained on by all ranks. metrics: the objective's own. waiting_seconds: of this rank, for its data.
    computing_seconds: of this rank's device for a sample of the step, 0 where that is not measured.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    skipped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    waiting_seconds: float = 0.0
    computing_seconds: float = 0.0
