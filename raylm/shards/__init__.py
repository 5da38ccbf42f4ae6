"""Shards of tokenized rows and the manifest that makes them a dataset; writer and reader side by side.

A shard is a Parquet file with the columns `tokens` (fixed_size_binary of sequence_length items), `document_starts`
(list<int32>) and `length` (int32: tokens before the padding), and then a fixed_size_binary for each of the dataset's
optional columns, in row groups of `group_rows`. A folder counts once its manifest.json is there.
"""

from raylm.shards.columns import Column, WantedColumn
from raylm.shards.manifest import (
    GROUP_ROWS,
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    Counts,
    DatasetManifest,
    Origin,
    RowFormat,
    Shard,
    fingerprint,
    parse_manifest,
    read_manifest,
    token_dtype,
    write_manifest,
)
from raylm.shards.reader import Rows, check_shards, read_rows
from raylm.shards.writer import ShardWriter

__all__ = [
    "GROUP_ROWS",
    "MANIFEST_NAME",
    "TOKENIZER_FOLDER",
    "Column",
    "Counts",
    "DatasetManifest",
    "Origin",
    "RowFormat",
    "Rows",
    "Shard",
    "ShardWriter",
    "WantedColumn",
    "check_shards",
    "fingerprint",
    "parse_manifest",
    "read_manifest",
    "read_rows",
    "token_dtype",
    "write_manifest",
]
