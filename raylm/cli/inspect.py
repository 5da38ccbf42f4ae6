"""`raylm inspect FOLDER`: what a prepared dataset holds."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from raylm.cli.common import as_typed, connection_options, not_a_job, print_rows, typed
from raylm.errors import ConfigError, DataError
from raylm.humanize import count, size

if TYPE_CHECKING:
    from raylm.prep.report.fertility import Counts
    from raylm.prep.report.inspect import DatasetSample
    from raylm.prep.report.totals import SourceCounts
    from raylm.storage import Connection, StoragePath

_SAMPLE_CHARACTERS = 400


def _data(_: click.Context, __: click.Parameter, path: str) -> str:
    return not_a_job(path, wanted=lambda job: job.shards_url, what="a folder of shards")


@click.command()
@click.argument("folder", callback=_data)
@click.option("--samples", type=click.IntRange(0, 100), default=2, show_default=True, help="Documents to decode.")
@connection_options
def inspect(folder: str, samples: int, connection: Connection) -> None:
    """Show the manifest of the shards in FOLDER, document lengths and a few documents.

    FOLDER is local or on any object store, `s3://bucket/data` for example.
    """
    from raylm.prep.report.inspect import inspect_dataset
    from raylm.shards import MANIFEST_NAME
    from raylm.storage import StoragePath

    place = StoragePath(folder, connection)
    try:
        found = inspect_dataset(place, samples)
    except DataError as error:
        if (place / MANIFEST_NAME).exists() or (data := _data_of_run(place)) is None:
            raise
        raise DataError(error.message, hint=f"did you mean {typed(as_typed(data))}?") from error
    print_rows(rows(found))
    for number, text in enumerate(found.samples, 1):
        words = textwrap.shorten(text, _SAMPLE_CHARACTERS, placeholder=" ...")
        click.echo(f"\nsample {number}:\n{textwrap.fill(words, 100, initial_indent='  ', subsequent_indent='  ')}")


def _data_of_run(place: StoragePath) -> str | None:
    """Where the data of the run in this folder stands: in it, or where its settings say."""
    from raylm.config.load import load_job
    from raylm.run.folder import RunFolder
    from raylm.shards import MANIFEST_NAME

    if (place / "data" / MANIFEST_NAME).exists():
        return (place / "data").url
    settings = RunFolder(place).settings
    if not settings.exists() or (file := settings.local_path()) is None:
        return None
    try:
        return load_job(file).mixture[0].path
    except ConfigError:
        return None


def rows(found: DatasetSample) -> list[tuple[str, str]]:
    """The manifest in words, a source a row."""
    from raylm.prep.report.card import step_lines
    from raylm.prep.report.totals import counts_by_source

    manifest = found.manifest
    sources = [
        (
            "source" if index == 0 else "",
            f"{name}: {counts.documents:,} documents, {count(counts.tokens)} tokens{_skipped(counts)}",
        )
        for index, (name, counts) in enumerate(counts_by_source(manifest).items())
    ]
    steps = [("step" if index == 0 else "", words) for index, words in enumerate(step_lines(manifest))]
    quantiles = ", ".join(f"{label} {found.quantile(share):,}" for label, share in _QUANTILES)
    lengths = f"{quantiles} tokens, of {len(found.lengths):,} documents" if found.lengths else "no document is whole"
    stored = sum(shard.bytes for shard in (*manifest.train, *manifest.held_out))
    return [
        *sources,
        *steps,
        ("row", f"{manifest.sequence_length:,} tokens"),
        ("train", f"{manifest.train_rows:,} rows, {count(manifest.train_tokens)} tokens"),
        ("held out", f"{manifest.held_out_rows:,} rows, {count(manifest.held_out_tokens)} tokens"),
        ("lengths", lengths),
        ("shards", f"{len(manifest.train):,} to train on and {len(manifest.held_out):,} held out, {size(stored)}"),
        ("vocabulary", f"{manifest.vocab_size:,}, stored as {manifest.dtype}; end of text is {manifest.eos_id}"),
        ("tokenizer", manifest.tokenizer),
        *_fertility(manifest.fertility),
        ("fingerprint", manifest.fingerprint),
    ]


_QUANTILES = (("shortest", 0.0), ("median", 0.5), ("90 %", 0.9), ("longest", 1.0))


def _fertility(counts: Counts) -> list[tuple[str, str]]:
    """A line a source and language: how finely the tokenizer cuts it."""
    from raylm.prep.report.fertility import by_language

    lines = []
    for source, language, one in by_language(counts):
        words, size, _, partial, unknown = one.ratios
        named = f"{source}, {language}" if language else source
        lines.append(
            f"{named}: {words:.2f} per word, {size:.2f} bytes each, "
            f"{partial:.2%} partial characters, {unknown:.2%} unknown"
        )
    return [("tokens" if index == 0 else "", line) for index, line in enumerate(lines)]


def _skipped(counts: SourceCounts) -> str:
    reasons = [f"{number:,} {reason.replace('_', ' ')}" for reason, number in counts.skipped.items()]
    return f"; skipped: {', '.join(reasons)}" if reasons else ""
