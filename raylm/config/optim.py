"""The global batch and what a step does with it: the sections `batch`, `optim`, `zero` and `train`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings


class BatchSettings(Settings):
    """The global batch, the same at any number of workers."""

    sequences: int = Field(32, ge=1, description="Sequences in a global batch.")
    micro_batch: int = Field(
        4, ge=1, description="Sequences in a micro-batch; sequences / micro_batch lanes can feed as many workers."
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.sequences % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide sequences={self.sequences}: "
                "choose a micro-batch that divides the global batch"
            )
        return self

    @property
    def lanes(self) -> int:
        """Micro-batch slots of a global batch, the most workers it can feed."""
        return self.sequences // self.micro_batch


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """AdamW and its learning rate."""

    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of Adam's first and second moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of an update.")
    weight_decay: float = Field(0.1, ge=0, description="Decay of the weights; norms and biases are left out.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients of a larger norm are scaled down to it; 0 turns clipping off."
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Course of the learning rate after warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises to its peak.")
    decay_steps: int | None = Field(
        None, ge=0, description="With wsd: steps of the final decay; a tenth of all when not set."
    )
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")


class ZeroSettings(Settings):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = Field(
        1, description="What is sharded: 0 nothing, 1 the optimizer's state, 2 also gradients, 3 also weights."
    )
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state, and make its step, on the CPU.")


class TrainSettings(Settings):
    """How long, and what is recorded."""

    steps: int = Field(100, ge=1, le=10**12, description="Optimizer steps of the whole run.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the data's order, dropout and first weights.")
    audit: bool = Field(False, description="Record (step, lane, sequence id) of everything trained on.")
    bad_loss: Literal["stop", "skip"] = Field(
        "stop", description="On a NaN or infinite loss or gradient: end the run, or leave the batch out."
    )
    max_skips: int = Field(10, ge=0, description="With bad_loss: skip, end the run after this many skips in a row.")
