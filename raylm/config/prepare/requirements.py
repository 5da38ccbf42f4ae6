"""What a prepared dataset has to be before it is published: the rules under `prepare.require`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raylm.config.base import Settings


class Bounds(Settings):
    """A range that a measure has to lie in."""

    min: float | None = Field(None, description="Smallest value allowed.")
    max: float | None = Field(None, description="Largest value allowed.")

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min:g} is more than max={self.max:g}")
        return self


class Requirements(Settings):
    """Rules; a dataset that misses one gets its report, and no manifest."""

    documents: Bounds | None = Field(None, description="Documents in the shards.")
    tokens: Bounds | None = Field(None, description="Tokens in the shards.")
    kept: Bounds | None = Field(None, description="Share of the documents read that the steps leave.")
    duplicates: Bounds | None = Field(None, description="Share of documents whose text another one has too.")
    personal_data: Bounds | None = Field(
        None,
        description="Pieces of personal data a document, in a sample of what goes into the shards; looked for as the "
        "step personal_data does, or as it would with its defaults.",
    )
    contamination: Bounds | None = Field(
        None,
        description="Share of the documents in the shards that hold a run of an evaluation set's words; the sets are "
        "those of the step decontaminate.",
    )
    language: dict[str, Bounds] = Field(
        default_factory=dict,
        description="Share of the documents whose metadata name this language; `unknown` where none is named.",
    )

    def rules(self) -> dict[str, Bounds]:
        """Every rule that is given, by name; a language's is `language.en`."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "language"}
        rules = {name: bounds for name, bounds in given.items() if bounds is not None}
        return rules | {f"language.{code}": bounds for code, bounds in sorted(self.language.items())}
