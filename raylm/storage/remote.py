"""Storage behind fsspec: S3 and its relatives, Google Cloud Storage, Azure, and whatever else has a URL."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from raylm.errors import StorageError
from raylm.storage.clouds import AZURE, GOOGLE, azure, create_azure, create_google, google, refuse_other_account
from raylm.storage.connection import Connection
from raylm.storage.errors import in_words, storage_error
from raylm.storage.fsspec_internals import mark_closed, without_protocol
from raylm.storage.multipart import MultipartUpload

log = logging.getLogger(__name__)

_S3 = ("s3", "s3a")
_OBJECT_STORES = (*_S3, *GOOGLE, *AZURE)
_PART_BYTES = 32 * 2**20  # of a multipart upload; 10,000 parts allow objects of 312 GiB


class RemoteFiles:
    """One fsspec file system, as one process reaches it with one set of options."""

    def __init__(self, protocol: str, connection: Connection) -> None:
        self.protocol = protocol
        self.files: Any = _opened(protocol, connection)
        if protocol in _S3:
            # Requests are tried again by botocore; this count is only for bodies that break off inside streams.
            self.files.retries = 2

    def kind(self, url: str) -> str | None:
        """'file', 'folder', or None when nothing is there."""
        self._forget(url)
        try:
            return "file" if self.files.info(url)["type"] == "file" else "folder"
        except FileNotFoundError:
            return None

    def size(self, url: str) -> int:
        """Bytes of the object."""
        self._forget(url)
        return int(self.files.info(url)["size"])

    def read(self, url: str, start: int | None, stop: int | None) -> bytes:
        """The bytes from start to stop, fewer where the object ends."""
        return bytes(self.files.cat_file(url, start=start, end=stop))

    def write(self, url: str, data: bytes | memoryview) -> None:
        """Put the whole object."""
        if self.protocol in _OBJECT_STORES:
            self.files.pipe_file(url, bytes(data))
        else:
            with self._renamed(url) as stream:
                stream.write(data)

    def create_once(self, url: str, data: bytes) -> bool:
        """Put the object unless one is there."""
        if self.kind(url) is not None:
            return False
        if self.protocol in _S3:
            return self._create_once_s3(url, data)
        if self.protocol in GOOGLE:
            return create_google(self.files, url, data)
        if self.protocol in AZURE:
            return create_azure(self.files, url, data)
        try:
            self.files.pipe_file(url, data, mode="create")
        except FileExistsError:
            return False
        return True

    def _create_once_s3(self, url: str, data: bytes) -> bool:
        bucket, key, _ = self.files.split_path(url)
        # A put whose answer was lost is tried again below and then meets itself: the tag tells it from another's.
        tag = uuid.uuid4().hex
        put = {"Bucket": bucket, "Key": key, "Body": data, "Metadata": {"raylm-writer": tag}}
        try:
            self.files.call_s3("put_object", IfNoneMatch="*", **put)
        except FileExistsError:
            return self._writer_of(bucket, key) == tag
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return self._writer_of(bucket, key) == tag
            if code not in ("NotImplemented", "501"):
                raise
            self.files.call_s3("put_object", **put)  # a server without conditional puts
        return True

    def _writer_of(self, bucket: str, key: str) -> str | None:
        head = self.files.call_s3("head_object", Bucket=bucket, Key=key)
        return cast("str | None", head.get("Metadata", {}).get("raylm-writer"))

    @contextlib.contextmanager
    def open_read(self, url: str) -> Iterator[BinaryIO]:
        """A seekable stream that reads ahead."""
        self._forget(url)
        with self.files.open(url, "rb") as stream:
            yield stream

    @contextlib.contextmanager
    def open_write(self, url: str) -> Iterator[BinaryIO]:
        """A stream into an upload that is completed at the end of the block, and given up when it raises."""
        if self.protocol not in _OBJECT_STORES:
            with self._renamed(url) as stream:
                yield stream
            return
        stream = self._upload(url)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(_give_up, stream, url)
            yield stream
            stream.close()
            on_failure.pop_all()

    def _upload(self, url: str) -> Any:
        if self.protocol in _S3:
            bucket, key, _ = self.files.split_path(url)
            return MultipartUpload(self.files.call_s3, bucket, key, part_bytes=_PART_BYTES)
        return self.files.open(url, "wb", block_size=_PART_BYTES)

    @contextlib.contextmanager
    def _renamed(self, url: str) -> Iterator[BinaryIO]:
        folder, name = url.rsplit("/", 1)
        written = f"{folder}/.raylm-writing-{uuid.uuid4().hex}-{name}"
        self.files.makedirs(folder, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._remove_if_there, written)
            with self.files.open(written, "wb") as stream:
                yield stream
            self.files.mv(written, url)
            on_failure.pop_all()

    def _remove_if_there(self, url: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm(url)

    def children(self, url: str) -> list[str]:
        """Names directly under the URL."""
        self._forget(url)
        try:
            entries = self.files.ls(url, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        root = without_protocol(self.files, url)
        names = {str(entry["name"]).rstrip("/") for entry in entries}
        return [name.rsplit("/", 1)[-1] for name in names if name != root]

    def matches(self, url: str, pattern: str) -> dict[str, int]:
        """Files under the URL that match, relative to it, with their bytes."""
        self._forget(url)
        root = without_protocol(self.files, url)
        found = self.files.glob(f"{root}/{pattern}", detail=True)
        return {
            str(name)[len(root) + 1 :]: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"
        }

    def remove(self, url: str) -> None:
        """Delete the object, or all objects under the prefix, if any."""
        if self.kind(url) is not None:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm(url, recursive=True)

    def make_folder(self, url: str) -> None:
        """Nothing on object stores, where folders are only parts of names; a folder elsewhere."""
        if self.protocol not in _OBJECT_STORES:
            self.files.makedirs(url, exist_ok=True)

    def free_bytes(self, url: str) -> int | None:
        """Unknown."""
        return None

    def nearest(self, url: str) -> str:
        """The folder itself: object stores have none to make."""
        return url

    def _forget(self, url: str) -> None:
        # Listings of other processes' writes must be seen; not every file system can turn its cache off.
        self.files.invalidate_cache(url)


def check_protocol(url: str) -> None:
    """Raise a StorageError for a kind of storage that does not exist, or whose library is not installed."""
    import fsspec

    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise storage_error(error, url, "write into") or error from error


def _give_up(stream: Any, url: str) -> None:
    # fsspec completes the upload when a stream is closed or collected: a part would stand there as the whole.
    if stream.closed:
        return
    try:
        with in_words(url, "discard what was written of"):
            stream.discard()
    except StorageError as error:
        log.warning("%s; what was sent stays there until the bucket's lifecycle rule removes it", error)
    if not stream.closed:
        mark_closed(stream)


def remote(url: str, connection: Connection) -> RemoteFiles:
    """The file system of this URL."""
    protocol = url.split("://", 1)[0]
    if protocol not in _OBJECT_STORES:
        return RemoteFiles(protocol, connection)
    shared = _shared(protocol, connection, os.getpid())
    if protocol in AZURE and "@" in url:
        refuse_other_account(shared.files, url)
    return shared


@functools.lru_cache(maxsize=32)
def _shared(protocol: str, connection: Connection, process: int) -> RemoteFiles:
    # fsspec keeps one a thread, each with connections of its own, and connecting to S3 takes 0.1 to 0.3 s. These
    # clients do all their work on fsspec's one event loop, so threads may share them; forked processes may not.
    return RemoteFiles(protocol, connection)


def _opened(protocol: str, connection: Connection) -> Any:
    import fsspec

    if protocol in GOOGLE:
        return google(connection)
    if protocol in AZURE:
        return azure(connection)
    return fsspec.filesystem(protocol, **(_s3_options(connection) if protocol in _S3 else {}))


def _s3_options(connection: Connection) -> dict[str, Any]:
    config: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": connection.retries + 1},
        "connect_timeout": min(10.0, connection.timeout_seconds),
        "read_timeout": connection.timeout_seconds,
        # Servers that are not Amazon's often lack the newer checksums.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "max_pool_connections": 32,
    }
    if connection.endpoint:
        config["s3"] = {"addressing_style": "path"}
    return {
        "anon": connection.anonymous,
        "endpoint_url": connection.endpoint,
        "client_kwargs": {"region_name": connection.region} if connection.region else {},
        "config_kwargs": config,
        "use_listings_cache": False,
    }
