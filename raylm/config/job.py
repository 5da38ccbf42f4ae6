"""A job file as a whole: one section per concern, each in a module of its own beside this one."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from raylm.config.base import Settings
from raylm.config.checkpoint import CheckpointSettings
from raylm.config.cluster import ClusterSettings
from raylm.config.data import DataSettings, MixtureEntry
from raylm.config.evaluate import EvaluateSettings
from raylm.config.init_from import InitFromSettings
from raylm.config.model import ModelSettings
from raylm.config.object_store import ObjectStore
from raylm.config.objective import ObjectiveSettings
from raylm.config.optim import BatchSettings, OptimSettings, TrainSettings, ZeroSettings
from raylm.config.paths import ModuleOrFile, PathOrUrl, resolved_module_or_file
from raylm.config.prepare import PrepareSettings
from raylm.config.workers import WorkerSettings
from raylm.errors import ConfigError
from raylm.plugins import COPIES, Carried, carried, load_plugins


def required_job(job: object) -> Job:
    """The job that a program was to give; ConfigError for a path, a mapping or anything else."""
    if isinstance(job, Job):
        return job
    raise ConfigError(
        f"a Job is needed, not the {type(job).__name__} {repr(job)[:80]}",
        hint="raylm.load_job(path, overrides) reads a job file, raylm.job_from({...}) takes its settings",
    )


class Job(Settings):
    """One job file."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run folder.")
    plugins: list[ModuleOrFile] = Field(
        default_factory=list,
        description="Modules, or Python files, that register operators, sources or objectives of your own.",
    )
    storage: PathOrUrl = Field(
        "runs", min_length=1, validate_default=True, description="Folder or URL under which the run folder stands."
    )
    object_store: ObjectStore = Field(default_factory=ObjectStore, description="How object storage is reached.")
    prepare: PrepareSettings = Field(default_factory=PrepareSettings, description="Raw text to tokenized shards.")
    data: DataSettings = Field(default_factory=DataSettings, description="What is trained on.")
    model: ModelSettings = Field(default_factory=ModelSettings, description="The network.")
    init_from: InitFromSettings = Field(
        default_factory=InitFromSettings, description="Another run, or a model, whose weights training starts from."
    )
    method: Literal["pretrain"] = Field(
        "pretrain", description="What is trained, and how: all weights, from what the model starts with."
    )
    objective: ObjectiveSettings = Field(
        default_factory=lambda: ObjectiveSettings.model_validate("causal"), description="What training minimizes."
    )
    batch: BatchSettings = Field(
        default_factory=BatchSettings, description="The global batch, the same at any number of workers."
    )
    optim: OptimSettings = Field(default_factory=OptimSettings, description="AdamW and its learning rate.")
    zero: ZeroSettings = Field(default_factory=ZeroSettings, description="DeepSpeed ZeRO.")
    train: TrainSettings = Field(default_factory=TrainSettings, description="How long, and what is recorded.")
    workers: WorkerSettings = Field(default_factory=WorkerSettings, description="The workers and what each needs.")
    checkpoint: CheckpointSettings = Field(
        default_factory=CheckpointSettings, description="When state is saved and what is kept."
    )
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings, description="Held-out loss during training.")
    cluster: ClusterSettings = Field(default_factory=ClusterSettings, description="Where the job runs.")

    @model_validator(mode="before")
    @classmethod
    def _plugins_first(cls, values: Any, info: ValidationInfo) -> Any:
        # What they register is needed to check the rest.
        given = values.get("plugins") if isinstance(values, dict) else None
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            copies = (info.context or {}).get(COPIES)
            load_plugins([resolved_module_or_file(name, info) for name in given], copies)
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        # The plugins are imported before the settings are unpickled whose classes they hold.
        return (_unpickled, (carried(self.plugins), self.__getstate__()))

    @model_validator(mode="after")
    def _lanes_carry_workers(self) -> Self:
        lanes = self.batch.lanes
        if self.workers.max > lanes:
            # A ConfigError, not a ValueError: it concerns two sections, and its hint names keys of both.
            raise ConfigError(
                f"workers.max={self.workers.max} exceeds the {lanes} lanes of a global batch "
                f"(batch.sequences={self.batch.sequences} / batch.micro_batch={self.batch.micro_batch})",
                hint=f"raise batch.sequences, lower batch.micro_batch, or set workers.max to {lanes} or less",
                key="workers.max",
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


def _unpickled(_: Carried, state: dict[str, Any]) -> Job:
    job = Job.__new__(Job)
    job.__setstate__(state)
    return job
