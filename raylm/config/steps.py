"""The steps of preparation: what each takes, its defaults, its checks. `OperatorSettings` lists them all."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from raylm.config.base import Settings
from raylm.config.decontaminate import Decontaminate
from raylm.config.languages import CODES
from raylm.config.paths import NameOrPath, PathOrUrl
from raylm.config.quality import Quality

Share = Annotated[float, Field(ge=0, le=1)]
Globs = Annotated[list[PathOrUrl], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class ExactDuplicates(Settings):
    """Keep the first of equal documents, or of equal lines or paragraphs."""

    part: Literal["document", "paragraph", "line"] = Field(
        "document", description="What is compared; a repeated paragraph or line is cut out of its document."
    )
    min_chars: int = Field(
        32, ge=0, description="Paragraphs and lines of fewer letters are kept however often they come."
    )


class NearDuplicates(Settings):
    """Keep the first of similar documents, by MinHash and locality-sensitive hashing."""

    threshold: float = Field(0.8, gt=0, lt=1, description="Jaccard similarity of runs of words that counts as equal.")
    ngram: int = Field(5, ge=1, le=100, description="Words a run.")
    permutations: int = Field(256, ge=16, le=1024, description="Entries of a signature; more: more exact, slower.")
    seed: int = Field(0, ge=0, lt=2**63)


class Normalize(Settings):
    """Bring texts to one Unicode form and one kind of space, and clear out what nobody sees."""

    form: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="Unicode form; NFKC also unfolds ligatures, full-width letters and superscripts."
    )
    invisible: bool = Field(
        True, description="Remove control characters, soft hyphens, and zero-width characters that no script needs."
    )
    spaces: bool = Field(
        True, description="One kind of line end and space; runs of spaces in a line become one, ends are trimmed."
    )
    indentation: bool = Field(True, description="Keep the spaces and tabs that lines begin with, as code has them.")
    blank_lines: int = Field(1, ge=0, description="Most blank lines in a row.")
    mojibake: bool = Field(False, description="Repair text that was decoded with the wrong encoding, by ftfy.")


class Language(Settings):
    """Say which language a document is in, and keep those that are wanted."""

    keep: list[str] = Field(default_factory=list, description="Languages to keep, such as [en, de]; all when empty.")
    min_score: Share = Field(0.5, description="Documents whose language is less certain are dropped; 0 keeps them.")
    max_chars: int = Field(2000, gt=0, description="Most letters of a document that are looked at, from its beginning.")
    trust_given: bool = Field(
        False, description="Take the language that a source states, where it does, without a look."
    )

    @field_validator("keep")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for code in value:
            if code not in CODES:
                near = difflib.get_close_matches(code.lower()[:2], sorted(CODES), 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{code!r} is no language that is told apart{hint}")
        return value


class Sample(Settings):
    """Keep a share of the documents, or reach a mixture: by hash of the document's id, so the same ones each time."""

    rate: Share | None = Field(None, description="Share of the documents to keep.")
    by: str = Field("source", description="For shares: the source, or a key of the metadata such as language.")
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Bytes wanted of each group, in proportion; groups not named are dropped."
    )
    max_copies: float = Field(
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
    model: NameOrPath | None = Field(
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


class Classifier(Settings):
    """A score of quality from a classifier that is trained once on good and bad examples, or loaded."""

    good: Globs = Field(default_factory=list, description="Files of good examples: text, jsonl, csv, parquet or arrow.")
    bad: Globs = Field(default_factory=list, description="Files of examples of what is not wanted.")
    column: str = Field("text", description="For jsonl, csv, parquet and arrow: the column that holds the text.")
    document: Literal["file", "line", "block"] = Field("line", description="For text: what one example is.")
    model: PathOrUrl | None = Field(None, description="In place of examples: the file of a classifier trained before.")
    threshold: Share | None = Field(None, description="Drop documents whose score is below this.")
    pareto: float | None = Field(
        None,
        gt=0,
        description="Keep a document when a draw from a Pareto distribution of this shape exceeds 1 - score, as GPT-3 "
        "did with 9; the draw goes by the document's id.",
    )
    key: str = Field("quality", min_length=1, description="Key of the metadata that takes the score, from 0 to 1.")
    ngrams: int = Field(2, ge=1, le=5, description="Longest run of words that is a feature.")
    buckets: int = Field(1 << 18, ge=1 << 10, le=1 << 24, description="Features are hashed into this many.")
    epochs: int = Field(5, ge=1, description="Passes over the examples.")
    max_examples: int = Field(50_000, ge=20, description="Examples of each side, at most; chosen by hash.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _examples_or_model(self) -> Self:
        if (self.model is None) != bool(self.good and self.bad) or (self.model and (self.good or self.bad)):
            raise ValueError("give good and bad examples, or a model")
        if self.threshold is not None and self.pareto is not None:
            raise ValueError("give either threshold or pareto")
        return self


class Toxicity(Settings):
    """A score of toxic language, by a list of words and, where one is given, by a model."""

    words: PathOrUrl | None = Field(
        None, description="File of words or phrases, one a line, with a weight after a tab; English when not set."
    )
    max_share: Share = Field(0.01, description="Weight of toxic words in all words that a document may have.")
    model: PathOrUrl | None = Field(None, description="Folder of a transformers model that classifies sequences.")
    label: str = Field("toxic", description="The model's label whose probability is the score.")
    max_probability: Share = Field(0.5, description="Probability that a document may have.")
    action: Literal["drop", "label"] = Field("drop", description="Drop what is above, or only write the scores.")


class Fairness(Settings):
    """Counts who is written about, and how, for the report; drops nothing."""

    groups: PathOrUrl | None = Field(
        None, description="File of `property/group: term, term` lines; English when not set."
    )
    occupations: PathOrUrl | None = Field(None, description="File of `name: form, form` lines; English when not set.")
    sentiment: bool = Field(True, description="Look at the sentiment of sentences that name a group.")
    label: list[str] = Field(
        default_factory=list,
        description="Properties (gender, ...) whose most named group is written to the metadata: dominant_gender is "
        "that group, `mixed` where several are named as often, or `none`.",
    )


class Counterfactual(Settings):
    """Copies of documents in which gendered words are swapped; English only."""

    share: Share = Field(0.5, description="Share of the documents with such words that get a copy, by hash.")
    replace: bool = Field(False, description="The swapped document takes the original's place.")
    pairs: PathOrUrl | None = Field(
        None, description="File of `masculine feminine` pairs; those of the package when not set."
    )
    names: PathOrUrl | None = Field(None, description="File of pairs of first names to swap as well.")
    seed: int = Field(0, ge=0)


class Blocklist(Settings):
    """Drop documents from unwanted places, or with unwanted words. Files hold an entry a line, # begins a comment."""

    domains: list[str] = Field(default_factory=list, description="Domains; each blocks its subdomains too.")
    domain_files: list[PathOrUrl] = Field(default_factory=list, description="Files of domains, on any fsspec URL.")
    url_words: list[str] = Field(default_factory=list, description="Words between the punctuation of a URL.")
    url_word_files: list[PathOrUrl] = Field(default_factory=list, description="Files of such words.")
    words: list[str] = Field(default_factory=list, description="Words and phrases in the text, in any case.")
    word_files: list[PathOrUrl] = Field(default_factory=list, description="Files of such words and phrases.")
    min_matches: int = Field(1, ge=1, description="Drop a text in which listed words come this often, or more.")
    min_share: Share = Field(0.0, description="And only if they come at least this often for each of its words.")
    whole_words: bool = Field(
        True, description="An entry inside a longer word does not count; false for scripts without spaces."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        lists = ("domains", "domain_files", "url_words", "url_word_files", "words", "word_files")
        if not any(getattr(self, name) for name in lists):
            raise ValueError(f"a blocklist needs an entry in one of {', '.join(lists)}")
        return self


class OperatorSettings(Settings):
    """One step: its name, and under it its settings."""

    blocklist: Blocklist | None = None
    classifier: Classifier | None = None
    counterfactual: Counterfactual | None = None
    decontaminate: Decontaminate | None = None
    exact_duplicates: ExactDuplicates | None = None
    language: Language | None = None
    near_duplicates: NearDuplicates | None = None
    normalize: Normalize | None = None
    personal_data: PersonalData | None = None
    fairness: Fairness | None = None
    quality: Quality | None = None
    sample: Sample | None = None
    toxicity: Toxicity | None = None

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
