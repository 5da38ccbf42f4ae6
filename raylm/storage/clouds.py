"""The clients of Google Cloud Storage and Azure, made to wait and try again as `Connection` says.

gcsfs itself goes on without credentials where it finds none and then tries a refused request for a minute, and Azure's
client rests 15 s before its second try.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from raylm.errors import StorageError
from raylm.storage.connection import Connection
from raylm.storage.fsspec_internals import azure_client, replace_azure_client, try_google_again
from raylm.storage.retry import pause_seconds

GOOGLE = ("gs", "gcs")
AZURE = ("az", "abfs", "abfss")
_WRITER = "raylm_writer"  # Azure wants names that C# would take
_MAX_CONNECT_SECONDS = 10.0
# They print whole tracebacks of what is retried, or stands in an error for people.
_NOISY = ("gcsfs", "azure")


def google(connection: Connection) -> Any:
    """Google Cloud Storage through its JSON interface; hierarchical buckets are used as flat ones."""
    import aiohttp
    from gcsfs.core import GCSFileSystem

    _quieten()
    files = GCSFileSystem(
        # Without it, it would ask without credentials, and only be refused.
        token="anon" if connection.anonymous else "google_default",
        endpoint_url=connection.endpoint,
        requests_timeout=aiohttp.ClientTimeout(
            total=None,
            sock_connect=min(_MAX_CONNECT_SECONDS, connection.timeout_seconds),
            sock_read=connection.timeout_seconds,
        ),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    try_google_again(files, connection.retries, pause_seconds)
    return files


def azure(connection: Connection) -> Any:
    """Azure's blobs; account and credentials come from AZURE_STORAGE_… or the identity of the machine."""
    from adlfs import AzureBlobFileSystem
    from azure.storage.blob.aio import ExponentialRetry

    _quieten()
    files = AzureBlobFileSystem(anon=connection.anonymous, use_listings_cache=False, skip_instance_cache=True)
    replace_azure_client(
        files,
        retry_policy=ExponentialRetry(
            initial_backoff=0,
            increment_base=2,
            random_jitter_range=1,
            retry_total=connection.retries,
            retry_connect=connection.retries,
            retry_read=connection.retries,
            retry_status=connection.retries,
        ),
        connection_timeout=min(_MAX_CONNECT_SECONDS, connection.timeout_seconds),
        read_timeout=connection.timeout_seconds,
    )
    return files


def refuse_other_account(files: Any, url: str) -> None:
    """Raise unless container@account names the account that is connected to: adlfs would read the latter's blobs."""
    _, _, host = url.partition("://")[2].partition("/")[0].partition("@")
    account, connected = host.partition(".")[0], azure_client(files).account_name
    if account and connected and account != connected:
        raise StorageError(
            f"{url} names the account {account}, the credentials are of {connected}",
            hint="give that account's credentials, or correct the URL: one process reaches one Azure account",
        )


def create_google(files: Any, url: str, data: bytes) -> bool:
    """Put the object if none is there; False when there is one, unless an earlier try of this very call wrote it."""
    tag = uuid.uuid4().hex
    try:
        files.pipe_file(url, data, mode="create", metadata={_WRITER: tag})
    except FileExistsError:
        return _writer_of(files, url) == tag
    return True


def create_azure(files: Any, url: str, data: bytes) -> bool:
    """As create_google."""
    from azure.core.exceptions import ResourceExistsError
    from fsspec.asyn import sync

    tag = uuid.uuid4().hex
    container, key, _ = files.split_path(url)

    async def put() -> None:
        async with azure_client(files).get_blob_client(container=container, blob=key) as blob:
            await blob.upload_blob(data, overwrite=False, metadata={"is_directory": "false", _WRITER: tag})

    try:
        sync(files.loop, put)
    except ResourceExistsError:
        return _writer_of(files, url) == tag
    return True


def _writer_of(files: Any, url: str) -> str | None:
    files.invalidate_cache(url)
    found: str | None = (files.info(url).get("metadata") or {}).get(_WRITER)
    return found


def _quieten() -> None:
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
