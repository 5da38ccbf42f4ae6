"""What `--dry-run` shows of a job before anything is spent."""

from __future__ import annotations

from raylm.config.job import Job
from raylm.errors import DataError, StorageError
from raylm.humanize import count, size
from raylm.shards import MANIFEST_NAME, read_manifest
from raylm.storage import StoragePath

Rows = list[tuple[str, str]]


def prepare_rows(job: Job) -> Rows:
    """What `raylm prepare` would read and write."""
    settings = job.prepare
    sources = [f"{source.name} ({source.location})" for source in settings.sources]
    trained = f"{settings.tokenizer.trained_kind} of {settings.tokenizer.vocab_size:,}, to be trained"
    tokenizer = settings.tokenizer.path or trained
    workers = f"{settings.workers} at once" if settings.workers else "as many as the machine's CPUs carry"
    return [
        *(("source" if index == 0 else "", words) for index, words in enumerate(sources)),
        *_raw_rows(job),
        *(("step" if number == 1 else "", f"{number}. {words}") for number, words in enumerate(_steps(job), 1)),
        *language_rows(job),
        ("tokenizer", tokenizer),
        ("rows", f"{settings.sequence_length:,} tokens each, {settings.held_out:.1%} of documents held out"),
        ("workers", workers),
        ("output", _state(StoragePath(job.shards_url, job.object_store.connection()))),
    ]


def language_rows(job: Job) -> Rows:
    """Which languages the steps will drop or leave alone."""
    from raylm.prep.operators.build import language_notes

    notes = language_notes(job.prepare.steps, job.prepare.sources)
    return [("languages" if index == 0 else "", note) for index, note in enumerate(notes)]


def _steps(job: Job) -> list[str]:
    """Each step with the settings that are not its defaults."""
    lines = []
    for step in job.prepare.steps:
        given = step.settings.model_dump(mode="json", exclude_defaults=True)
        lines.append(", ".join([step.name.replace("_", " "), *(f"{key} {value}" for key, value in given.items())]))
    return lines


def train_rows(job: Job) -> Rows:
    """What `raylm train` would train on, with and into."""
    from raylm.model.flops import shape_of
    from raylm.run.folder import RunFolder
    from raylm.run.identity import identity_of
    from raylm.train.launch.preflight import checked, refuse_other_run

    ready, length, data = _data(job)
    shape_of(job.model, job.prepare.tokenizer.vocab_size, length)  # a job without a model, or with none that works
    run = RunFolder.of(job)
    unchecked = [] if ready else ["whether the settings fit the data"]
    try:
        if ready:
            checked(job, run.path, write_check=False)
        else:  # the settings alone
            refuse_other_run(run, identity_of(job, []), allow_changed_data=True)
    except StorageError as error:
        of = "whether this job may train in the output folder"
        unchecked.append(f"{of}{' and from init_from.path' if job.init_from.path else ''}: {error.message}")
    per_step = job.batch.sequences * length
    workers = f"{job.workers.min} to {job.workers.max}" if job.workers.min < job.workers.max else f"{job.workers.max}"
    interval = "by Young and Daly's formula"
    if job.checkpoint.every_steps:
        interval = f"every {job.checkpoint.every_steps} steps"
    elif job.checkpoint.every_seconds:
        interval = f"every {job.checkpoint.every_seconds:g} s"
    return [
        ("model", f"{job.model.preset or job.model.path or 'inline config'}, {job.model.dtype}"),
        ("starts from", job.init_from.path or "random weights"),
        ("data", data),
        ("batch", f"{job.batch.sequences} sequences, {count(per_step)} tokens, {job.batch.lanes} lanes"),
        ("workers", f"{workers}, {job.workers.cpus:g} CPUs each, ZeRO stage {job.zero.stage}"),
        ("tokens", f"{count(per_step * job.train.steps)} in {job.train.steps:,} steps"),
        ("checkpoints", f"{interval}, {job.checkpoint.keep} kept"),
        ("output", _progress(job)),
        *([("not checked", "; ".join(unchecked))] if unchecked else []),
    ]


def _data(job: Job) -> tuple[bool, int, str]:
    """Whether all data can be read, tokens per sequence, and the shards in words.

    Where there are none yet, what prepare would make; shards that training refuses are refused.
    """
    tokens, length = 0, job.prepare.sequence_length
    for source in job.mixture:
        place = StoragePath(source.path, job.object_store.connection())
        try:
            if not (place / MANIFEST_NAME).exists():
                return False, length, f"cannot be read: no prepared data in {place.url}; `raylm prepare` makes it"
            manifest = read_manifest(place)
        except StorageError as error:
            return False, length, f"cannot be read: {error.message}"
        tokens += manifest.train_tokens
        length = manifest.sequence_length
    where = ", ".join(source.path for source in job.mixture)
    epochs = job.train.steps * job.batch.sequences * length / max(1, tokens)
    return True, length, f"{where}: {count(tokens)} tokens, so {epochs:.2g} epochs"


def _raw_rows(job: Job) -> Rows:
    """The sources' files and units, and a guess at their tokens, from their bytes."""
    from raylm.config.prepare.sources import SOURCES
    from raylm.prep.units import ranges_of, units_of

    settings, connection = job.prepare, job.object_store.connection()
    if any(SOURCES.get(source.kind).collect is not None for source in settings.sources):
        return [("tokens", "known when the documentation has been collected")]
    try:
        files = [(source, SOURCES.get(source.kind).files(source, connection)) for source in settings.sources]
    except DataError as error:
        return [("units", f"none yet: {error.message}")]
    ranges = (part for source, found in files for part in ranges_of(source, found, settings.unit_bytes))
    units = units_of(ranges, settings.unit_bytes)
    total = sum(file_bytes for _, found in files for _, file_bytes in found)
    return [
        ("units", f"{len(units):,}, of {sum(len(found) for _, found in files):,} files with {size(total)}"),
        # English takes between 3 and 4.5 bytes per token, depending on the vocabulary.
        ("tokens", f"about {count(total / 4)}, at 4 bytes per token; more where files are compressed, fewer in pages"),
    ]


def _state(folder: StoragePath) -> str:
    try:
        done = (folder / MANIFEST_NAME).exists()
    except StorageError as error:
        return f"{folder.url} (cannot be read now: {error.message})"
    return f"{folder.url} (finished already)" if done else folder.url


def _progress(job: Job) -> str:
    from raylm.checkpoint.restore import newest
    from raylm.run.folder import RunFolder

    run = RunFolder.of(job)
    try:
        found = newest(run.checkpoints)
    except StorageError as error:
        return f"{run.url} (cannot be read now: {error.message})"
    return run.url if found is None else f"{run.url} (goes on from step {found.step})"
