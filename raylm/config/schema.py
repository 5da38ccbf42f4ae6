"""Every setting of a job file: its type, its default, its check. The only place a default is written.

Comes in: a plain mapping from YAML. Leaves: a frozen `Job`. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raylm.config.base import Settings
from raylm.config.gates import Requirements
from raylm.config.steps import OperatorSettings
from raylm.errors import ConfigError
from raylm.storage import Connection

PRESETS = ("tiny", "llama-25m", "llama-125m", "llama-350m", "llama-1b", "llama-3b", "llama-7b")


class ObjectStore(Settings):
    """How to reach object storage. Credentials never stand here: they come from the provider's own chain."""

    endpoint: str | None = Field(
        None, description="URL of an S3- or GCS-compatible server, e.g. http://127.0.0.1:9000."
    )
    region: str | None = Field(None, description="Region name, where the server wants one.")
    anonymous: bool = Field(False, description="Read public buckets without credentials.")
    retries: int = Field(5, ge=0, description="Times a failed request is tried again, with growing pauses.")
    timeout_seconds: float = Field(30.0, gt=0, description="Longest wait for one request.")

    @field_validator("endpoint")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        # A URL with user:password@ would be dumped into run.yaml.
        if value is not None and "@" in value.split("//", 1)[-1].split("/", 1)[0]:
            raise ValueError("must not hold credentials; put them in the environment or the provider's profile")
        return value

    def connection(self) -> Connection:
        """The same, as storage takes it."""
        return Connection(self.endpoint, self.region, self.anonymous, self.retries, self.timeout_seconds)


_CUTS = {"book": ("file", "chapter")}
_TABLES = ("jsonl", "csv", "parquet", "arrow", "huggingface")


class SourceSettings(Settings):
    """One source of raw documents for `raylm prepare`."""

    name: str = Field("text", pattern=r"^[A-Za-z0-9._-]+$", description="Name in the manifest and in mixtures.")
    kind: Literal[
        "text",
        "book",
        "huggingface",
        "jsonl",
        "csv",
        "parquet",
        "arrow",
        "warc",
        "wet",
        "wat",
        "wikipedia",
        "python-docs",
    ] = Field("text", description="How files are read.")
    glob: str | None = Field(
        None, description="Files, on any fsspec URL; for huggingface a folder; not used by python-docs."
    )
    paths: str | None = Field(None, description="In place of a glob: a file that names one file a line.")
    prefix: str = Field("", description="For paths: what comes before each line, such as s3://commoncrawl/.")
    split: str = Field("train", description="For huggingface: the split to read.")
    config: str | None = Field(
        None, description="For huggingface: the configuration, where the folder's README.md names several."
    )
    document: Literal["file", "line", "block", "chapter"] = Field(
        "file",
        description="For text: a document is a file, a line, or a block between blank lines; for book: file, chapter.",
    )
    front_matter: bool = Field(
        False, description="For book: keep the cover, title page, copyright, contents, dedication and index as well."
    )
    column: str = Field(
        "text", description="For jsonl, csv, parquet, arrow and huggingface: the column that holds the text."
    )
    meta: list[str] = Field(
        default_factory=list,
        description="For the same kinds: columns to take along for steps, such as url and language.",
    )
    encoding_errors: Literal["stop", "skip"] = Field(
        "stop", description="A document that is not UTF-8 stops the job, or is skipped and counted."
    )
    license: str | None = Field(None, description="Licence of these texts, for the data card.")
    max_documents: int | None = Field(None, gt=0, description="Take at most this many documents.")
    extract: Literal["main", "all"] = Field(
        "main", description="For warc: a page's main content, or all of its text with menus and footers."
    )
    max_bytes: int = Field(
        64_000_000, gt=0, description="A longer record, page, line, block or file is left out, never held in memory."
    )
    max_compression_ratio: float = Field(
        250.0, gt=0, description="A compressed file that unpacks to more bytes than this for each of its own is broken."
    )

    @model_validator(mode="after")
    def _needs_files(self) -> Self:
        if self.kind != "python-docs" and not self.glob and not self.paths:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a glob, or paths")
        if self.glob and self.paths:
            raise ValueError(f"source {self.name!r}: give either glob or paths, not both")
        if self.meta and self.kind not in _TABLES:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} has no columns for meta: {self.meta}")
        if self.document not in _CUTS.get(self.kind, ("file", "line", "block")):
            raise ValueError(
                f"source {self.name!r} of kind {self.kind!r} cannot be cut into document: {self.document!r}"
            )
        if self.kind == "huggingface" and self.paths:
            raise ValueError(f"source {self.name!r} of kind 'huggingface' takes a folder as its glob, not paths")
        if self.prefix and not self.paths:
            raise ValueError(f"source {self.name!r}: prefix goes with paths")
        return self


