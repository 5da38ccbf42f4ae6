"""The steps of preparation: what each takes, its defaults, its checks. `StepSettings` lists them all."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

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


PersonalKind = Literal["email", "phone", "ip", "card", "iban", "national_id", "url"]
ModelKind = Literal["name", "address", "organisation", "place"]
NationalId = Literal[
    "br_cpf",
    "ca_sin",
    "ch_ahv",
    "de_idnr",
    "es_dni",
    "es_nie",
    "fi_hetu",
    "fr_nir",
    "gb_nhs",
    "gb_nino",
    "in_aadhaar",
    "it_codice_fiscale",
    "mx_curp",
    "nl_bsn",
    "no_fodselsnummer",
    "pl_pesel",
    "se_personnummer",
    "us_ssn",
    "za_id",
]


class PersonalData(Settings):
    """Find personal data and put a placeholder, or a made-up value of the same kind, in its place."""

    kinds: list[PersonalKind] = Field(
        ["email", "phone", "ip", "card", "iban", "national_id"], description="What rules look for."
    )
    regions: list[Annotated[str, Field(pattern="^[A-Z]{2}$")]] = Field(
        ["US", "GB"], description="Countries whose phone numbers are known without their country's code, as GB."
    )
    national_ids: list[NationalId] = Field(
        default_factory=lambda: list(get_args(NationalId)), description="Countries' numbers for people."
    )
    model: str | None = Field(
        None, min_length=1, description="An installed spaCy pipeline, or its folder; it finds what no rule can."
    )
    model_kinds: list[ModelKind] = Field(
        ["name", "address", "organisation"], min_length=1, description="What is taken from the model, if there is one."
    )
    replace_by: Literal["placeholder", "pseudonym"] = Field(
        "placeholder", description="A pseudonym is made up, and the same wherever the value stands."
    )
    placeholder: str = Field("[{kind}]", description="Its {kind} becomes the kind in capitals, as in [EMAIL].")
    seed: int = Field(
        0, ge=0, description="For pseudonyms. Whoever has it can check a guess at a value, but cannot read one off."
    )

    @field_validator("placeholder")
    @classmethod
    def _has_no_other_field(cls, value: str) -> str:
        rest = value.replace("{kind}", "")
        if "{" in rest or "}" in rest:
            raise ValueError(f"only {{kind}} may stand in braces, got {value!r}")
        return value

    @model_validator(mode="after")
    def _something_to_find(self) -> Self:
        if not self.kinds and self.model is None:
            raise ValueError("there is nothing to find: name kinds, or a model")
        return self


class StepSettings(Settings):
    """One step: its name, and under it its settings."""

    exact_duplicates: ExactDuplicates | None = None
    sample: Sample | None = None
    personal_data: PersonalData | None = None

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
