"""Where the documents of `raylm prepare` come from: the entries of `prepare.sources`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl, PathPrefix

_CUTS = {"book": ("file", "chapter")}
_TABLES = ("jsonl", "csv", "parquet", "arrow", "huggingface")


class SourceSettings(Settings):
    """One source of raw documents for `raylm prepare`."""

    name: str = Field("text", pattern=r"^[A-Za-z0-9._-]+$", description="Name in the manifest and in mixtures.")
    kind: Literal[
        "text",
        "book",
        "huggingface",
        "jsonl",
        "csv",
        "parquet",
        "arrow",
        "warc",
        "wet",
        "wat",
        "wikipedia",
        "python-docs",
    ] = Field("text", description="How files are read.")
    glob: PathOrUrl | None = Field(
        None, description="Files, on any fsspec URL; for huggingface a folder; not used by python-docs."
    )
    paths: PathOrUrl | None = Field(None, description="In place of a glob: a file that names one file a line.")
    prefix: PathPrefix = Field("", description="For paths: what comes before each line, such as s3://commoncrawl/.")
    split: str = Field("train", description="For huggingface: the split to read.")
    config: str | None = Field(
        None, description="For huggingface: the configuration, where the folder's README.md names several."
    )
    document: Literal["file", "line", "block", "chapter"] = Field(
        "file",
        description="For text: a document is a file, a line, or a block between blank lines; for book: file, chapter.",
    )
    front_matter: bool = Field(
        False, description="For book: keep the cover, title page, copyright, contents, dedication and index as well."
    )
    column: str = Field(
        "text", description="For jsonl, csv, parquet, arrow and huggingface: the column that holds the text."
    )
    meta: list[str] = Field(
        default_factory=list,
        description="For the same kinds: columns to take along for steps, such as url and language.",
    )
    encoding_errors: Literal["stop", "skip"] = Field(
        "stop", description="A document that is not UTF-8 stops the job, or is skipped and counted."
    )
    license: str | None = Field(None, description="Licence of these texts, for the data card.")
    max_documents: int | None = Field(None, gt=0, description="Take at most this many documents.")
    extract: Literal["main", "all"] = Field(
        "main", description="For warc: a page's main content, or all of its text with menus and footers."
    )
    max_bytes: int = Field(
        64_000_000, gt=0, description="A longer record, page, line, block or file is left out, never held in memory."
    )
    max_compression_ratio: float = Field(
        250.0, gt=0, description="A compressed file that unpacks to more bytes than this for each of its own is broken."
    )

    @model_validator(mode="after")
    def _needs_files(self) -> Self:
        if self.kind != "python-docs" and not self.glob and not self.paths:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a glob, or paths")
        if self.glob and self.paths:
            raise ValueError(f"source {self.name!r}: give either glob or paths, not both")
        if self.meta and self.kind not in _TABLES:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} has no columns for meta: {self.meta}")
        if self.document not in _CUTS.get(self.kind, ("file", "line", "block")):
            raise ValueError(
                f"source {self.name!r} of kind {self.kind!r} cannot be cut into document: {self.document!r}"
            )
        if self.kind == "huggingface" and self.paths:
            raise ValueError(f"source {self.name!r} of kind 'huggingface' takes a folder as its glob, not paths")
        if self.prefix and not self.paths:
            raise ValueError(f"source {self.name!r}: prefix goes with paths")
        return self
