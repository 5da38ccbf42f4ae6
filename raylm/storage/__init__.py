"""The only way to storage, local or remote: bytes, streams, listings, and errors for people.

A `StoragePath` is a local path or any fsspec URL. What is written is visible whole or not at all, and a transient
failure is tried again. Credentials are never held here.
"""

from raylm.storage.path import Connection, NotFound, StoragePath, find
from raylm.storage.ranges import read_unchanging
from raylm.storage.retry import retried

__all__ = ["Connection", "NotFound", "StoragePath", "find", "read_unchanging", "retried"]
