"""Settings of what must not be in the training data: texts that a model will be judged by."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl


class EvaluationSet(Settings):
    """Texts that a model will be judged by."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Its name in reasons and reports.")
    glob: PathOrUrl = Field(description="Files, on any fsspec URL, plain or compressed.")
    kind: Literal["jsonl", "json", "parquet", "text"] = Field(
        "jsonl", description="json: one value a file. text: one text a line."
    )
    columns: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["text"],
        description="Keys or columns, at any depth, under which all texts are taken; not used by text. A record's "
        "texts are also read as one, in this order: a run may go from a question into its answer.",
    )


class Decontaminate(Settings):
    """Take out what evaluation sets hold too: runs of equal words, whatever their case, accents and numbers."""

    sets: Annotated[list[EvaluationSet], Field(min_length=1)] = Field(description="The evaluation sets.")
    ngram: int = Field(13, ge=2, description="Length of a run of words that counts as taken over.")
    min_words: int = Field(
        8, ge=1, description="Evaluation texts of fewer than `ngram` words are looked for whole, down to this length."
    )
    min_matches: int = Field(1, ge=1, description="Different runs a document must share with a set to be contaminated.")
    action: Literal["drop", "cut", "label"] = Field(
        "drop",
        description="Drop the document, cut out the sentences around, or only name the set as `contaminated_by`.",
    )
    min_chars_left: int = Field(
        200, ge=0, description="With cut: a document of which fewer letters are left is dropped after all."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [one.name for one in self.sets]
        if len(names) != len(set(names)):
            raise ValueError(f"names of evaluation sets must differ, got {names}")
        return self
