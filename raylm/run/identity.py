"""What makes two jobs the same run: the data, its order, the model and the optimizer.

A resumed run may change everything else: where its data stands, its workers, ZeRO stage, kernels, checkpoints,
evaluation, and `train.steps`. (More steps stretch the learning rate's schedule from the step on at which it resumes.)
Whoever wants other settings branches a new run from a checkpoint with `init_from`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raylm.config.job import Job
from raylm.errors import CheckpointError, ConfigError
from raylm.shards import DatasetManifest
from raylm.strict_json import parse_json


@dataclass(frozen=True)
class Identity:
    """A run's identity. The mappings go from a setting's key to its value, and are what messages show.

    data: the fingerprint of what the shards hold. order: what else decides which sequences are in global batch t.
    The keys are part of the format: a setting that is renamed keeps its old key here.
    """

    data: str
    order: Mapping[str, Any]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """A digest: equal digests mean the same batches and the same updates at every step."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The identity as a file."""
        return json.dumps(asdict(self), indent=1).encode()


def parse_identity(data: bytes, url: str) -> Identity:
    """The identity in a file; `url` is for the message."""
    try:
        return parse_json(Identity, data)
    except ValueError as error:
        raise ConfigError(
            f"{url} does not say which run it is of: {error}", hint="use another name, or move that run's folder away"
        ) from error


def identity_of(job: Job, datasets: Sequence[DatasetManifest]) -> Identity:
    """The identity of the run that a job describes over these datasets."""
    return Identity(
        data="+".join(dataset.fingerprint for dataset in datasets),
        order=_order(job),
        model=_model(job),
        optimizer=_optimizer(job),
    )


def check_same_run(then: Identity, now: Identity, *, url: str, allow_changed_data: bool = False) -> None:
    """Raise unless a job goes on with the run in `url`: its settings, and unless allowed its data, may not differ."""
    differing = differences(then, now)
    if differing:
        raise ConfigError(
            f"{url} holds a run of another job: {'; '.join(differing)}",
            hint="set these back to resume that run, or choose another name; "
            "init_from.path starts a new run from its weights",
        )
    if then.data != now.data and not allow_changed_data:
        raise CheckpointError(
            f"the data changed since {url}: fingerprint {then.data} then, {now.data} now",
            hint="point data.path at the shards of this run, start under another name, or pass "
            "--set data.allow_changed=true to go on with the new data (sequences may repeat or be skipped)",
        )


ABSENT = "not there"


def differences(then: Identity, now: Identity) -> list[str]:
    """The settings that differ, one `key: old in the run, now new` each."""
    before, after = ({**one.order, **one.model, **one.optimizer} for one in (then, now))
    return [
        f"{key}: {before.get(key)!r} in the run, now {after.get(key)!r}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not _unknown(before.get(key), after.get(key))
    ]


def _unknown(before: Any, after: Any) -> bool:
    """Whether one of two digests could not be made, because what it is of was not there."""
    return (after == ABSENT and before is not None) or (before == ABSENT and after is not None)


def carried_over(then: Identity, now: Identity) -> Identity:
    """The identity of a run that goes on, with the digests of what is not there any more."""
    model = {key: then.model.get(key) if value == ABSENT else value for key, value in now.model.items()}
    return replace(now, model=model)


def _order(job: Job) -> dict[str, Any]:
    order: dict[str, Any] = {
        "batch.sequences": job.batch.sequences,
        "batch.micro_batch": job.batch.micro_batch,
        "data.chunk_rows": job.data.chunk_rows,
        "data.window_chunks": job.data.window_chunks,
        "train.seed": job.train.seed,
    }
    for number, entry in enumerate(job.mixture):
        order[f"data.mixture.{number}.weight"] = entry.weight
        order[f"data.mixture.{number}.weight_schedule"] = [[at.step, at.weight] for at in entry.weight_schedule]
    return order


def _model(job: Job) -> dict[str, Any]:
    model, config = job.model, job.model.config
    return {
        "method": job.method,
        "objective": job.objective.model_dump(mode="json"),
        "model.preset": model.preset,
        "model.config": dict(config) if isinstance(config, Mapping) else _content(config),
        "model.path": _content(model.path),
        "model.dtype": model.dtype,
        "model.document_attention": model.document_attention,
        "model.dropout": _dropout(model.dropout),
        "init_from.path": job.init_from.path,
        "init_from.optimizer": job.init_from.optimizer,
    }


def _dropout(share: float | None) -> float | str:
    """As runs have it that were begun before "not set" and 0 were two things."""
    return 0.0 if share is None else share or "off"


def _optimizer(job: Job) -> dict[str, Any]:
    optim = job.optim
    return {
        "optim.lr": optim.lr,
        "optim.betas": list(optim.betas),
        "optim.eps": optim.eps,
        "optim.weight_decay": optim.weight_decay,
        "optim.max_grad_norm": optim.max_grad_norm,
        "optim.schedule": optim.schedule,
        "optim.warmup_steps": optim.warmup_steps,
        "optim.decay_steps": optim.decay_steps,
        "optim.min_lr_ratio": optim.min_lr_ratio,
    }


def _content(path: str | None) -> str | None:
    """A digest of a model's config, and of the sizes of its weights: a folder that was moved is the same model.

    ABSENT where nothing is there: whoever resumes a run needs it no longer, since checkpoints hold all of it.
    """
    if path is None:
        return None
    local = Path(path)
    if not local.exists():
        return ABSENT
    config = local / "config.json" if local.is_dir() else local
    try:
        content = hashlib.sha256(config.read_bytes())
        weights = sorted(local.glob("*.safetensors")) if local.is_dir() else []
        content.update(json.dumps([[file.name, file.stat().st_size] for file in weights]).encode())
    except OSError as error:
        raise ConfigError(
            f"the model's config {config} cannot be read: {error.strerror}", hint="correct model.path or model.config"
        ) from error
    return f"sha256:{content.hexdigest()[:16]}"
