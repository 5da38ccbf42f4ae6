"""The only door to storage: URLs come in, bytes, streams, listings and errors for people leave.

A `StoragePath` is a local path or any fsspec URL. What is written is visible whole or not at all, and a transient
failure is tried again. Credentials are never held here.
"""

from raylm.storage.path import Connection, NotFound, StoragePath, find
from raylm.storage.ranges import read_unchanging

__all__ = ["Connection", "NotFound", "StoragePath", "find", "read_unchanging"]
