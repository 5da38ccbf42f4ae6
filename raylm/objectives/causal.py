"""Next-token prediction: every token that has a label is predicted from those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylm.config.base import Settings
from raylm.config.model import ModelSettings
from raylm.objectives.base import DeviceBatch, LossSums, Objective, ObjectiveKind
from raylm.records import IGNORED, MicroBatch
from raylm.shards import WantedColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One value per token: what is 0 is not trained on. Of an integer type it is a mask, and all else counts as 1; of a
# floating one it is a weight, of which the mean is taken.
LOSS_MASK = WantedColumn("loss_mask", fill=1)


class CausalSettings(Settings):
    """Predict the next token, all targets alike, or as the dataset's column `loss_mask` says."""


class Causal(Objective):
    """Cross-entropy over targets: labels that are not IGNORED, each row's first aside, weighted by `loss_mask`."""

    columns = (LOSS_MASK,)

    def __init__(self, *, document_attention: bool = False) -> None:
        self._document_attention = document_attention

    def row_weights(self, batch: MicroBatch) -> NDArray[Any]:
        """(rows,) targets, or the sum of their weights."""
        targets = batch.labels[:, 1:] != IGNORED
        mask = batch.columns.get(LOSS_MASK.name)
        if mask is None:
            counts: NDArray[Any] = targets.sum(axis=1)
            return counts
        weights = mask[:, 1:] if mask.dtype.kind == "f" else mask[:, 1:] != 0
        sums: NDArray[Any] = (targets * weights).sum(axis=1, dtype="float64")
        return sums

    def tokens(self, batch: MicroBatch) -> int:
        """Targets whose weight is not 0."""
        targets = batch.labels[:, 1:] != IGNORED
        mask = batch.columns.get(LOSS_MASK.name)
        return int((targets if mask is None else targets & (mask[:, 1:] != 0)).sum())

    def loss_sums(self, model: Any, batch: DeviceBatch) -> LossSums:
        """The sum of the targets' cross-entropy in nats, each times its weight."""
        from raylm.objectives.cross_entropy import next_token_loss

        starts = batch.document_starts if self._document_attention else None
        mask = batch.columns.get(LOSS_MASK.name)
        if mask is None:
            return LossSums(next_token_loss(model, batch.tokens, batch.labels, starts))
        labels = batch.labels.masked_fill(mask == 0, IGNORED)
        weights = mask if mask.is_floating_point() else None
        return LossSums(next_token_loss(model, batch.tokens, labels, starts, weights))


def _make(settings: CausalSettings, model: ModelSettings) -> Causal:
    return Causal(document_attention=model.document_attention)


CAUSAL = ObjectiveKind("causal", CausalSettings, _make)
