"""Small datasets and the jobs that train on them, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from raylm.deploy.local import SLOT
from raylm.shards import Counts, DatasetManifest, RowFormat, Shard, ShardWriter, write_manifest
from raylm.storage import StoragePath

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEQUENCE, VOCABULARY = 64, 512


def write_dataset(
    folder: Path | str,
    rows: RowFormat,
    train: NDArray[Any],
    held_out: NDArray[Any],
    *,
    shard_rows: int = 1000,
    document_starts: Sequence[int] = (0,),
    columns: Callable[[NDArray[Any]], Mapping[str, Any]] = lambda tokens: {},
) -> StoragePath:
    """Prepared data of these tokens, (rows, sequence length) each, cut into shards of `shard_rows`.

    Every row has the same `document_starts`; `columns` gives a row's optional columns from its tokens.
    """
    path = StoragePath(str(folder))

    def shards(split: str, tokens: NDArray[Any]) -> list[Shard]:
        made = []
        for number, start in enumerate(range(0, len(tokens), shard_rows)):
            with ShardWriter(path / f"{split}-{number:03d}.parquet", rows) as writer:
                for row in tokens[start : start + shard_rows]:
                    writer.add(row.astype(rows.dtype), document_starts, columns(row))
            made.append(writer.close())
        return made

    counts = Counts(train.size, held_out.size, held_out.size)
    manifest = DatasetManifest.of(
        rows, train=shards("train", train), held_out=shards("held-out", held_out), counts=counts
    )
    write_manifest(path, manifest)
    return path


def make_data(folder: Path, *, rows: int, held_out: int = 16, seed: int = 0) -> Path:
    """A small dataset whose tokens a model can learn: noisy counting, by a stride of its own in each row."""
    random = np.random.default_rng(seed)

    def counting(count: int) -> NDArray[Any]:
        made = np.empty((count, SEQUENCE), dtype=np.int64)
        for row in made:
            tokens = (random.integers(1, VOCABULARY) + random.integers(1, 4) * np.arange(SEQUENCE)) % VOCABULARY
            row[:] = np.where(random.random(SEQUENCE) < 0.1, random.integers(1, VOCABULARY, SEQUENCE), tokens)
        return made

    write_dataset(
        folder,
        RowFormat(SEQUENCE, VOCABULARY, "none", eos_id=0, group_rows=8),
        counting(rows),
        counting(held_out),
        shard_rows=100,
    )
    return folder


def job_settings(storage: Path, data: Path, *, name: str, steps: int, stage: int = 1, **changes: Any) -> dict[str, Any]:
    """A job as a mapping: the tiny model in fp32, audited, 12 lanes; `changes` by key, with `__` for the dot."""
    settings: dict[str, Any] = {
        "name": name,
        "storage": str(storage),
        "data": {"path": str(data), "chunk_rows": 8, "window_chunks": 4, "reader": "threads"},
        "model": {"preset": "tiny", "dtype": "fp32"},
        "batch": {"sequences": 24, "micro_batch": 2},
        "optim": {"lr": 1e-3, "warmup_steps": min(3, steps)},
        "zero": {"stage": stage},
        "train": {"steps": steps, "audit": True, "seed": 7},
        "workers": {"min": 1, "max": 3, "gpu": False, "resources": {SLOT: 1}, "join_interval_seconds": 1.0},
        "checkpoint": {"every_steps": 5},
        "evaluate": {"every_steps": 10, "sequences": 16},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            settings.setdefault(section, {})[leaf] = value
        else:
            settings[section] = value
    return settings


def write_job(folder: Path, settings: dict[str, Any]) -> Path:
    """The job's file in this folder, named after the job."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
