"""What can be checked before a worker is asked for: data, free space, and whose run the folder holds."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.job import Job
from raylm.errors import ConfigError
from raylm.run.folder import RunFolder
from raylm.run.identity import Identity, check_same_run, identity_of, parse_identity
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
    from raylm.train.branching import check_parent
    from raylm.train.sources import open_datasets

    sources = open_datasets(job)
    lengths = {source.manifest.sequence_length for source in sources}
    tokenizers = {source.manifest.tokenizer for source in sources}
    if len(lengths) > 1 or len(tokenizers) > 1:
        raise ConfigError(
            f"datasets differ in {'sequence length' if len(lengths) > 1 else 'tokenizer'}: "
            f"{sorted(lengths if len(lengths) > 1 else tokenizers)}",
            hint="prepare all sources with the same prepare.sequence_length and tokenizer",
        )
    run.check_writable(needed_bytes=_state_bytes(job, sources[0].manifest))
    folder = RunFolder(run)
    found = newest(folder.checkpoints)
    now = identity_of(job, [source.manifest for source in sources])
    if found is None:
        refuse_other_run(folder, now, allow_changed_data=job.data.allow_changed)
        check_parent(job, sources[0].manifest)
        return None
    check_same_run(found.state.identity, now, url=found.path.url, allow_changed_data=job.data.allow_changed)
    if found.step < job.train.steps:
        return None
    return TrainResult(job.run_url, found.step, last_loss(run), already_finished=True)


def _state_bytes(job: Job, manifest: DatasetManifest) -> int:
    """Bytes of one checkpoint: 12 a parameter (fp32 master and two moments)."""
    from raylm.model.budget import shape_of

    return 12 * shape_of(job.model, manifest.vocab_size, manifest.sequence_length).parameters


def refuse_other_run(folder: RunFolder, now: Identity, *, allow_changed_data: bool) -> None:
    """Raise when the folder holds steps of a run that is not the job's."""
    if not folder.has_trained():
        return
    if not folder.identity.exists():
        raise ConfigError(
            f"{folder.url} holds a run of another version of raylm: there is no {folder.identity.name}",
            hint="resume it with the raylm that wrote it, use another name, or move that folder away",
        )
    then = parse_identity(folder.identity.read_bytes(), folder.identity.url)
    check_same_run(then, now, url=folder.url, allow_changed_data=allow_changed_data)


def last_loss(run: StoragePath) -> float | None:
    """The loss of the last step that the run folder's metrics hold."""
    from raylm.run.log import read_metrics

    steps = read_metrics(RunFolder(run))
    return steps[-1].loss if steps else None
