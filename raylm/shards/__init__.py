"""Shards of tokenized rows and the manifest that makes them a data set; writer and reader side by side.

Comes in: rows of tokens from preparation. Leaves: rows by number, for whoever asks. A shard is a Parquet file with
three columns, `tokens` (fixed_size_binary of sequence_length items), `document_starts` (list<int32>) and `length`
(int32: tokens before the padding), in row groups of `group_rows`. A folder counts once its manifest.json is there.
"""

from raylm.shards.manifest import (
    GROUP_ROWS,
    MANIFEST_NAME,
    TOKENIZER_FOLDER,
    DatasetManifest,
    Shard,
    fingerprint,
    make_manifest,
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
    "DatasetManifest",
    "Rows",
    "Shard",
    "ShardWriter",
    "check_shards",
    "fingerprint",
    "make_manifest",
    "parse_manifest",
    "read_manifest",
    "read_rows",
    "token_dtype",
    "write_manifest",
]
