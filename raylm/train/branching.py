"""A new run from another's state: what `init_from` names is found, checked and read, and never changed.

The new run counts its own steps from 0: its schedule, its data and its log begin there. From a checkpoint it takes the
weights, and with `init_from.optimizer` the moments and the optimizer's own step count; an export has weights only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.errors import CheckpointError, ConfigError
from raylm.shards import TOKENIZER_FOLDER, DatasetManifest
from raylm.storage import StoragePath
from raylm.train.context import ActiveGroup, RunContext

if TYPE_CHECKING:
    from torch import nn

    from raylm.checkpoint.restore import CheckpointInfo
    from raylm.checkpoint.sources import StateSource
    from raylm.checkpoint.state import RunState
    from raylm.model.first_weights import FirstWeights
    from raylm.train.engine import Engine


log = logging.getLogger(__name__)


def check_parent(job: Job, data: DatasetManifest) -> None:
    """Raise before anything is spent when the run cannot start from what `init_from` names."""
    from raylm.trained import is_export

    path = parent_path(job)
    if path is None:
        return
    if path.url == job.run_url:
        raise ConfigError(f"init_from.path is the run's own folder, {path.url}", hint="give the new run another name")
    if is_export(path):
        if job.init_from.optimizer:
            raise ConfigError(
                f"init_from.optimizer=true, but {path.url} is an export, which holds weights only",
                hint="name a run folder or a checkpoint, or leave init_from.optimizer out",
            )
        check_tokenizer(job, data, path, key="init_from.path")
        _check_tensors_of_export(job, data, path)
        return
    from raylm.trained import find_checkpoint

    found = find_checkpoint(path)
    _check_vocabulary(found.state, data, found.path.url)
    _check_tensors(job, data, found)


def parent_path(job: Job) -> StoragePath | None:
    """What `init_from` names."""
    path = job.init_from.path
    return None if path is None else StoragePath(path, job.object_store.connection())


def branch(context: RunContext, active: ActiveGroup) -> None:
    """Fill a new run's engine from the checkpoint that `init_from` names, if it does. Collective."""
    from raylm.checkpoint.restore import reading
    from raylm.checkpoint.sources import StoredCheckpoint
    from raylm.checkpoint.state import Parent
    from raylm.trained import is_export

    path = parent_path(context.job)
    if path is None:
        return
    if is_export(path):
        context.parent = Parent(path.url, None, _fingerprint_of(path))
        return
    found = _chosen_for_all(path, active)
    _check_vocabulary(found.state, context.datasets[0].manifest, found.path.url)
    with reading(found):
        fill_engine(active.engine, StoredCheckpoint(found), optimizer=context.job.init_from.optimizer)
    context.parent = Parent(found.path.url, found.step, found.state.identity.fingerprint)
    if active.first:
        log.info("the run starts from step %d of %s", found.step, found.path.url)


def fill_engine(engine: Engine, source: StateSource, *, optimizer: bool = True) -> None:
    """Give an engine the state that a source holds; collective over the engine's group.

    optimizer=False leaves the moments zero and the optimizer's step count at 0.
    """
    from raylm.checkpoint import zero_state

    with engine.group.watched():
        wanted = zero_state.state_to_fill(engine.raw)
        if not optimizer:
            wanted = [pair for pair in wanted if pair[0].kind not in zero_state.MOMENTS]
        source.fill(wanted)
        zero_state.after_fill(engine.raw, source.scalars if optimizer else {zero_state.STEP: 0})


def weights_of_new_run(context: RunContext, model: nn.Module) -> FirstWeights:
    """Where a new run's weights come from: the export that `init_from` names, the model's folder, or random numbers.

    There are none where a checkpoint that `init_from` names fills them.
    """
    from raylm.model.build import first_weights
    from raylm.model.first_weights import Nothing
    from raylm.model.stored_weights import stored_weights
    from raylm.trained import is_export

    path = parent_path(context.job)
    if path is None:
        return first_weights(context.job.model, model, context.job.train.seed)
    return stored_weights(path, model, key="init_from.path") if is_export(path) else Nothing()


def _chosen_for_all(path: StoragePath, active: ActiveGroup) -> CheckpointInfo:
    """The checkpoint that rank 0 finds: the parent may be training still."""
    from raylm.checkpoint.manifest import step_folder
    from raylm.checkpoint.restore import checkpoint_at
    from raylm.trained import find_checkpoint

    found = find_checkpoint(path) if active.first else None
    step = int(active.group.all_reduce_sum([float(found.step) if found else 0.0])[0])
    found = found or find_checkpoint(path)
    if found.step != step:
        folder = StoragePath(found.path.url.rpartition("/")[0], path.connection)
        chosen = checkpoint_at(step_folder(folder, step))
        if chosen is None:
            raise CheckpointError(f"rank {active.member.rank} does not see checkpoint step {step} in {path.url}")
        return chosen
    return found


