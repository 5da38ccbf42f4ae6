"""What of a preparation can be tried before anything is spent, by the code that runs later."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence

from raylm.config.job import Job
from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.tokenizer import TokenizerFacts, import_tokenizer, load
from raylm.storage import Connection, StoragePath

_FILES = 3  # of a source, that are looked into
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".epub")
_TEXT_PER_COMPRESSED_BYTE = 3.0  # English by gzip; other packers do better, other texts differ


def try_tokenizer(job: Job) -> TokenizerFacts | None:
    """The tokenizer that `prepare.tokenizer.path` names, brought in as a preparation does; None where one is trained.

    DataError or StorageError when a preparation could not bring it in.
    """
    settings = job.prepare.tokenizer
    if settings.path is None:
        return None
    with tempfile.TemporaryDirectory(prefix="raylm-") as folder:
        place = StoragePath(folder)
        import_tokenizer(StoragePath(settings.path, job.object_store.connection()), place, settings)
        return load(place)[1]


def try_source(source: SourceSettings, files: Sequence[tuple[StoragePath, int]], connection: Connection) -> str | None:
    """Read one document of a source's first files; why there was none, in words, or None.

    A setting that its files refuse, such as a column they lack, is the error that a preparation would end with.
    """
    skipped = Skipped()
    looked = files[:_FILES]
    for path, size in looked:
        documents = read_range(source, FileRange(path.url, size), connection, skipped)
        if next(itertools.islice(documents, 1), None) is not None:
            return None
    names = ", ".join(path.url for path, _ in looked)
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in skipped.counts().items())
    return f"no document in {names}" + (f" ({reasons})" if reasons else "")


def text_bytes(files: Sequence[tuple[StoragePath, int]]) -> float:
    """A guess at the bytes of text in these files, from their own and their names."""
    return sum(
        size * (_TEXT_PER_COMPRESSED_BYTE if path.name.lower().endswith(_COMPRESSED) else 1.0) for path, size in files
    )


def refuse_unreadable(reasons: Sequence[str]) -> None:
    """Raise when nothing of any source could be read."""
    if reasons:
        raise DataError("; ".join(reasons), hint="name files that hold text, or correct the source's settings")
