"""Raw text to tokenized shards: the section `prepare`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SerializeAsAny, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl
from raylm.config.prepare.requirements import Requirements
from raylm.config.prepare.sources import SourceSettings
from raylm.config.prepare.steps import OperatorSettings
from raylm.config.prepare.tokenizer import TokenizerSettings


class PrepareSettings(Settings):
    """Raw text to tokenized shards."""

    sources: list[SerializeAsAny[SourceSettings]] = Field(
        default_factory=list, description="Where documents come from; `raylm prepare` needs at least one."
    )
    steps: list[OperatorSettings] = Field(
        default_factory=list, description="What happens to documents, in order: cleaning, filters, deduplication."
    )
    require: Requirements = Field(
        default_factory=Requirements, description="What the dataset has to be, or it is not published."
    )
    output: PathOrUrl | None = Field(None, description="Folder of the shards; <storage>/<name>/data when not set.")
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    sequence_length: int = Field(512, ge=8, le=1_048_576, description="Tokens a row.")
    held_out: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of documents kept for held-out loss, by hash; 1 makes a dataset that is only evaluated on.",
    )
    unit_bytes: int = Field(64_000_000, gt=0, description="Raw text packed into one shard; the unit of a restart.")
    workers: int | None = Field(None, gt=0, description="Units prepared at once; as many as fit when not set.")
    max_broken_share: float = Field(
        0.01, ge=0, le=1, description="Share of a source's files, or of its records, that may be broken and set aside."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        if len(names) != len(set(names)):
            raise ValueError(f"source names must differ, got {names}: give each source a `name` of its own")
        return self

    @model_validator(mode="after")
    def _tokenizer_has_texts(self) -> Self:
        if self.held_out == 1 and self.tokenizer.path is None:
            raise ValueError(
                "held_out=1 leaves no text to train a tokenizer on; name that of the model to evaluate in "
                "tokenizer.path: its run's folder `tokenizer`"
            )
        return self

    @model_validator(mode="after")
    def _sets_are_named(self) -> Self:
        if self.require.contamination is not None and all(step.name != "decontaminate" for step in self.steps):
            raise ValueError("require.contamination needs the step decontaminate, whose `sets` it looks for")
        return self
