"""What can be checked before a worker is asked for: data, free space, and whose run the folder holds."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.job import Job
from raylm.config.load import parse_job, same_run
from raylm.errors import ConfigError
from raylm.run.folder import RunFolder
from raylm.shards import DatasetManifest
from raylm.storage import StoragePath


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says of itself."""

    run_url: str
    step: int
    loss: float | None
    already_finished: bool = False


def preflight(job: Job, run: StoragePath) -> TrainResult | None:
    """Refuse what cannot work before anything is spent; a run that is finished already gives its result."""
    from raylm.checkpoint.restore import newest
    from raylm.objectives import objective_of
    from raylm.stream.reading import reading
    from raylm.train.saving import check_meta
    from raylm.train.sources import data_fingerprint, open_datasets

    datasets = open_datasets(job)
    lengths = {dataset.manifest.sequence_length for dataset in datasets}
    tokenizers = {dataset.manifest.tokenizer for dataset in datasets}
    if len(lengths) > 1 or len(tokenizers) > 1:
        raise ConfigError(
            f"datasets differ in {'sequence length' if len(lengths) > 1 else 'tokenizer'}: "
            f"{sorted(lengths if len(lengths) > 1 else tokenizers)}",
            hint="prepare all datasets with the same prepare.sequence_length and tokenizer",
        )
    reading(datasets, objective_of(job).columns)
    run.check_writable(needed_bytes=_state_bytes(job, datasets[0].manifest))
    found = newest(RunFolder(run).checkpoints)
    refuse_other_job(job, run)
    if found is None:
        return None
    check_meta(found.meta, job, data_fingerprint(datasets), found.place.url)
    if found.step < job.train.steps:
        return None
    return TrainResult(job.run_url, found.step, last_loss(run), already_finished=True)


def _state_bytes(job: Job, manifest: DatasetManifest) -> int:
    """Bytes of one checkpoint: 12 a parameter (fp32 master and two moments)."""
    from raylm.model.flops import shape_of

    return 12 * shape_of(job.model, manifest.vocab_size, manifest.sequence_length, job.objective.auto_class).parameters


def refuse_other_job(job: Job, run: StoragePath) -> None:
    """Raise a ConfigError when the run folder holds a run that these settings would not go on with."""
    folder = RunFolder(run)
    if not folder.has_trained() or not folder.settings.exists():
        return
    try:
        old = parse_job(folder.settings.read_text(), origin=folder.settings.url)
    except ConfigError as error:
        raise ConfigError(
            f"{run.url} holds a run that this version cannot read: {error.message}",
            hint="use another name, or move that folder away",
        ) from error
    differing = same_run(old, job)
    if differing:
        raise ConfigError(
            f"{run.url} holds a run of another job: {'; '.join(differing)}",
            hint="set these back to resume that run, or choose another name",
        )


def last_loss(run: StoragePath) -> float | None:
    """The loss of the last step that the run folder's metrics hold."""
    from raylm.run.log import read_metrics

    steps = read_metrics(RunFolder(run))
    return steps[-1].loss if steps else None
