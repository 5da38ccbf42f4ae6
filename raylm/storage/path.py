"""A `StoragePath` is a local path or any fsspec URL, and what it can do is the same everywhere.

What is written is visible whole or not at all; a transient failure is tried again; credentials are never held here.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, TypeVar, cast

from raylm.errors import StorageError
from raylm.storage.connection import Connection
from raylm.storage.errors import NotFound, in_words, is_transient
from raylm.storage.retry import retried

__all__ = ["Connection", "NotFound", "StoragePath", "find"]

T = TypeVar("T")

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class StoragePath:
    """A file or folder on local disk or behind any fsspec URL; picklable, and free of secrets."""

    url: str
    connection: Connection = field(default_factory=Connection)

    def __post_init__(self) -> None:
        # Local paths are made absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "url", _normal(self.url))

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(f"{self.url.rstrip('/')}/{name.strip('/')}", self.connection)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine's file systems."""
        return "://" not in self.url

    def local_path(self) -> Path | None:
        """The path, or None for an object store."""
        return Path(self.url) if self.is_local else None

    def exists(self) -> bool:
        """Whether a file, or a folder with something in it, stands here."""
        return self._attempt("look at", lambda files: files.kind(self.url) is not None)

    def is_file(self) -> bool:
        """Whether a file stands here."""
        return self._attempt("look at", lambda files: files.kind(self.url) == "file")

    def size(self) -> int:
        """Bytes of the file; NotFound when there is none."""
        return self._attempt("read", lambda files: files.size(self.url))

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self._attempt("read", lambda files: files.read(self.url, None, None))

    def read_text(self) -> str:
        """The whole file, as UTF-8."""
        return self.read_bytes().decode()

    def read_range(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; a StorageError when the file ends before."""
        data = self._attempt("read", lambda files: files.read(self.url, start, start + length)) if length else b""
        if len(data) != length:
            raise StorageError(
                f"{self.url} ends early: wanted bytes {start} to {start + length}, {len(data)} of {length} are there",
                hint="the file is truncated or not the one that was written; restore or rewrite it",
            )
        return data

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Put the whole file; a reader sees the old content or the new, never a part."""
        self._attempt("write", lambda files: files.write(self.url, data))

    def write_text(self, text: str) -> None:
        """Put the whole file as UTF-8; see write_bytes."""
        self.write_bytes(text.encode())

    def create_once(self, data: bytes) -> bool:
        """Write the file if nothing stands here; False when something does.

        Of writers that race, exactly one gets True on local disk and on stores with conditional puts (S3, GCS,
        Azure, MinIO, SeaweedFS). A server that ignores the condition leaves a window between looking and writing.
        """
        return self._attempt("create", lambda files: files.create_once(self.url, data))

    @contextlib.contextmanager
    def open_read(self) -> Iterator[BinaryIO]:
        """A seekable binary stream."""
        with in_words(self.url, "read"), _backend(self).open_read(self.url) as stream:
            yield stream

    @contextlib.contextmanager
    def open_write(self) -> Iterator[BinaryIO]:
        """A binary stream whose file becomes visible when the block ends well, and not at all when it raises."""
        with in_words(self.url, "write"), _backend(self).open_write(self.url) as stream:
            yield stream

    def write_parts(self, parts: Iterable[bytes | memoryview]) -> int:
        """Stream parts into one file without joining them in memory; the bytes written."""
        written = 0
        with self.open_write() as stream:
            for part in parts:
                stream.write(part)
                written += len(part) if isinstance(part, bytes) else part.nbytes
        return written

    def list(self) -> Paths:
        """The immediate children, sorted, as they are now; empty when there is no such folder."""
        names = self._attempt("list", lambda files: files.children(self.url))
        return [self / name for name in sorted(names)]

    def glob(self, pattern: str) -> Paths:
        """The files under this folder that match the pattern (`*`, `?`, `[…]`, `**`), sorted."""
        names = self._attempt("list", lambda files: files.matches(self.url, pattern))
        return [self / name for name in sorted(names)]

    def remove(self) -> None:
        """Delete the file or the whole folder; nothing happens when it is not there."""
        self._attempt("remove", lambda files: files.remove(self.url))

    def make_folder(self) -> None:
        """Make the folder and its parents, where there are folders."""
        self._attempt("make the folder", lambda files: files.make_folder(self.url))

    def check_place(self) -> None:
        """Raise a StorageError where no folder can be made here, as far as can be seen without writing or a server."""
        if not self.is_local:
            from raylm.storage.remote import check_protocol

            check_protocol(self.url)
            return
        above = Path(self._attempt("write into", lambda files: files.nearest(self.url)))
        if not above.is_dir():
            raise StorageError(f"{above} is a file, where a folder is wanted", hint="choose another place")

    def check_writable(self, needed_bytes: int = 0) -> None:
        """Raise a StorageError with a hint unless files can be written into this folder now; nothing is left behind."""
        self.check_place()
        quick = StoragePath(self.url, self.connection.quick)
        free = quick._attempt("write into", lambda files: files.free_bytes(self.url))
        if free and free < needed_bytes:  # none at all may mean that nothing can be written here, which the probe tells
            raise StorageError(
                f"no space at {self.url}: {_gib(needed_bytes)} needed, {_gib(free)} free",
                hint="free some space, or point `storage` at another disk or a bucket",
            )
        # A folder that is not there yet stays so: whoever may write above it may make it.
        above = quick._attempt("write into", lambda files: files.nearest(self.url))
        probe = StoragePath(above, quick.connection) / f".raylm-write-check-{uuid.uuid4().hex}"
        probe.write_bytes(b"raylm may write here")
        probe.remove()

    def _attempt(self, doing: str, action: Callable[[Backend], T]) -> T:
        """Do it, and again after a growing pause where the failure looks transient."""

        def once() -> T:
            with in_words(self.url, doing):
                return action(_backend(self))

        return retried(once, errors=StorageError, retries=self.connection.retries, worth=_is_transient)


Paths: TypeAlias = list[StoragePath]  # inside StoragePath, `list` is the method


def find(pattern: str, connection: Connection) -> list[tuple[StoragePath, int]]:
    """The files that a URL with wildcards names, sorted, with their bytes; without wildcards, that one file if any."""
    parts = _normal(pattern).split("/")
    first = next((number for number, part in enumerate(parts) if _WILDCARDS & set(part)), None)
    if first is None:
        path = StoragePath(pattern, connection)
        return [(path, path.size())] if path.is_file() else []
    root = StoragePath("/".join(parts[:first]) or "/", connection)
    found = root._attempt("list", lambda files: files.matches(root.url, "/".join(parts[first:])))
    return [(root / name, size) for name, size in sorted(found.items())]


class Backend(Protocol):
    """What a kind of storage has to do; URLs are normal, errors are the library's own."""

    def kind(self, url: str) -> str | None: ...
    def size(self, url: str) -> int: ...
    def read(self, url: str, start: int | None, stop: int | None) -> bytes: ...
    def write(self, url: str, data: bytes | memoryview) -> None: ...
    def create_once(self, url: str, data: bytes) -> bool: ...
    def open_read(self, url: str) -> contextlib.AbstractContextManager[BinaryIO]: ...
    def open_write(self, url: str) -> contextlib.AbstractContextManager[BinaryIO]: ...
    def children(self, url: str) -> list[str]: ...
    def matches(self, url: str, pattern: str) -> dict[str, int]: ...
    def remove(self, url: str) -> None: ...
    def make_folder(self, url: str) -> None: ...
    def free_bytes(self, url: str) -> int | None: ...
    def nearest(self, url: str) -> str: ...


def _normal(url: str) -> str:
    if url.startswith(("file://", "local://")):
        url = url.split("://", 1)[1]
    if url.startswith("/") and "//" not in url and "/." not in url:
        return url.rstrip("/") or "/"  # the usual case, hundreds of times a second
    if "://" in url:
        return url.rstrip("/") if not url.endswith("://") else url
    try:
        return str(Path(url).expanduser().absolute())
    except RuntimeError as error:
        raise StorageError(f"{url}: this machine has no user {url.split('/')[0]}", hint="write the path out") from error


def _backend(path: StoragePath) -> Backend:
    # Imported late: fsspec is not wanted for local paths.
    if path.is_local:
        from raylm.storage.local import LOCAL

        return LOCAL
    from raylm.storage.remote import remote

    return cast(Backend, remote(path.url, path.connection))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _is_transient(error: Exception) -> bool:
    return error.__cause__ is not None and is_transient(error.__cause__)
