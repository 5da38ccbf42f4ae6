"""What `--dry-run` shows of a job before anything is spent."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from raylm.cli.common import command_line
from raylm.config.job import Job
from raylm.errors import DataError, RaylmError, StorageError
from raylm.humanize import count, size
from raylm.prep.expected import Sizes
from raylm.shards import MANIFEST_NAME, read_manifest
from raylm.storage import StoragePath

Rows = list[tuple[str, str]]
_MARKED_UP = {"warc", "wat", "wikipedia", "book"}  # kinds of sources whose files are by far not text alone


def prepare_rows(job: Job) -> Rows:
    """What `raylm prepare` would read and write; a DataError for what it would stumble over at once."""
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
    """What `raylm train` would train on, with and into; `refuse_missing_data` says whether it could begin."""
    from raylm.model.flops import shape_of
    from raylm.prep.expected import expected_sizes
    from raylm.run.folder import RunFolder
    from raylm.run.identity import identity_of
    from raylm.train.launch.preflight import checked, refuse_other_run, try_job_model

    ready, data = _data(job)
    sizes = expected_sizes(job)
    length = sizes.sequence_length
    if not ready:  # a job without a model, or with none that works
        shape_of(job.model, sizes.vocabulary, length, job.objective.auto_class)
        try_job_model(job, sizes.vocabulary, length)
    run = RunFolder.of(job)
    run.path.check_place()
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
    each = f"{job.workers.cpus:g} CPUs{' and a GPU' if job.workers.gpu else ''}"
    interval = "by Young and Daly's formula"
    if job.checkpoint.every_steps:
        interval = f"every {job.checkpoint.every_steps} steps"
    elif job.checkpoint.every_seconds:
        interval = f"every {job.checkpoint.every_seconds:g} s"
    return [
        ("model", f"{_model_name(job)}{_parameters(job, sizes)}, {job.model.dtype}"),
        ("starts from", _first_state(job)),
        ("data", data),
        *_mixture_rows(job),
        ("batch", f"{job.batch.sequences} sequences, {count(per_step)} tokens, {job.batch.lanes} lanes"),
        ("workers", f"{workers}, {each} each, ZeRO stage {job.zero.stage}"),
        ("tokens", f"{count(per_step * job.train.steps)} in {job.train.steps:,} steps"),
        ("checkpoints", f"{interval}, {job.checkpoint.keep} kept"),
        ("output", _progress(job)),
        *([("not checked", "; ".join(unchecked))] if unchecked else []),
    ]


def _mixture_rows(job: Job) -> Rows:
    """The share of each dataset, and from which steps on it is another; nothing where there is one."""
    if len(job.mixture) < 2:
        return []
    changes = {
        change.step for entry in job.mixture for change in entry.weight_schedule if change.step < job.train.steps
    }
    rows = []
    for number, entry in enumerate(job.mixture):
        shares: list[str] = []
        for step in sorted({0, *changes}):
            share = f"{entry.weight_at(step) / (sum(one.weight_at(step) for one in job.mixture) or 1):.1%}"
            shares.append(f"{share} from step {step:,}" if step else share)
        rows.append(("mixture" if number == 0 else "", f"{entry.path}: {', then '.join(shares)}"))
    return rows


def _model_name(job: Job) -> str:
    config = job.model.config
    inline = config if isinstance(config, str) else f"inline {(config or {}).get('model_type', 'config')}"
    return job.model.preset or job.model.path or inline


def _parameters(job: Job, sizes: Sizes) -> str:
    """How many parameters the model has, as far as its config is there."""
    from raylm.model.flops import shape_of

    try:
        shape = shape_of(job.model, sizes.vocabulary, sizes.sequence_length, job.objective.auto_class)
    except RaylmError:  # of a folder that has gone, whose run goes on with its checkpoint's config
        return ""
    return f", {count(shape.parameters)} parameters"


def _first_state(job: Job) -> str:
    if job.init_from.path is not None:
        return job.init_from.path
    return "random weights" if job.model.path is None else f"the weights in {job.model.path}"


def refuse_missing_data(job: Job, job_file: str, overrides: Sequence[str]) -> None:
    """Raise as training would where there is no prepared data, with what makes it; a store may fail to answer."""
    for source in job.mixture:
        place = StoragePath(source.path, job.object_store.connection())
        with contextlib.suppress(StorageError):
            try:
                read_manifest(place)
            except DataError as error:
                if (place / MANIFEST_NAME).exists():
                    raise
                if not job.model.given:  # said first, as a dry run does: with data it would be refused as well
                    train_rows(job)
                raise DataError(error.message, hint=_what_makes(source.path, job, job_file, overrides)) from error


def _what_makes(data: str, job: Job, job_file: str, overrides: Sequence[str]) -> str:
    """What to do where no prepared data is in a folder that the job trains on: with a command, where one makes it."""
    key, own = "data.mixture" if job.data.mixture else "data.path", data.rstrip("/") == job.shards_url.rstrip("/")
    if own and not job.prepare.sources:
        return f"name prepared data in {key}, or texts in prepare.sources and run `raylm prepare`"
    if own:
        return f"run `{command_line('prepare', job_file, overrides)}` (it goes on where it stopped)"
    if job.data.mixture or not job.prepare.sources:  # of a mixture, each dataset holds texts of its own
        return f"correct {key}, or run `raylm prepare` with the job that makes this dataset"
    command = command_line("prepare", job_file, [*overrides, f"prepare.output={data}"])
    return f"correct {key} (this job prepares {job.shards_url}), or run `{command}`"


def _data(job: Job) -> tuple[bool, str]:
    """Whether all data can be read, and the shards in words; shards that training refuses are refused."""
    tokens, length = 0, 0
    for source in job.mixture:
        place = StoragePath(source.path, job.object_store.connection())
        try:
            if not (place / MANIFEST_NAME).exists():
                return False, f"cannot be read: no prepared data in {place.url}"
            manifest = read_manifest(place)
        except StorageError as error:
            return False, f"cannot be read: {error.message}"
        tokens += manifest.train_tokens
        length = manifest.sequence_length
    where = ", ".join(source.path for source in job.mixture)
    epochs = job.train.steps * job.batch.sequences * length / max(1, tokens)
    return True, f"{where}: {count(tokens)} tokens, so {epochs:.2g} epochs"


def _raw_rows(job: Job) -> Rows:
    """The sources' files and units, and a guess at their tokens, from their bytes."""
    from raylm.prep.first_look import look
    from raylm.prep.prepare import finished_manifest

    try:
        done = finished_manifest(job, StoragePath(job.shards_url, job.object_store.connection()))
        if done is not None:
            return [
                (
                    "tokens",
                    f"{count(done.train_tokens + done.held_out_tokens)}, prepared already: nothing would be done",
                )
            ]
        raw = look(job)
    except StorageError as error:
        return [
            ("not checked", f"whether the sources can be read and the output be written: {error.message}"),
            ("tokens", "not known"),
        ]
    rows = []
    if raw.files:
        rows.append(("units", f"{raw.units:,}, of {raw.files:,} files with {size(raw.stored_bytes)}"))
    if raw.collected:
        return [*rows, ("tokens", "known when the documentation has been collected")]
    packed = f", unpacked about {size(raw.unpacked_bytes)}" if raw.unpacked_bytes != raw.stored_bytes else ""
    fewer = "; fewer, as markup goes" if _MARKED_UP & {source.kind for source in job.prepare.sources} else ""
    # English takes between 3 and 4.5 bytes per token, depending on the vocabulary.
    words = f"about {count(raw.unpacked_bytes / 4)}, at 4 bytes per token{packed}{fewer}"
    return [*rows, ("tokens", words)]


def _state(folder: StoragePath) -> str:
    try:
        done = (folder / MANIFEST_NAME).exists()
    except StorageError as error:
        return f"{folder.url} (cannot be read now: {error.message})"
    return f"{folder.url} (finished already)" if done else folder.url


def _progress(job: Job) -> str:
    from raylm.checkpoint.fallback import newest_readable
    from raylm.run.folder import RunFolder

    run = RunFolder.of(job)
    try:
        found = newest_readable(run.checkpoints).or_raise()
    except StorageError as error:
        return f"{run.url} (cannot be read now: {error.message})"
    if found is None:
        return run.url
    if found.step >= job.train.steps:
        return f"{run.url} (finished at step {found.step}: nothing would be done; raise train.steps to go on)"
    return f"{run.url} (goes on from step {found.step})"
