"""What went wrong with storage, in words: exceptions of file systems and object-store clients become StorageErrors.

Client classes are told apart by name and module, so that no client has to be imported (or installed) for it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass

from raylm.errors import RaylmError, StorageError
from raylm.storage.once import Unreachable, refuse_deaf, remember

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
TRIED_AGAIN = "raylm_tried_again"  # set on an exception that was met as often as Connection.retries allows
_CLIENTS = (
    "botocore",
    "aiobotocore",
    "aiohttp",
    "google",
    "gcsfs",
    "azure",
    "adlfs",
    "fsspec",
    "s3fs",
    "huggingface_hub",
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
)
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
    "HTTPClientError",  # botocore's, of a server that speaks something else
    "ConnectError",  # httpx's, of the Hugging Face hub
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
_ENDPOINTS = {"azure": "the account's name or connection string", "hf": "the name, HF_ENDPOINT"}
_WAYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or an instance role",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's service account",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
    "AZURE_STORAGE_SAS_TOKEN, `az login` or a managed identity",
}
_NEEDING_ONLY_A_BUCKET = ("write", "create", "write into", "list")


class NotFound(StorageError):
    """Nothing stands at this URL."""


@dataclass(frozen=True)
class _Failure:
    """An exception met while `doing` something with a URL, and what its chain of causes says."""

    error: Exception
    url: str
    doing: str
    names: frozenset[str]
    codes: frozenset[str]
    numbers: frozenset[int | None]

    @property
    def protocol(self) -> str:
        return self.url.split("://", 1)[0] if "://" in self.url else "file"

    @property
    def provider(self) -> str | None:
        """s3, gcs or azure."""
        return _EXTRAS.get(self.protocol)

    def says(self, what: str, hint: str | None = None) -> StorageError:
        return StorageError(f"cannot {self.doing} {self.url}: {what}", hint=hint)

    def says_missing(self, what: str, hint: str | None = None) -> NotFound:
        return NotFound(f"cannot {self.doing} {self.url}: {what}", hint=hint)


def storage_error(error: Exception, url: str, doing: str) -> StorageError | None:
    """The error for people that says what this exception means; None when it is none of storage's."""
    failure = _Failure(
        error,
        url,
        doing,
        names=frozenset(type(cause).__name__ for cause in _chain(error)),
        codes=frozenset(_codes(error)),
        numbers=frozenset(cause.errno for cause in _chain(error) if isinstance(cause, OSError)),
    )
    if (found := _wrong_setting(failure)) is not None:
        return found
    if not isinstance(error, OSError) and not _from_client(error) and not _is_googles(failure):
        return None
    for meaning in (_missing_bucket, _refused, _wrong_kind, _disk_trouble, _unreachable):
        if (found := meaning(failure)) is not None:
            return found
    return failure.says(f"{type(error).__name__}: {_words(error)}")


@contextlib.contextmanager
def in_words(url: str, doing: str) -> Iterator[None]:
    """Raise what storage's clients raise in this block as a StorageError, and anything else as it is."""
    refuse_deaf(url, doing)
    try:
        yield
    except RaylmError:
        raise
    except Exception as error:  # every store's client has its own exceptions, without a common root
        translated = storage_error(error, url, doing)
        if translated is None:
            raise
        raise translated from error


def _wrong_setting(failure: _Failure) -> StorageError | None:
    """What no server was asked for: a library, a protocol, an endpoint or an account that is not there."""
    error, protocol = failure.error, failure.protocol
    if isinstance(error, ImportError) and failure.provider:
        return failure.says(f"support for {protocol}:// is not installed", f"pip install 'raylm[{failure.provider}]'")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return failure.says(f"unknown kind of storage {protocol}://", "try s3://, gs://, az://")
    if bad := _bad_endpoint(failure):
        hint = "object_store.endpoint (--endpoint) is a whole URL, such as http://127.0.0.1:9000"
        return failure.says(bad, hint)
    if _without_account(failure):
        return failure.says("no credentials were found that name an Azure account", _credentials_hint(failure))
    return None


def _missing_bucket(failure: _Failure) -> StorageError | None:
    # Google says no more than that something is missing, and what is written or listed need not be there.
    missing = isinstance(failure.error, FileNotFoundError) and failure.provider is not None
    if (missing and failure.doing in _NEEDING_ONLY_A_BUCKET) or _NO_BUCKET & failure.codes:
        bucket = "container" if failure.provider == "azure" else "bucket"
        return failure.says_missing(f"there is no such {bucket}", f"create the {bucket}, or correct its name")
    return None


