"""The steps of preparation: what each takes, its defaults, its checks. `StepSettings` lists them all."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raylm.config.base import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class ExactDuplicates(Settings):
    """Keep the first of equal documents, or of equal lines or paragraphs."""

    part: Literal["document", "paragraph", "line"] = Field(
        "document", description="What is compared; a repeated paragraph or line is cut out of its document."
    )
    shortest: int = Field(
        32, ge=0, description="Paragraphs and lines of fewer letters are kept however often they come."
    )


class NearDuplicates(Settings):
    """Keep the first of similar documents, by MinHash and locality-sensitive hashing."""

    threshold: float = Field(0.8, gt=0, lt=1, description="Jaccard similarity of runs of words that counts as equal.")
    words: int = Field(5, ge=1, le=100, description="Words a run.")
    permutations: int = Field(192, ge=16, le=1024, description="Entries of a signature; more: more exact, slower.")
    seed: int = Field(0, ge=0, lt=2**63)


class Sample(Settings):
    """Keep a share of the documents, or reach a mixture: by hash of the document's id, so the same ones each time."""

    rate: Share | None = Field(None, description="Share of the documents to keep.")
    by: str = Field("source", description="For shares: the source, or a key of the metadata such as language.")
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Bytes wanted of each group, in proportion; groups not named are dropped."
    )
    most_copies: float = Field(
        1.0, ge=1, description="With shares: a scarce group's documents may be repeated this often on average."
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.rate is None) == (not self.shares):
            raise ValueError("give either rate or shares")
        return self


class StepSettings(Settings):
    """One step: its name, and under it its settings."""

    exact_duplicates: ExactDuplicates | None = None
    near_duplicates: NearDuplicates | None = None
    sample: Sample | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        """`- sample` and `- sample:` ask for the step with its defaults."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            given = ", ".join(sorted(self.model_fields_set)) or "nothing"
            raise ValueError(f"a step names one thing to do, got {given}; begin each with a dash of its own")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name == self.name}

    @property
    def name(self) -> str:
        """The step's name in the job file."""
        (name,) = self.model_fields_set
        return name

    @property
    def settings(self) -> Settings:
        """The step's own settings."""
        settings: Settings = getattr(self, self.name)
        return settings
