"""The only door to storage: URLs come in, bytes, streams, listings and errors for people leave.

A `Place` is a local path or any fsspec URL. What is written is visible whole or not at all, and a transient failure is
tried again. Credentials are never held here.
"""

from raylm.storage.path import NotFound, Place, Reach, find
from raylm.storage.ranges import read_unchanging

__all__ = ["NotFound", "Place", "Reach", "find", "read_unchanging"]