def _check_vocabulary(state: RunState, data: DatasetManifest, url: str) -> None:
    if state.tokenizer != data.tokenizer:
        raise CheckpointError(
            f"init_from.path: {url} was trained with another tokenizer ({state.tokenizer}) than the data has "
            f"({data.tokenizer})",
            hint="prepare the data with that run's tokenizer: prepare.tokenizer.path names the folder tokenizer/ in it",
        )


def check_tokenizer(job: Job, data: DatasetManifest, model: StoragePath, *, key: str) -> None:
    """Compare which tokens the ids stand for in a model's folder and in the data; `key` names the folder's setting."""
    from raylm.prep.tokenizer.agreement import disagreement, tokens_in

    ours = StoragePath(job.mixture[0].path, job.object_store.connection()) / TOKENIZER_FOLDER
    there, here = tokens_in(model), tokens_in(ours)
    if there is None and here is not None:
        log.warning(
            "%s: %s holds no tokenizer, so nobody can tell whether its tokens are the data's (%s)",
            key,
            model.url,
            data.tokenizer,
        )
    if there is None or here is None:
        return  # nothing to compare; the size of the vocabulary is
    if (words := disagreement(there, here)) is not None:
        raise CheckpointError(
            f"{key}: {model.url} was trained with another tokenizer than the data has ({data.tokenizer}): {words}",
            hint="prepare the data with that model's tokenizer: prepare.tokenizer.path names its folder",
        )


def _check_tensors_of_export(job: Job, data: DatasetManifest, export: StoragePath) -> None:
    """Compare the tensors that the export's config describes with those of the job's model."""
    from raylm.model.build import auto_class_of, config_from, empty_model, model_config

    theirs = config_from(json.loads((export / "config.json").read_bytes()))
    ours = model_config(job.model, data.vocab_size, data.sequence_length, eos_id=data.eos_id)
    sizes = [getattr(config, "vocab_size", None) for config in (theirs, ours)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"init_from.path: {export.url} has a vocabulary of {sizes[0]}, the job's model one of {sizes[1]}",
            hint="prepare the data with that export's tokenizer (prepare.tokenizer.path names its folder); where it is "
            "the same, give the job that model's vocab_size in model.config",
        )
    models = (
        empty_model(theirs, "eager", auto_class_of(theirs)),
        empty_model(ours, job.model.attention, job.objective.auto_class),
    )
    there, here = ({name: tuple(each.shape) for name, each in model.state_dict().items()} for model in models)
    _check_shapes(here, there, export.url)


def _check_tensors(job: Job, data: DatasetManifest, found: CheckpointInfo) -> None:
    """Compare the parent's tensors with those of the job's model, by name and shape."""
    from raylm.checkpoint.restore import open_checkpoint
    from raylm.model.build import empty_model, model_config

    config = model_config(job.model, data.vocab_size, data.sequence_length, eos_id=data.eos_id)
    empty = empty_model(config, job.model.attention, job.objective.auto_class)
    here = {name: tuple(each.shape) for name, each in empty.named_parameters()}
    held = open_checkpoint(found).fragments
    there = {name: some[0].chunk.shape for (kind, name), some in held.items() if kind in ("master", "frozen")}
    _check_shapes(here, there, found.path.url)


def _check_shapes(here: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]], url: str) -> None:
    # A tensor that both have, in two shapes, tells more than one that is missing.
    for name in sorted(here.keys() | there.keys(), key=lambda name: (name not in here or name not in there, name)):
        if here.get(name) != there.get(name):
            raise CheckpointError(
                f"init_from.path: {url} holds another model: {name} is {_shown(there.get(name))} there and "
                f"{_shown(here.get(name))} in the job's",
                hint="give the job that run's model settings (its run.yaml has them)",
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


def _fingerprint_of(export: StoragePath) -> str:
    """A digest of an export's config and of the names and sizes of its files."""
    files: list[Any] = [[file.name, file.size()] for file in export.list() if file.name.endswith(".safetensors")]
    content = (export / "config.json").read_bytes() + json.dumps(sorted(files)).encode()
    return hashlib.sha256(content).hexdigest()[:16]
