"""Cross-entropy of next tokens as a sum, with fp32 scores made a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from raylm.model.budget import CHUNK_ELEMENTS
from raylm.records import IGNORED


def next_token_loss(
    model: Any,
    tokens: Tensor,
    labels: Tensor,
    document_starts: Sequence[NDArray[np.int32]] | None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropy in fp32 over `labels[:, 1:]` that are not IGNORED, predicted from the tokens before them.

    All of `tokens`, `labels` and `weights`, which default to 1, are (rows, sequence); the sum is a scalar. `model` is
    called, never reached into, so that a DeepSpeed engine's hooks run. With `document_starts` each document of a row
    sees only itself, at positions that start from 0. Without any label the sum is 0, with a graph.
    """
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if document_starts is not None and any(len(starts) > 1 for starts in document_starts):
        # transformers reads a position that does not follow the one before it as the start of a packed document and
        # makes its masks block-diagonal: the right way round for sliding windows and for every attention kernel.
        inputs["position_ids"] = position_ids(document_starts, tokens.shape[1]).to(tokens.device, non_blocking=True)
    logits = model(**inputs).logits
    # Labels move rather than logits: dropping the last logit of each row would copy all the others.
    nothing_follows = labels.new_full((labels.shape[0], 1), IGNORED)
    targets = torch.cat([labels[:, 1:], nothing_follows], dim=1)
    if weights is not None:
        weights = torch.cat([weights[:, 1:], weights.new_zeros((weights.shape[0], 1))], dim=1)
    return cross_entropy_sum(logits, targets, weights)


def position_ids(document_starts: Sequence[NDArray[np.int32]], sequence_length: int) -> Tensor:
    """(rows, sequence) int64: each token's distance from the start of its own document."""
    rows = np.empty((len(document_starts), sequence_length), dtype=np.int64)
    for row, starts in zip(rows, document_starts, strict=True):
        lengths = np.diff(np.append(starts, sequence_length))
        row[:] = np.arange(sequence_length) - np.repeat(starts, lengths)
    return torch.from_numpy(rows)


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of -weight · log softmax(logits)[label] over labels that are not IGNORED, in fp32 or wider, by chunks."""
    flat = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), None if weights is None else weights.reshape(-1)
    result: Tensor = _CrossEntropySum.apply(*flat)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropySum(torch.autograd.Function):
    """Keeps nothing but the logits in their own type; fp32 scores exist only chunk by chunk, made again backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=logits.device)
        for part in _chunks(logits):
            scores = logits[part].to(wide)
            if weights is None:
                total += cross_entropy(scores, labels[part], ignore_index=IGNORED, reduction="sum")
            else:
                each = cross_entropy(scores, labels[part], ignore_index=IGNORED, reduction="none")
                # A choice, not a product: an infinite score in a row that is not counted must not make NaN.
                total += torch.where(labels[part] != IGNORED, each * weights[part], 0.0).sum()
        ctx.save_for_backward(logits, labels, *([] if weights is None else [weights]))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, *weights = ctx.saved_tensors
        scale = gradients[0]
        result = torch.empty_like(logits)
        for part in _chunks(logits):
            counted = (labels[part] != IGNORED).unsqueeze(-1)
            index = labels[part].unsqueeze(-1).where(counted, 0)
            same = scale.dtype == logits.dtype
            softmax = torch.softmax(logits[part], dim=-1, dtype=scale.dtype, out=result[part] if same else None)
            softmax.scatter_add_(-1, index, torch.full_like(index, -1, dtype=softmax.dtype))
            # A fill, not a product: an infinite score in a row that is not counted must not make NaN.
            softmax.mul_(scale * weights[0][part].unsqueeze(-1) if weights else scale).masked_fill_(~counted, 0)
            if not same:
                result[part] = softmax
        return result, None, None


def _chunks(logits: Tensor) -> list[slice]:
    """Slices of rows of which each widens at most CHUNK_ELEMENTS logits."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, logits.shape[0], rows)]
