"""The clients of Google Cloud Storage and Azure, made to wait and try again as `Connection` says.

Comes in: a `Connection`. Leaves: an fsspec file system. Their own ways are set aside here: gcsfs goes on without
credentials where it finds none and then tries a refused request for a minute, Azure's client rests 15 s before its
second try.
"""

from __future__ import annotations

import asyncio
import logging
import random
import types
import uuid
from typing import Any

from raylm.errors import StorageError
from raylm.storage.connection import Connection
from raylm.storage.errors import TRIED_AGAIN

GOOGLE = ("gs", "gcs")
AZURE = ("az", "abfs", "abfss")
_WRITER = "raylm_writer"  # Azure wants names that C# would take
_MOST_CONNECT_SECONDS = 10.0
_MAX_PAUSE_SECONDS = 10.0
# They print whole tracebacks of what is retried, or is told in an error for people.
_TALKATIVE = ("gcsfs", "azure")


def google(connection: Connection) -> Any:
    """Google Cloud Storage through its JSON interface; hierarchical buckets are used as flat ones."""
    import aiohttp
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import is_retriable

    _quieten()
    files = GCSFileSystem(
        # Without this word it would ask without credentials, and only be refused.
        token="anon" if connection.anonymous else "google_default",
        endpoint_url=connection.endpoint,
        requests_timeout=aiohttp.ClientTimeout(
            total=None,
            sock_connect=min(_MOST_CONNECT_SECONDS, connection.timeout_seconds),
            sock_read=connection.timeout_seconds,
        ),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    once = GCSFileSystem._request.__wrapped__

    async def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        for trial in range(connection.retries + 1):
            try:
                return await once(self, *args, **kwargs)
            except Exception as error:
                if trial == connection.retries:
                    setattr(error, TRIED_AGAIN, True)
                if trial == connection.retries or not is_retriable(error):
                    raise
            await asyncio.sleep(min(_MAX_PAUSE_SECONDS, 0.1 * 2**trial) * (0.5 + random.random()))
        raise AssertionError("unreachable")

    files._request = types.MethodType(request, files)
    return files


def azure(connection: Connection) -> Any:
    """Azure's blobs; account and credentials come from AZURE_STORAGE_… or the identity of the machine."""
    from adlfs import AzureBlobFileSystem
    from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

    _quieten()
    files = AzureBlobFileSystem(anon=connection.anonymous, use_listings_cache=False, skip_instance_cache=True)
    options = {
        "retry_policy": ExponentialRetry(
            initial_backoff=0,
            increment_base=2,
            random_jitter_range=1,
            retry_total=connection.retries,
            retry_connect=connection.retries,
            retry_read=connection.retries,
            retry_status=connection.retries,
        ),
        "connection_timeout": min(_MOST_CONNECT_SECONDS, connection.timeout_seconds),
        "read_timeout": connection.timeout_seconds,
    }
    # adlfs takes no retry policy: its client is replaced by one of the same account.
    if files.connection_string is not None:
        client = BlobServiceClient.from_connection_string(files.connection_string, **options)
    else:
        credential = files.credential or files.account_key
        query = files.sas_token if credential is None and files.sas_token else ""
        client = BlobServiceClient(files.account_url + query, credential=credential, **options)
    files.service_client = client
    return files


def refuse_other_account(files: Any, url: str) -> None:
    """Raise unless container@account names the account that is connected to: adlfs would read the latter's blobs."""
    _, _, host = url.partition("://")[2].partition("/")[0].partition("@")
    account, connected = host.partition(".")[0], files.service_client.account_name
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
        async with files.service_client.get_blob_client(container=container, blob=key) as blob:
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
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
