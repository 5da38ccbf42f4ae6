"""A job's shards as training sees them, and what makes a run folder stand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylm.config.load import resolved_yaml
from raylm.config.schema import Job
from raylm.storage import Place

if TYPE_CHECKING:
    from raylm.stream.loader import StreamSource


def open_sources(job: Job) -> list[StreamSource]:
    """The job's shard folders with their manifests."""
    from raylm.shards import read_manifest
    from raylm.stream.loader import StreamSource

    reach = job.object_store.reach()
    sources = []
    for source in job.data_sources:
        folder = Place(source.path, reach)
        stages = tuple((stage.step, stage.weight) for stage in source.stages)
        sources.append(StreamSource(folder=folder, manifest=read_manifest(folder), weight=source.weight, stages=stages))
    return sources


def data_fingerprint(sources: list[StreamSource]) -> str:
    """One name for all the data of a run."""
    return "+".join(source.manifest.fingerprint for source in sources)


def order_settings(job: Job) -> dict[str, Any]:
    """Every setting that decides which sequences are in global batch t."""
    return {
        "batch.sequences": job.batch.sequences,
        "batch.micro": job.batch.micro,
        "train.seed": job.train.seed,
        "data.chunk_rows": job.data.chunk_rows,
        "data.window_chunks": job.data.window_chunks,
        "data.weights": [[s.weight, [[t.step, t.weight] for t in s.stages]] for s in job.data_sources],
    }


def publish(job: Job, run: Place) -> None:
    """Write what makes the run folder stand alone: its settings, and the tokenizer of its data."""
    from raylm.shards import TOKENIZER_FOLDER

    (run / "run.yaml").write_text(resolved_yaml(job))
    tokenizer = Place(job.data_sources[0].path, job.object_store.reach()) / TOKENIZER_FOLDER
    for file in tokenizer.list():
        (run / TOKENIZER_FOLDER / file.name).write_bytes(file.read_bytes())
