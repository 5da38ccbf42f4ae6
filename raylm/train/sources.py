"""A job's shards as training sees them, and what makes a run folder stand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylm.config.job import Job
from raylm.config.load import resolved_yaml
from raylm.run.folder import RunFolder
from raylm.storage import StoragePath

if TYPE_CHECKING:
    from raylm.stream.loader import Dataset, StreamSettings


def open_datasets(job: Job) -> list[Dataset]:
    """The job's shard folders with their manifests."""
    from raylm.shards import read_manifest
    from raylm.stream.loader import Dataset

    connection = job.object_store.connection()
    datasets = []
    for entry in job.mixture:
        folder = StoragePath(entry.path, connection)
        schedule = tuple((change.step, change.weight) for change in entry.weight_schedule)
        datasets.append(
            Dataset(folder=folder, manifest=read_manifest(folder), weight=entry.weight, weight_schedule=schedule)
        )
    return datasets


def stream_settings(job: Job) -> StreamSettings:
    """What decides the job's batches besides its datasets."""
    from raylm.objectives import objective_of
    from raylm.stream.loader import StreamSettings

    return StreamSettings(
        job.batch,
        job.data,
        job.train.seed,
        document_attention=job.model.document_attention,
        columns=objective_of(job).columns,
    )


def data_fingerprint(datasets: list[Dataset]) -> str:
    """One name for all the data of a run."""
    return "+".join(dataset.manifest.fingerprint for dataset in datasets)


def order_settings(job: Job) -> dict[str, Any]:
    """Every setting that decides which sequences are in global batch t."""
    return {
        "batch.sequences": job.batch.sequences,
        "batch.micro_batch": job.batch.micro_batch,
        "train.seed": job.train.seed,
        "data.chunk_rows": job.data.chunk_rows,
        "data.window_chunks": job.data.window_chunks,
        "data.weights": [[s.weight, [[t.step, t.weight] for t in s.weight_schedule]] for s in job.mixture],
    }


def publish(job: Job, run: RunFolder) -> None:
    """Write what makes the run folder stand alone: its settings, and the tokenizer of its data."""
    from raylm.shards import TOKENIZER_FOLDER

    run.settings.write_text(resolved_yaml(job))
    tokenizer = StoragePath(job.mixture[0].path, job.object_store.connection()) / TOKENIZER_FOLDER
    for file in tokenizer.list():
        (run.tokenizer / file.name).write_bytes(file.read_bytes())
