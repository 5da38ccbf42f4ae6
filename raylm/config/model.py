"""The network: the section `model`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl

PresetName = Literal["tiny", "llama-25m", "llama-125m", "llama-350m", "llama-1b", "llama-3b", "llama-7b"]


class ModelSettings(Settings):
    """The network."""

    preset: PresetName | None = Field(None, description="A Llama-style decoder of this size.")
    config: PathOrUrl | dict[str, Any] | None = Field(
        None, description="A transformers config: the path of its file, or inline."
    )
    path: PathOrUrl | None = Field(None, description="A local Hugging Face folder whose weights training starts from.")
    dtype: Literal["fp32", "bf16"] = Field(
        "bf16", description="Type of weights and activations; master weights stay fp32."
    )
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="How attention is computed: torch's fused kernels, or step by step."
    )
    document_attention: bool = Field(False, description="Tokens attend within their own document only.")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Attention dropout, where the model has one; 0 turns off every dropout of its config. Not set: as "
        "its config has them.",
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    compile: bool = Field(False, description="Run the model through torch.compile.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if len(self.given) > 1:
            raise ValueError(f"give one of preset, config, path; got {', '.join(self.given)}: set the others to null")
        return self

    @property
    def given(self) -> list[str]:
        """The keys that say which model it is: one, or none."""
        return [key for key in ("preset", "config", "path") if getattr(self, key) is not None]
