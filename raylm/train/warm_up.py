"""A first step on a small twin of the model, alone, so that a body's first engine costs the others no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylm.config.model import ModelSettings
from raylm.train.context import RunContext
from raylm.train.sources import stream_settings

if TYPE_CHECKING:
    from raylm.train.engine import Engine

LAYERS = 2


def warm_up(context: RunContext) -> None:
    """Build an engine for a twin of two layers, step it once on the first lane's rows, and forget it."""
    from raylm.model.build import build_model, standing_settings
    from raylm.objectives import objective_of
    from raylm.stream.loader import Stream
    from raylm.train.engine import Engine, EngineSettings
    from raylm.train.group import leave_group, single

    job, manifest = context.job, context.datasets[0].manifest
    lanes = job.batch.lanes
    group = single()
    engine: Engine | None = None
    stream = Stream(context.datasets, stream_settings(job), rank=0, world_size=lanes, start_step=0)
    try:
        model = build_model(
            _twin(standing_settings(job.model, context.model_config), manifest.vocab_size, manifest.sequence_length),
            vocab_size=manifest.vocab_size,
            sequence_length=manifest.sequence_length,
            seed=job.train.seed,
            eos_id=manifest.eos_id,
            auto_class=job.objective.auto_class,
        )
        objective = objective_of(job)
        engine = Engine.build(model, group, objective, EngineSettings.of(job, lanes))
        batch = next(iter(stream))
        weight = sum(objective.weight(micro) for micro in batch.micro_batches)
        engine.step(batch.micro_batches, step=0, seed=0, global_weight=max(weight, 1.0), lr=0.0)
    finally:
        stream.close()
        if engine is not None:
            engine.destroy()
        leave_group(group)


def _twin(settings: ModelSettings, vocab_size: int, sequence_length: int) -> ModelSettings:
    """The model with fewer layers, where its config says how many there are."""
    from raylm.model.build import config_dict, model_config

    config = config_dict(model_config(settings, vocab_size, sequence_length))
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(config.get(name), int):
            config[name] = min(LAYERS, config[name])
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:LAYERS]
    return settings.model_copy(update={"preset": None, "path": None, "config": config})
