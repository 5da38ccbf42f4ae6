"""A job's shards as training sees them, and what makes a run folder stand alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from raylm.config.job import Job
from raylm.config.load import resolved_yaml
from raylm.plugins import carried, copy_names
from raylm.run.events import SettingsChanged
from raylm.run.folder import RunFolder
from raylm.run.identity import identity_of
from raylm.storage import NotFound, StoragePath
from raylm.train.changes import changes_since

if TYPE_CHECKING:
    from raylm.stream.loader import Dataset, StreamSettings

log = logging.getLogger(__name__)


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


def publish(job: Job, run: RunFolder) -> SettingsChanged | None:
    """Write what makes the run folder stand alone: settings, which run it is, its plugins, its data's tokenizer.

    Returns what the job changes of the settings that the run was trained with, for the record.
    """
    from raylm.checkpoint.fallback import newest_readable
    from raylm.shards import TOKENIZER_FOLDER

    found = newest_readable(run.checkpoints).info
    changed = changes_since(run, job, found.step if found is not None else 0)
    identity = identity_of(job, [dataset.manifest for dataset in open_datasets(job)])
    run.identity.write_bytes(identity.to_json())
    run.settings.write_text(resolved_yaml(job))
    _publish_plugins(job, run)
    tokenizer = StoragePath(job.mixture[0].path, job.object_store.connection()) / TOKENIZER_FOLDER
    for file in tokenizer.list():
        (run.tokenizer / file.name).write_bytes(file.read_bytes())
    return changed


def _publish_plugins(job: Job, run: RunFolder) -> None:
    """Write the text of the job's plugin files; say so when one differs from what the run was trained with."""
    names = copy_names(job.plugins)
    for plugin in carried(tuple(names)):
        assert plugin.source is not None
        file = run.plugins / names[plugin.name]
        try:
            before = file.read_text()
        except NotFound:
            before = None
        if before == plugin.source:
            continue
        if before is not None and run.has_trained():
            log.warning(
                "plugin %s has changed since %s was last trained; it goes on with the new text", plugin.name, run.url
            )
        file.write_text(plugin.source)
