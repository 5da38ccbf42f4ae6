"""Workers in, their share of every global batch out: pure arithmetic that keeps the global batch constant."""

from __future__ import annotations

from raylm.errors import ConfigError


def micro_batches_per_rank(lanes: int, world_size: int) -> int:
    """Micro-steps that each rank runs so that one optimizer step covers every lane."""
    if world_size > lanes:
        raise ConfigError(
            f"workers={world_size} exceeds the {lanes} micro-batches in a global batch",
            hint="raise batch.sequences, lower batch.micro_batch, or lower workers.max",
        )
    return -(-lanes // world_size)
