"""Records from files: JSON lines, JSON, CSV, Parquet, Arrow, text and Hugging Face folders, plain or compressed.

    for row in read_rows(RowFile(StoragePath("s3://bucket/chats.jsonl.zst"), columns=("messages",))):
        use(row.value["messages"])

Every row carries its place in the file. A bad one goes to `RowFile.on_bad`: by default it is an error, a `BadRows`
allows a share of them. Rows, lines and files that are too large are never held in memory.
"""

from raylm.rows.bad import BadRow, BadRows, MissingColumn, OnBadRow, refuse
from raylm.rows.base import Row, RowFile
from raylm.rows.compressed import COMPRESSED, BrokenFile, opened
from raylm.rows.huggingface import split_files
from raylm.rows.read import kind_of, read_glob, read_rows

__all__ = [
    "COMPRESSED",
    "BadRow",
    "BadRows",
    "BrokenFile",
    "MissingColumn",
    "OnBadRow",
    "Row",
    "RowFile",
    "kind_of",
    "opened",
    "read_glob",
    "read_rows",
    "refuse",
    "split_files",
]