def _refused(failure: _Failure) -> StorageError | None:
    """No credentials, credentials that are rejected, or some that do not suffice."""
    codes = failure.codes
    nobody = "ClientAuthenticationError" in failure.names and not codes - {""}
    if _NO_CREDENTIALS & failure.names or nobody:
        return failure.says("no credentials were found", _credentials_hint(failure))
    if _REJECTED & codes:
        rejected = ", ".join(sorted(_REJECTED & codes))
        return failure.says(f"the server rejects the credentials ({rejected})", _credentials_hint(failure))
    if isinstance(failure.error, PermissionError) or _FORBIDDEN & codes or _is_googles_refusal(failure):
        on_disk = failure.protocol == "file"
        hint = "check the folder's owner and mode" if on_disk else "check the bucket's policy and the keys"
        return failure.says(f"no permission ({_words(failure.error)})", hint)
    return None


def _wrong_kind(failure: _Failure) -> StorageError | None:
    """Nothing is there, or a file where a folder is wanted, or the other way round."""
    error = failure.error
    if isinstance(error, FileNotFoundError):
        return failure.says_missing("it does not exist")
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        wanted = "a file" if isinstance(error, IsADirectoryError) else "a folder"
        return failure.says(_words(error), f"something else stands where {wanted} is wanted")
    return None


def _disk_trouble(failure: _Failure) -> StorageError | None:
    if failure.numbers & {errno.ENOSPC, errno.EDQUOT}:
        return failure.says("no space left", "free some space, or point `storage` at another disk or a bucket")
    if errno.EROFS in failure.numbers:
        return failure.says("the file system is read-only", "choose another `storage`")
    return None


def _unreachable(failure: _Failure) -> StorageError | None:
    if not _UNREACHABLE & failure.names:
        return None
    setting = _ENDPOINTS.get(failure.provider or failure.protocol, "object_store.endpoint (--endpoint)")
    hint = f"check {setting}, the network and that the server runs"
    what = f"the server cannot be reached ({_words(failure.error)})"
    remember(failure.url, what)
    return Unreachable(f"cannot {failure.doing} {failure.url}: {what}", hint=hint)


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
        code = getattr(cause, "error_code", None)  # Azure's HttpResponseError
        if code is not None:
            yield str(getattr(code, "value", code))
        if getattr(cause, "status_code", None) is not None:
            yield str(cause.status_code)  # type: ignore[attr-defined]
        if type(cause).__name__ == "HttpError":  # gcsfs's
            yield str(getattr(cause, "code", ""))


def _from_client(error: BaseException) -> bool:
    return any(kind.__module__.split(".", 1)[0] in _CLIENTS for cause in _chain(error) for kind in type(cause).__mro__)


def _credentials_hint(failure: _Failure) -> str:
    way = _WAYS.get(failure.provider or "", "see its documentation")
    return f"give credentials the provider's way ({way}); for a public bucket set object_store.anonymous=true"


def _bad_endpoint(failure: _Failure) -> str | None:
    words = str(failure.error)
    if isinstance(failure.error, ValueError) and "Invalid endpoint" in words:  # botocore's
        return f"{words[:1].lower()}{words[1:]}"
    return "object_store.endpoint is no URL" if "NonHttpUrlClientError" in failure.names else None


def _without_account(failure: _Failure) -> bool:
    """Whether adlfs had nothing to connect with, or a connection string that is none."""
    return (
        failure.provider == "azure"
        and isinstance(failure.error, ValueError)
        and any(words in str(failure.error) for words in ("unable to connect to account", "onnection string"))
    )


def _is_googles(failure: _Failure) -> bool:
    """Whether this is one of the plain exceptions that gcsfs makes of an answer."""
    error = failure.error
    return failure.provider == "gcs" and isinstance(error, ValueError) and str(error).startswith("Bad Request")


def _is_googles_refusal(failure: _Failure) -> bool:
    error = failure.error
    return failure.provider == "gcs" and isinstance(error, OSError) and str(error).startswith("Forbidden")


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Azure's go on with request numbers and times.
    return (str(error).strip(" ,\n") or type(error).__name__).splitlines()[0]
