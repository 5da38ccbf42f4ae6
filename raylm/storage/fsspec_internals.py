"""Every reach into fsspec's file systems that their documentation does not promise; tests/test_storage.py checks each.

gcsfs goes on without asking how often to try a request, and adlfs takes no retry policy: both are given ways of ours.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from typing import Any

from raylm.storage.errors import TRIED_AGAIN


def without_protocol(files: Any, url: str) -> str:
    """The URL as this file system's listings name it."""
    return str(files._strip_protocol(url)).rstrip("/")


def try_google_again(files: Any, retries: int, pause_seconds: Callable[[int], float]) -> None:
    """Let a GCSFileSystem try each request `retries` times more, and no oftener; its own count is fixed."""
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import RETRIABLE_EXCEPTIONS, HttpError, is_retriable

    once = GCSFileSystem._request.__wrapped__

    async def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        for trial in range(retries + 1):
            try:
                return await once(self, *args, **kwargs)
            except (HttpError, *RETRIABLE_EXCEPTIONS) as error:
                if trial == retries:
                    setattr(error, TRIED_AGAIN, True)
                if trial == retries or not is_retriable(error):
                    raise
            await asyncio.sleep(pause_seconds(trial))
        raise AssertionError("unreachable")

    files._request = types.MethodType(request, files)


def replace_azure_client(files: Any, **options: Any) -> None:
    """Give an AzureBlobFileSystem a client of the same account that was made with these options."""
    from azure.storage.blob.aio import BlobServiceClient

    if files.connection_string is not None:
        client = BlobServiceClient.from_connection_string(files.connection_string, **options)
    else:
        credential = files.credential or files.account_key
        query = files.sas_token if credential is None and files.sas_token else ""
        client = BlobServiceClient(files.account_url + query, credential=credential, **options)
    files.service_client = client


def azure_client(files: Any) -> Any:
    """The BlobServiceClient of an AzureBlobFileSystem."""
    return files.service_client


def mark_closed(stream: Any) -> None:
    """Keep a buffered file of fsspec's from completing its upload when it is closed or collected."""
    stream.closed = True
