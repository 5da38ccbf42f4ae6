"""Next-token loss: comes in a micro-batch of tokens and labels, leaves a sum of nats and how many tokens it is over.

A sum and a count, not a mean: the mean is taken over the global batch, which no single worker sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100  # the label of a token that is not trained on

# Logits widened to fp32 at once. 2^24 elements are 64 MB; whole logits of 8 x 2048 tokens at 32 000 words are 2.1 GB.
CHUNK_ELEMENTS = 1 << 24


def target_tokens(labels: Any) -> int:
    """How many tokens of `labels` (rows, sequence), an array or a tensor, are predicted: all but the first column."""
    return int((labels[:, 1:] != IGNORED).sum())


def loss_sum(
    model: Any,
    tokens: Tensor,
    labels: Tensor,
    document_starts: Sequence[NDArray[np.int32]] | None,
) -> Tensor:
    """Sum of cross-entropy in fp32 over `labels[:, 1:]` that are not -100, predicted from the tokens before them.

    `model` is called, never reached into, so that a DeepSpeed engine's hooks run. With `document_starts` each document
    of a row sees only itself, at positions that start from 0. Without any label the sum is 0, with a graph.
    """
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if document_starts is not None and any(len(starts) > 1 for starts in document_starts):
        # transformers reads a position that does not follow the one before it as the start of a packed document and
        # makes its masks block-diagonal: the right way round for sliding windows and for every attention kernel.
        inputs["position_ids"] = position_ids(document_starts, tokens.shape[1]).to(tokens.device, non_blocking=True)
    logits = model(**inputs).logits
    # Labels move rather than logits: dropping the last logit of each row would copy all the others.
    nothing_follows = labels.new_full((labels.shape[0], 1), IGNORED)
    return cross_entropy_sum(logits, torch.cat([labels[:, 1:], nothing_follows], dim=1))


def position_ids(document_starts: Sequence[NDArray[np.int32]], sequence_length: int) -> Tensor:
    """(rows, sequence) int64: each token's distance from the start of its own document."""
    rows = np.empty((len(document_starts), sequence_length), dtype=np.int64)
    for row, starts in zip(rows, document_starts, strict=True):
        lengths = np.diff(np.append(starts, sequence_length))
        row[:] = np.arange(sequence_length) - np.repeat(starts, lengths)
    return torch.from_numpy(rows)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[label] over labels that are not -100, in fp32 or wider, a chunk at a time."""
    vocabulary = logits.shape[-1]
    result: Tensor = _CrossEntropySum.apply(logits.reshape(-1, vocabulary), labels.reshape(-1))  # type: ignore[no-untyped-call]
    return result


class _CrossEntropySum(torch.autograd.Function):
    """Keeps nothing but the logits in their own type; fp32 scores exist only chunk by chunk, made again backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=logits.device)
        for part in _chunks(logits):
            total += cross_entropy(logits[part].to(wide), labels[part], ignore_index=IGNORED, reduction="sum")
        ctx.save_for_backward(logits, labels)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        scale = gradients[0]
        result = torch.empty_like(logits)
        for part in _chunks(logits):
            counted = (labels[part] != IGNORED).unsqueeze(-1)
            index = labels[part].unsqueeze(-1).where(counted, 0)
            same = scale.dtype == logits.dtype
            softmax = torch.softmax(logits[part], dim=-1, dtype=scale.dtype, out=result[part] if same else None)
            softmax.scatter_add_(-1, index, torch.full_like(index, -1, dtype=softmax.dtype))
            # A fill, not a product: an infinite score in a row that is not counted must not make NaN.
            softmax.mul_(scale).masked_fill_(~counted, 0)
            if not same:
                result[part] = softmax
        return result, None


def _chunks(logits: Tensor) -> list[slice]:
    """Slices of rows of which each widens at most CHUNK_ELEMENTS logits."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, logits.shape[0], rows)]
