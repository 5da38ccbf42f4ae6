"""The one shape that training state has on its way to storage or to another rank: contiguous 1-D chunks.

Torch-free, so that
manifests can be read, checked and planned anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from raylm.errors import CheckpointError

Kind = Literal["master", "exp_avg", "exp_avg_sq", "frozen", "buffer"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, order=True)
class Chunk:
    """Elements [start, start + length) of the flattened tensor `name` of one kind.

    master, exp_avg, exp_avg_sq: the fp32 weight and AdamW's moments of a trained parameter. frozen, buffer: what is
    not trained, in its own dtype. numel and shape describe the whole tensor, dtype is torch's name ("float32").
    """

    name: str
    kind: Kind
    start: int
    length: int
    dtype: str
    numel: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.length

    @property
    def tensor(self) -> tuple[Kind, str]:
        """Which tensor the elements belong to."""
        return (self.kind, self.name)

    def checked(self) -> Chunk:
        """This chunk, or a CheckpointError when its numbers cannot be true (it may come from a damaged manifest)."""
        inside = min(self.start, self.length - 1, self.numel - self.stop) >= 0
        if self.kind not in KINDS or not inside or prod(self.shape) != self.numel:
            raise CheckpointError(
                f"chunk [{self.start}, {self.stop}) of {self.kind} {self.name!r} does not fit a tensor of shape "
                f"{list(self.shape)} with {self.numel} elements",
                hint="the checkpoint's index is damaged: resume from an older one",
            )
        return self
