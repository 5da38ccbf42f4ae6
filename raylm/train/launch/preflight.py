"""What can be checked before a worker is asked for: data, free space, and whose run the folder holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylm.checkpoint.copy_schedule import STATE_BYTES, copy_bytes
from raylm.checkpoint.room import lacking
from raylm.config.job import Job
from raylm.config.together import changes_never_reached, refuse_mismatched
from raylm.errors import ClusterError, ConfigError
from raylm.run.folder import RunFolder
from raylm.run.identity import Identity, check_same_run, identity_of, parse_identity
from raylm.shards import DatasetManifest
from raylm.storage import StoragePath

if TYPE_CHECKING:
    from raylm.checkpoint.restore import CheckpointInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says of itself."""

    run_url: str
    step: int
    loss: float | None
    already_finished: bool = False


def preflight(job: Job, run: StoragePath) -> TrainResult | None:
    """Refuse what cannot work before anything is spent; a run that is finished already gives its result."""
    found = checked(job, run, write_check=True)
    if found is None or found.step < job.train.steps:
        return None
    return TrainResult(job.run_url, found.step, last_loss(run), already_finished=True)


def checked(job: Job, run: StoragePath, *, write_check: bool) -> CheckpointInfo | None:
    """Refuse what cannot work; the checkpoint that the run goes on from. Without `write_check` it only reads."""
    from raylm.checkpoint.fallback import newest_readable
    from raylm.objectives import objective_of
    from raylm.stream.held_out import check_any
    from raylm.stream.reading import reading
    from raylm.train.branching import check_parent, check_tokenizer
    from raylm.train.sources import open_datasets

    given, datasets = job, open_datasets(job)
    lengths = {dataset.manifest.sequence_length for dataset in datasets}
    tokenizers = {dataset.manifest.tokenizer for dataset in datasets}
    if len(lengths) > 1 or len(tokenizers) > 1:
        of = [one.manifest.sequence_length if len(lengths) > 1 else one.manifest.tokenizer for one in datasets]
        each = "; ".join(f"{one.folder.url}: {value}" for one, value in zip(datasets, of, strict=True))
        raise ConfigError(
            f"datasets differ in {'sequence length' if len(lengths) > 1 else 'tokenizer'}: {each}",
            hint="prepare all datasets with the same prepare.sequence_length and tokenizer",
        )
    reading(datasets, objective_of(job).columns)
    folder = RunFolder(run)
    found = newest_readable(folder.checkpoints).or_raise()
    job = _standing(job, found)
    try_job_model(job, datasets[0].manifest.vocab_size, datasets[0].manifest.sequence_length)
    refuse_mismatched(job)
    for words in changes_never_reached(job):
        log.warning("%s", words)
    if job.evaluate.every_steps is not None:
        check_any(datasets)
    needed = _state_bytes(job, datasets[0].manifest)
    if write_check:
        run.check_writable(needed_bytes=needed)
    now = identity_of(given, [dataset.manifest for dataset in datasets])
    if found is None:
        refuse_other_run(folder, now, allow_changed_data=job.data.allow_changed)
        check_parent(job, datasets[0].manifest)
        if job.model.path is not None:
            check_tokenizer(job, datasets[0].manifest, StoragePath(job.model.path), key="model.path")
        return None
    check_same_run(found.state.identity, now, url=found.path.url, allow_changed_data=job.data.allow_changed)
    return found


def _standing(job: Job, found: CheckpointInfo | None) -> Job:
    """The job with the checkpoint's own model config where the one that it names is not there any more."""
    if found is None or job.model.preset is not None:
        return job
    from raylm.model.build import standing_settings

    return job.model_copy(update={"model": standing_settings(job.model, found.state.model_config)})


def try_job_model(job: Job, vocab_size: int, sequence_length: int) -> None:
    """Try a small twin of the model, where its family was not: presets are Llamas, which every test trains."""
    if job.model.preset is not None or job.objective.name != "causal":
        return
    from raylm.model.capabilities import try_model

    given = job.model.config
    if isinstance(given, Mapping) and given.get("router_aux_loss_coef"):
        log.warning(
            "model.config's router_aux_loss_coef=%s is not used: the loss is that of the next token alone",
            given["router_aux_loss_coef"],
        )
    try_model(job.model, vocab_size, sequence_length)


def _state_bytes(job: Job, manifest: DatasetManifest) -> int:
    """Bytes of one checkpoint: 12 a parameter (fp32 master and two moments)."""
    return STATE_BYTES * _parameters(job, manifest)


def _parameters(job: Job, manifest: DatasetManifest) -> int:
    from raylm.model.flops import shape_of

    return shape_of(job.model, manifest.vocab_size, manifest.sequence_length, job.objective.auto_class).parameters


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


def memory_advice(job: Job) -> str | None:
    """That a node of the cluster has too little memory for the copies of as many workers as fit on it, in words.

    None where all have enough. Workers look again before they copy: other programs of the node take memory, too.
    """
    from raylm.checkpoint.fallback import newest_readable
    from raylm.runtime.nodes import slots, usable_nodes
    from raylm.train.sources import open_datasets

    job = _standing(job, newest_readable(RunFolder.of(job).checkpoints).or_raise())
    most, needed = job.workers.max, worker_resources(job)
    each = copy_bytes(_parameters(job, open_datasets(job)[0].manifest), most)
    for node in usable_nodes():
        workers, memory = min(most, slots(node["Resources"], needed)), node["Resources"].get("memory")
        if memory is not None and (lack := lacking(each, int(memory), workers=workers)) is not None:
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            return (
                f"{name}: {lack}; where they find no room none are kept, and a lost worker costs the steps since the "
                "last checkpoint: use nodes with more memory, or more of them"
            )
    return None


def refuse_small_machine(job: Job) -> None:
    """Raise ClusterError where the machine alone, to which no node will come, has no room for `workers.min`."""
    from raylm.runtime.nodes import slots, usable_nodes

    needed = worker_resources(job)
    fits = sum(slots(node["Resources"], needed) for node in usable_nodes())
    if fits < job.workers.min:
        each = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
        raise ClusterError(
            f"this machine has room for {fits} of the {job.workers.min} worker{'s' * (job.workers.min > 1)} that "
            f"workers.min asks for, with {each} each, and no node will come: cluster.address is not set",
            hint="lower what workers.min, workers.gpu and workers.resources ask for, or name a cluster that has it",
        )


def worker_resources(job: Job) -> dict[str, float]:
    """What each worker is given of its node; a GPU where the cluster has any, unless the job says otherwise."""
    import ray

    gpu = job.workers.gpu if job.workers.gpu is not None else ray.cluster_resources().get("GPU", 0) > 0
    return {"CPU": job.workers.cpus, **({"GPU": 1} if gpu else {}), **job.workers.resources}
