"""Where the documents of `raylm prepare` come from: the entries of `prepare.sources`.

Each kind of source is one file below raylm/prep/readers, with its settings beside the code that reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raylm.config.paths import PathOrUrl, PathPrefix
from raylm.config.unions import SettingsByKind
from raylm.registry import Registry

if TYPE_CHECKING:
    from raylm.prep.readers.kind import SourceKind

SOURCES: Registry[SourceKind[Any]] = Registry(
    "kind of source",
    builtin={
        "text": "raylm.prep.readers.text:SOURCE",
        "jsonl": "raylm.prep.readers.jsonl:SOURCE",
        "csv": "raylm.prep.readers.csv_files:SOURCE",
        "parquet": "raylm.prep.readers.parquet:SOURCE",
        "arrow": "raylm.prep.readers.arrow:SOURCE",
        "huggingface": "raylm.prep.readers.huggingface:SOURCE",
        "book": "raylm.prep.readers.books.books:SOURCE",
        "warc": "raylm.prep.readers.warc:SOURCE",
        "wet": "raylm.prep.readers.wet:SOURCE",
        "wat": "raylm.prep.readers.wat:SOURCE",
        "wikipedia": "raylm.prep.readers.wikipedia:SOURCE",
        "python-docs": "raylm.prep.readers.python_docs:SOURCE",
    },
)


class SourceSettings(SettingsByKind):
    """One source of raw documents for `raylm prepare`: what all kinds share."""

    table: ClassVar[Registry[Any]] = SOURCES
    default_kind: ClassVar[str] = "text"

    name: str = Field("text", pattern=r"^[A-Za-z0-9._-]+$", description="Name in the manifest and in mixtures.")
    kind: str = Field("text", description="How files are read.")
    encoding_errors: Literal["stop", "skip"] = Field(
        "stop", description="A document that is not UTF-8 stops the job, or is skipped and counted."
    )
    license: str | None = Field(None, description="License of these texts, for the data card.")
    max_documents: int | None = Field(None, gt=0, description="Take at most this many documents.")
    max_bytes: int = Field(
        64_000_000, gt=0, description="A longer record, page, line, block or file is skipped, never held in memory."
    )
    max_compression_ratio: float = Field(
        250.0, gt=0, description="A compressed file that unpacks to more bytes than this for each of its own is broken."
    )

    @property
    def location(self) -> str:
        """Where its documents lie, for people."""
        return self.kind


class FileSourceSettings(SourceSettings):
    """A source that is files."""

    glob: PathOrUrl | None = Field(None, description="Files, on any fsspec URL.")
    paths: PathOrUrl | None = Field(None, description="In place of a glob: a file that names one file a line.")
    prefix: PathPrefix = Field("", description="For paths: what comes before each line, such as s3://commoncrawl/.")

    @property
    def location(self) -> str:
        """The glob, or the list of files."""
        return self.glob or self.paths or self.kind

    @model_validator(mode="after")
    def _needs_files(self) -> Self:
        if not self.glob and not self.paths:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a glob, or paths")
        if self.glob and self.paths:
            raise ValueError(f"source {self.name!r}: give either glob or paths, not both")
        if self.prefix and not self.paths:
            raise ValueError(f"source {self.name!r}: prefix goes with paths")
        return self