class TokenizerSettings(Settings):
    """The tokenizer: trained on the sources, or loaded from a folder or file."""

    path: str | None = Field(
        None,
        description="A Hugging Face folder, a SentencePiece .model or tiktoken ranks, on any fsspec URL; trained when "
        "not set.",
    )
    pattern: str | None = Field(
        None, description="How tiktoken ranks cut texts: gpt2, p50k, cl100k, o200k or a regular expression."
    )
    eos: str | None = Field(None, description="The end-of-text token, where it is not the tokenizer's own.")
    special_tokens: list[str] = Field(default_factory=list, description="More tokens that no text is ever cut into.")
    kind: Literal["bpe", "unigram"] = Field("bpe", description="What is trained.")
    vocab_size: int = Field(8192, ge=260, le=1_000_000, description="Size of a trained tokenizer, all tokens counted.")
    sample_bytes: int = Field(20_000_000, gt=0, description="Text that a tokenizer is trained on, at most.")
    alphabet: Literal["byte_level", "byte_fallback"] = Field(
        "byte_level", description="What is trained on: bytes, or letters, of which rare ones are spelled in bytes."
    )
    split_digits: Literal["none", "each", "up_to_three"] = Field(
        "none", description="Whether a number may be one token, each digit is one, or up to three digits."
    )
    normalization: Literal["none", "nfc", "nfkc"] = Field(
        "none", description="Unicode form that texts are brought into."
    )
    min_frequency: int = Field(0, ge=0, description="For bpe: pairs that come less often are not joined.")
    max_token_length: int | None = Field(
        None,
        ge=2,
        description="Bytes of a token at most, letters with alphabet: byte_fallback; for unigram 16 when not set.",
    )

    @property
    def trained_kind(self) -> str:
        """What is trained, in words."""
        kind = {"bpe": "BPE", "unigram": "unigram"}[self.kind]
        return (
            f"Byte-level {kind}" if self.alphabet == "byte_level" else f"{kind[0].upper()}{kind[1:]} with byte fallback"
        )

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.path is None:
            if self.pattern is not None:
                raise ValueError("pattern is for tiktoken ranks: give their path, or remove it")
            for token in (*self.special_tokens, *([self.eos] if self.eos else [])):
                _check_apart(token)
            least = (260 if self.alphabet == "byte_level" else 320) + len(self.special_tokens)
            if self.vocab_size < least:
                raise ValueError(
                    f"vocab_size={self.vocab_size} is too small for all bytes and the special tokens: at least {least}"
                )
            if self.kind == "unigram" and self.min_frequency:
                raise ValueError("min_frequency is for bpe: unigram keeps the pieces that are most likely")
            return self
        for name in ("kind", "alphabet", "split_digits", "normalization", "min_frequency", "max_token_length"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a tokenizer that is trained; remove it, or path, which loads one")
        return self


def _check_apart(token: str) -> None:
    """A trained tokenizer never joins letters and signs, so such a token is never mistaken for a piece of text."""
    ends_in_signs = not any(letter.isalnum() or letter.isspace() for letter in (token[:1], token[-1:]))
    if not ends_in_signs or not any(letter.isalnum() for letter in token):
        raise ValueError(f"special token {token!r}: it has to begin and end with a sign, such as <|user|> or [SEP]")


class PrepareSettings(Settings):
    """Raw text to tokenized shards."""

    sources: list[SourceSettings] = Field(
        default_factory=lambda: [SourceSettings(name="python-docs", kind="python-docs")],
        description="Where documents come from.",
    )
    steps: list[OperatorSettings] = Field(
        default_factory=list, description="What happens to documents, in order: cleaning, filters, deduplication."
    )
    require: Requirements = Field(
        default_factory=Requirements, description="What the data set has to be, or it is not published."
    )
    output: str | None = Field(None, description="Folder of the shards; <storage>/<name>/data when not set.")
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    sequence_length: int = Field(512, ge=8, le=1_048_576, description="Tokens a row.")
    held_out: float = Field(0.01, ge=0, lt=1, description="Share of documents kept for held-out loss, by hash.")
    unit_bytes: int = Field(64_000_000, gt=0, description="Raw text packed into one shard; the unit of a restart.")
    workers: int | None = Field(None, gt=0, description="Units prepared at once; as many as fit when not set.")
    max_broken_share: float = Field(
        0.01, ge=0, le=1, description="Share of a source's files, or of its records, that may be broken and set aside."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        if len(names) != len(set(names)):
            raise ValueError(f"source names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _sets_are_named(self) -> Self:
        if self.require.contamination is not None and all(step.name != "decontaminate" for step in self.steps):
            raise ValueError("require.contamination needs the step decontaminate, whose `sets` it looks for")
        return self


class WeightAt(Settings):
    """From `step` on, this weight."""

    step: int = Field(ge=0)
    weight: float = Field(ge=0)


class MixtureEntry(Settings):
    """One folder of shards and its share of the mixture."""

    path: str = Field(description="Folder with manifest.json.")
    weight: float = Field(1.0, gt=0, description="Share of the mixture; weights need not sum to 1.")
    weight_schedule: list[WeightAt] = Field(default_factory=list, description="Other weights from given steps on.")


class DataSettings(Settings):
    """What is trained on."""

    path: str | None = Field(None, description="Folder of shards; short for one source.")
    mixture: list[MixtureEntry] = Field(default_factory=list, description="Several folders with weights.")
    reader: Literal["ray", "threads"] = Field(
        "ray", description="Who reads shards after the first steps: Ray Data tasks, or threads in each worker."
    )
    chunk_rows: int = Field(
        256, ge=1, description="Rows read at once, from one place of a shard; best a multiple of its groups of 64."
    )
    window_chunks: int = Field(
        4, ge=1, description="Chunks whose rows a lane shuffles together; a worker holds a window a lane, and the next."
    )
    allow_changed: bool = Field(False, description="Resume although the data's fingerprint changed.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.path and self.mixture:
            raise ValueError("give either path or mixture, not both")
        return self


class ModelSettings(Settings):
    """The network."""

    preset: Literal["tiny", "llama-25m", "llama-125m", "llama-350m", "llama-1b", "llama-3b", "llama-7b"] | None = Field(
        None, description="A Llama-style decoder of this size."
    )
    config: str | dict[str, Any] | None = Field(None, description="A transformers config: a path, or inline.")
    path: str | None = Field(None, description="A local Hugging Face folder whose weights training starts from.")
    dtype: Literal["fp32", "bf16"] = Field("bf16", description="Weights and activations; masters stay fp32.")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="Attention implementation.")
    document_attention: bool = Field(False, description="Tokens attend within their own document only.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Attention dropout (where the model has one).")
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    compile: bool = Field(False, description="torch.compile the model.")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ("preset", "config", "path") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of preset, config, path; got {', '.join(given)}")
        return self


class BatchSettings(Settings):
    """The global batch, the same at any number of workers."""

    sequences: int = Field(32, ge=1, description="Sequences in a global batch.")
    micro_batch: int = Field(4, ge=1, description="Sequences in a micro-batch; sequences / micro_batch lanes.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.sequences % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} does not divide sequences={self.sequences}")
        return self

    @property
    def lanes(self) -> int:
        """Micro-batch slots of a global batch, the most workers it can feed."""
        return self.sequences // self.micro_batch


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Settings):
    """AdamW and its learning rate."""

    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of the moments.")
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="Not applied to norms and biases.")
    max_grad_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns clipping off.")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field("cosine", description="After warm-up.")
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(None, ge=0, description="wsd: steps of the final decay; a tenth when not set.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Last learning rate over the peak.")


class ZeroSettings(Settings):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = Field(1, description="What is sharded: nothing, optimizer, gradients, weights.")
    offload_optimizer: bool = Field(False, description="Optimizer state and step on the CPU.")


class TrainSettings(Settings):
    """How long, and what is recorded."""

    steps: int = Field(100, ge=1, le=10**12, description="Optimizer steps of the whole run.")
    seed: int = Field(0, ge=0, lt=2**31)
    audit: bool = Field(False, description="Record (step, lane, sequence id) of everything trained on.")
    bad_loss: Literal["stop", "skip"] = Field("stop", description="On a NaN or infinite loss or gradient.")
    max_skips: int = Field(10, ge=0, description="With bad_loss skip: stop after this many skips in a row.")


class WorkerSettings(Settings):
    """The workers and what each needs."""

    min: int = Field(1, ge=1, description="Fewest workers that train.")
    max: int = Field(1, ge=1, description="Most workers.")
    gpu: bool | None = Field(None, description="One GPU a worker; when not set, if the cluster has any.")
    cpus: float = Field(1.0, gt=0, description="CPUs a worker reserves.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Further Ray resources a worker."
    )
    threads: int | None = Field(None, ge=1, description="Torch CPU threads a worker; its CPUs when not set.")
    grow_check_seconds: float = Field(10.0, gt=0, description="How often a larger group is looked for.")
    max_failures: int = Field(3, ge=0, description="Failures in a row without a committed or finished step.")
    collective_timeout_seconds: float = Field(120.0, gt=0, description="A peer silent this long counts as lost.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class CheckpointSettings(Settings):
    """When state is saved and what is kept."""

    every_steps: int | None = Field(None, ge=1, description="Save every n steps.")
    every_seconds: float | None = Field(None, gt=0, description="Save every n seconds; neither: Young/Daly.")
    asynchronous: bool = Field(True, description="Upload behind the training; only the staging copy stalls it.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    keep_best: int = Field(0, ge=0, description="Checkpoints kept for the lowest held-out loss.")
    mean_time_between_failures_seconds: float = Field(
        3600.0, gt=0, description="Young/Daly's first guess, until failures have been seen."
    )

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_steps and self.every_seconds:
            raise ValueError("give every_steps or every_seconds, not both")
        return self


class EvaluateSettings(Settings):
    """Held-out loss during training."""

    every_steps: int | None = Field(None, ge=1, description="Every n steps; not at all when not set.")
    sequences: int = Field(64, ge=1, description="Held-out sequences, the same at any number of workers.")


class ClusterSettings(Settings):
    """Where the job runs."""

    address: str | None = Field(None, description="A running Ray cluster; a local Ray is started when not set.")


class Job(Settings):
    """One job file."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run folder.")
    storage: str = Field("runs", min_length=1, description="Folder or URL under which the run folder stands.")
    object_store: ObjectStore = Field(default_factory=ObjectStore)
    prepare: PrepareSettings = Field(default_factory=PrepareSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    method: Literal["pretrain"] = Field("pretrain")
    batch: BatchSettings = Field(default_factory=BatchSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    zero: ZeroSettings = Field(default_factory=ZeroSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @model_validator(mode="after")
    def _lanes_carry_workers(self) -> Self:
        lanes = self.batch.lanes
        if self.workers.max > lanes:
            # A ConfigError, not a ValueError: it concerns two sections, and its hint names keys of both.
            raise ConfigError(
                f"workers.max={self.workers.max} exceeds the {lanes} lanes of a global batch "
                f"(batch.sequences={self.batch.sequences} / batch.micro_batch={self.batch.micro_batch})",
                hint=f"raise batch.sequences, lower batch.micro_batch, or set workers.max to {lanes} or less",
            )
        return self

    @property
    def run_url(self) -> str:
        """The run folder."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def shards_url(self) -> str:
        """Where `raylm prepare` writes shards."""
        return self.prepare.output or f"{self.run_url}/data"

    @property
    def mixture(self) -> list[MixtureEntry]:
        """The folders of shards that training reads."""
        if self.data.mixture:
            return list(self.data.mixture)
        return [MixtureEntry(path=self.data.path or self.shards_url)]
