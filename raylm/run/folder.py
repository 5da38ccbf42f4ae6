"""The run folder, `<storage>/<name>`: the one module that spells the names in it.

run.yaml          every setting of the run, resolved
identity.json     what makes a job the same run
metrics           a line per optimizer step     metrics.jsonl on a file system, metrics/000001.jsonl … elsewhere
events            a line per event              events.jsonl, events/…
audit             a line per step of what it was trained on, where `train.audit` is set
checkpoints/      a folder per saved step
tensorboard/      the metrics again, for TensorBoard
tokenizer/        of the data
plugins/          the files that `plugins` names, as the run was last started with them
data/             prepared shards, unless `prepare.output` or `data.path` names another folder
stacks/           what stalled workers were doing
driver.json       the lease: which process trains the run
report.html       what `raylm report` wrote
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.job import Job
from raylm.errors import ConfigError
from raylm.plugins import COPIES
from raylm.shards import TOKENIZER_FOLDER
from raylm.storage import NotFound, StoragePath

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunFolder:
    """A run folder and where everything in it stands."""

    path: StoragePath

    @classmethod
    def of(cls, job: Job) -> RunFolder:
        """The run folder that a job trains in."""
        return cls(StoragePath(job.run_url, job.object_store.connection()))

    @classmethod
    def around(cls, checkpoint: StoragePath) -> RunFolder | None:
        """The run folder that a checkpoint's folder stands in, None when it was moved out of one."""
        above, _, _ = checkpoint.url.rpartition("/")
        run, _, name = above.rpartition("/")
        return cls(StoragePath(run, checkpoint.connection)) if name == CHECKPOINTS and run else None

    @property
    def url(self) -> str:
        """The folder's path or URL."""
        return self.path.url

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def settings(self) -> StoragePath:
        """The resolved settings of the run, a job file."""
        return self.path / "run.yaml"

    @property
    def identity(self) -> StoragePath:
        """What makes a job the same run as this one."""
        return self.path / "identity.json"

    @property
    def metrics(self) -> StoragePath:
        """A line per optimizer step."""
        return self._lines("metrics")

    @property
    def events(self) -> StoragePath:
        """A line per event."""
        return self._lines("events")

    @property
    def audit(self) -> StoragePath:
        """A line per audited step."""
        return self._lines("audit")

    @property
    def checkpoints(self) -> StoragePath:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def tensorboard(self) -> StoragePath:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def tokenizer(self) -> StoragePath:
        """The tokenizer of the run's data, a Hugging Face folder."""
        return self.path / TOKENIZER_FOLDER

    @property
    def plugins(self) -> StoragePath:
        """The folder of the run's plugin files."""
        return self.path / COPIES

    @property
    def data(self) -> StoragePath:
        """The run's own prepared shards, where it has them."""
        return self.path / "data"

    @property
    def lease(self) -> StoragePath:
        """The file that says which process trains the run."""
        return self.path / "driver.json"

    def stacks(self, generation: int, rank: int, step: int) -> StoragePath:
        """What the threads of a rank were doing when it stalled after a step."""
        return self.path / "stacks" / f"generation-{generation}-rank-{rank}-step-{step}.txt"

    @property
    def report(self) -> StoragePath:
        """The HTML report."""
        return self.path / "report.html"

    def read_job(self) -> Job | None:
        """The run's settings, None when there are none; ConfigError when another version of raylm wrote them."""
        from raylm.config.load import parse_job

        try:
            return parse_job(self.settings.read_text(), origin=self.settings.url, plugin_copies=self.plugins)
        except NotFound:
            return None
        except ConfigError as error:
            raise ConfigError(
                f"{self.url} holds a run of another version of raylm: {error.message}",
                hint="use the raylm that wrote it, or start the run again under another name",
            ) from error

    def exists(self) -> bool:
        """Whether a run's settings or checkpoints stand here."""
        return self.settings.exists() or self.checkpoints.exists()

    def has_trained(self) -> bool:
        """Whether a step was ever taken here; settings alone are left by a start that never took one."""
        return self.metrics.exists() or self.checkpoints.exists()

    def _lines(self, name: str) -> StoragePath:
        """A file that is appended to, or a folder of parts where nothing can be."""
        return self.path / (f"{name}.jsonl" if self.path.is_local else name)
