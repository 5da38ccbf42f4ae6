"""What went wrong with storage, in words: exceptions of file systems and object-store clients come in, errors leave.

Client classes are told apart by name and module, so that no client has to be imported (or installed) for it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from raylm.errors import StorageError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
TRIED_AGAIN = "raylm_tried_again"  # set on an exception that was met as often as Connection.retries allows
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs", "fsspec", "s3fs")
_REJECTED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthFailure",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "401",
}
_FORBIDDEN = {
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InsufficientAccountPermissions",
    "PublicAccessNotPermitted",
    "403",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "CredentialUnavailableError",
    "AzureSigningError",  # an account key that is none
}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectionRefusedError",
    "ServiceRequestError",
}
# Failures that the clients below do not try again by themselves: mostly a body that breaks off on the way.
_TRANSIENT = {
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ServerDisconnectedError",
    "ClientOSError",
    "FSTimeoutError",
    "ResponseStreamingError",
    "ConnectionResetError",
    "BrokenPipeError",
    "TimeoutError",
}
_ENDPOINTS = {"azure": "the account's name or connection string"}
_WAYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or an instance role",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's service account",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN, `az login` or a managed identity",
}


_WANTING_ONLY_A_BUCKET = ("write", "create", "write into", "list")


class NotFound(StorageError):
    """Nothing stands at this URL."""


def storage_error(error: Exception, url: str, doing: str) -> StorageError | None:
    """The error for people that says what this exception means; None when it is none of storage's."""
    names = {type(cause).__name__ for cause in _chain(error)}
    codes = set(_codes(error))
    numbers = {cause.errno for cause in _chain(error) if isinstance(cause, OSError)}
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if isinstance(error, ImportError) and protocol in _EXTRAS:
        return StorageError(
            f"cannot {doing} {url}: support for {protocol}:// is not installed",
            hint=f"pip install 'raylm[{_EXTRAS[protocol]}]'",
        )
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return StorageError(
            f"cannot {doing} {url}: unknown kind of storage {protocol}://", hint="try s3://, gs://, az://"
        )
    bad_endpoint = _bad_endpoint(error, names)
    if bad_endpoint:
        return StorageError(
            f"cannot {doing} {url}: {bad_endpoint}",
            hint="object_store.endpoint (--endpoint) is a whole URL, such as http://127.0.0.1:9000",
        )
    if _without_account(error, protocol):
        return StorageError(
            f"cannot {doing} {url}: no credentials were found that name an Azure account",
            hint=_credentials_hint(protocol),
        )
    if not isinstance(error, OSError) and not _from_client(error) and not _is_googles(error, protocol):
        return None
    # Google says no more than that something is missing, and what is written or listed need not be there.
    unsaid = isinstance(error, FileNotFoundError) and protocol in _EXTRAS and doing in _WANTING_ONLY_A_BUCKET
    if unsaid or _NO_BUCKET & codes:
        bucket = "container" if _EXTRAS.get(protocol) == "azure" else "bucket"
        return NotFound(
            f"cannot {doing} {url}: there is no such {bucket}", hint=f"create the {bucket}, or correct its name"
        )
    if _NO_CREDENTIALS & names or ("ClientAuthenticationError" in names and not codes - {""}):
        return StorageError(f"cannot {doing} {url}: no credentials were found", hint=_credentials_hint(protocol))
    if _REJECTED & codes:
        return StorageError(
            f"cannot {doing} {url}: the server rejects the credentials ({', '.join(sorted(_REJECTED & codes))})",
            hint=_credentials_hint(protocol),
        )
    if isinstance(error, PermissionError) or _FORBIDDEN & codes or _is_googles_refusal(error, protocol):
        return StorageError(
            f"cannot {doing} {url}: no permission ({_words(error)})",
            hint="check the folder's owner and mode"
            if protocol == "file"
            else "check the bucket's policy and the keys",
        )
    if isinstance(error, FileNotFoundError):
        return NotFound(f"cannot {doing} {url}: it does not exist")
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        wanted = "a file" if isinstance(error, IsADirectoryError) else "a folder"
        return StorageError(
            f"cannot {doing} {url}: {_words(error)}", hint=f"something else stands where {wanted} is wanted"
        )
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return StorageError(
            f"cannot {doing} {url}: no space left",
            hint="free some space, or point `storage` at another disk or a bucket",
        )
    if errno.EROFS in numbers:
        return StorageError(f"cannot {doing} {url}: the file system is read-only", hint="choose another `storage`")
    if _UNREACHABLE & names:
        where = _ENDPOINTS.get(_EXTRAS.get(protocol, ""), "object_store.endpoint")
        return StorageError(
            f"cannot {doing} {url}: the server cannot be reached ({_words(error)})",
            hint=f"check {where}, the network and that the server runs",
        )
    return StorageError(f"cannot {doing} {url}: {type(error).__name__}: {_words(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help and the client below has not done so already."""
    names = {type(cause).__name__ for cause in _chain(error)}
    if any(getattr(cause, TRIED_AGAIN, False) for cause in _chain(error)):
        return False
    return bool(_TRANSIENT & names) and not _UNREACHABLE & names


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _codes(error: BaseException) -> Iterator[str]:
    for cause in _chain(error):
        response = getattr(cause, "response", None)  # botocore's ClientError
        if isinstance(response, dict):
            yield str(response.get("Error", {}).get("Code", ""))
        said = getattr(cause, "error_code", None)  # Azure's HttpResponseError
        if said is not None:
            yield str(getattr(said, "value", said))
        if getattr(cause, "status_code", None) is not None:
            yield str(cause.status_code)  # type: ignore[attr-defined]
        if type(cause).__name__ == "HttpError":  # gcsfs's
            yield str(getattr(cause, "code", ""))


def _from_client(error: BaseException) -> bool:
    return any(kind.__module__.split(".", 1)[0] in _CLIENTS for cause in _chain(error) for kind in type(cause).__mro__)


def _credentials_hint(protocol: str) -> str:
    way = _WAYS.get(_EXTRAS.get(protocol, ""), "see its documentation")
    return f"give credentials the provider's way ({way}); for a public bucket set object_store.anonymous=true"


def _bad_endpoint(error: Exception, names: set[str]) -> str | None:
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):  # botocore's
        return f"{str(error)[:1].lower()}{str(error)[1:]}"
    return "object_store.endpoint is no URL" if "NonHttpUrlClientError" in names else None


def _without_account(error: Exception, protocol: str) -> bool:
    """Whether adlfs had nothing to connect with, or a connection string that is none."""
    return (
        _EXTRAS.get(protocol) == "azure"
        and isinstance(error, ValueError)
        and any(word in str(error) for word in ("unable to connect to account", "onnection string"))
    )


def _is_googles(error: Exception, protocol: str) -> bool:
    """Whether this is one of the plain exceptions that gcsfs makes of an answer."""
    return _EXTRAS.get(protocol) == "gcs" and isinstance(error, ValueError) and str(error).startswith("Bad Request")


def _is_googles_refusal(error: Exception, protocol: str) -> bool:
    return _EXTRAS.get(protocol) == "gcs" and isinstance(error, OSError) and str(error).startswith("Forbidden")


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Azure's go on with request numbers and times.
    return (str(error).strip(" ,\n") or type(error).__name__).splitlines()[0]
