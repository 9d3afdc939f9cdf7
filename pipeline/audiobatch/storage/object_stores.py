"""The stores behind addresses, as fsspec file systems, set up so that one layer alone retries: ours.

az://       extra `azure`; AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and
            DefaultAzureCredential (`az login`, a managed identity, …)
s3://       extra `s3`; botocore's chain (AWS_…, profiles, roles); AWS_ENDPOINT_URL for another service
memory://   lives and ends with the process

Listings come page by page, names in the store's own order (by their UTF-8 bytes), which is the same at every
listing; memory holds one page, however many objects there are. Requests are made again while they fail for a
reason that passes.

One table says which errors pass by waiting, another has the words for those that do not. Clients raise the
system's errors, their own, and those of the HTTP library below them. Their messages are not repeated, since they
may quote a request: the status and the service's own code for the error say what happened.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import logging
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

import aiohttp
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from audiobatch.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tenacity import RetryCallState

    from audiobatch.address import Address

    Call = Callable[[Callable[[], Any]], Any]

CONNECT_TIMEOUT_S: Final = 20
READ_TIMEOUT_S: Final = 60
_EXTRAS: Final = {"az": ("azure", "adlfs"), "s3": ("s3", "s3fs")}


def filesystem_of(address: Address) -> Any:
    """The fsspec file system behind an address; one for all calls of this process.

    Raises:
        ConfigError: the extra for it is not installed, or nothing says which account it is.
    """
    protocol = address.protocol
    if protocol in _EXTRAS:
        extra, module = _EXTRAS[protocol]
        try:
            importlib.import_module(module)
        except ImportError as missing:
            raise ConfigError(
                f"{protocol}:// needs the extra {extra!r}, which is not installed ({missing.name or missing} is "
                f"missing): `pip install 'audiobatch[{extra}]'`, here `uv sync --extra {extra}`"
            ) from None
    import fsspec

    match protocol:
        case "az":
            return _azure(fsspec)
        case "s3":
            return _s3(fsspec)
        case _:
            return fsspec.filesystem(protocol)


def _azure(fsspec: Any) -> Any:
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not connection and not account:
        raise ConfigError(
            "az:// does not say which storage account: set AZURE_STORAGE_ACCOUNT_NAME and sign in with "
            "`az login` (recommended), or set AZURE_STORAGE_CONNECTION_STRING"
        )
    # Named here although adlfs reads them too: fsspec keeps one file system for each set of these.
    named = {"connection_string": connection} if connection else {"account_name": account, "anon": False}
    try:
        filesystem = fsspec.filesystem(
            "az",
            **named,
            use_listings_cache=False,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
        )
    except ValueError:  # its words may quote the connection string
        name = "AZURE_STORAGE_CONNECTION_STRING" if connection else "AZURE_STORAGE_ACCOUNT_NAME"
        raise ConfigError(f"az:// cannot be used: {name} is not as it should be") from None
    # adlfs has no way to say it: the client waits 15 s before its first retry, and does not retry a 429.
    policy = getattr(getattr(filesystem.service_client, "_config", None), "retry_policy", None)
    if policy is not None:
        policy.total_retries = 0
    return filesystem


def _s3(fsspec: Any) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
        },
    )
    filesystem.retries = 1
    return filesystem


PAGE_OBJECTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object.

    Attributes:
        path: relative to the prefix that was listed.
        version: changes whenever the object does; see `version_of`.
    """

    path: str
    size_bytes: int
    version: int


def listed(filesystem: Any, prefix: Address, call: Call) -> Iterator[Entry]:
    """Yield every object below a prefix, not the prefix itself.

    Args:
        filesystem: of `filesystem_of`.
        prefix: a container or bucket, or a folder in it.
        call: makes one request, again where it failed for a reason that passes.
    """
    start = prefix.path + "/"
    match prefix.protocol:
        case "az":
            pages = _azure_pages(filesystem, start, call)
        case "s3":
            pages = _s3_pages(filesystem, start, call)
        case _:
            found = call(lambda: filesystem.find(prefix.path, detail=True))
            pages = iter([[{**info, "name": str(name).lstrip("/")} for name, info in sorted(found.items())]])
    for page in pages:
        for info in page:
            path = info["name"].removeprefix(start)
            # Some programs write an empty object for a folder.
            if path and not path.endswith("/"):
                yield Entry(path=path, size_bytes=int(info["size"] or 0), version=version_of(info))


def version_of(info: Mapping[str, Any]) -> int:
    """A number that changes whenever the object does, made from its etag; from its time where it has none.

    A time alone would not do: stores give it in seconds, and an object can change twice within one.
    """
    tag = info.get("ETag") or info.get("etag")
    if not tag:
        made = info.get("created") or info.get("mtime") or 0
        tag = str(made.timestamp() if isinstance(made, datetime) else made)
    # 60 bits: it is kept where times in nanoseconds are.
    return int(hashlib.sha256(str(tag).strip('"').encode()).hexdigest()[:15], 16)


def _azure_pages(filesystem: Any, prefix: str, call: Call) -> Iterator[list[dict[str, Any]]]:
    from fsspec.asyn import sync

    container, _, start = prefix.partition("/")
    token: str | None = None

    async def page() -> tuple[list[dict[str, Any]], str | None]:
        async with filesystem.service_client.get_container_client(container) as client:
            pages = client.list_blobs(
                name_starts_with=start, include=["metadata"], results_per_page=PAGE_OBJECTS
            ).by_page(token)
            async for blobs in pages:
                found = [
                    {"name": f"{container}/{blob.name}", "size": blob.size, "etag": blob.etag}
                    async for blob in blobs
                    if not _is_folder_mark(blob.metadata)
                ]
                return found, pages.continuation_token
        return [], None

    while True:
        infos, token = call(lambda: sync(filesystem.loop, page))
        yield infos
        if not token:
            return


def _is_folder_mark(metadata: Mapping[str, str] | None) -> bool:
    """A folder of an account with a hierarchical namespace, which is listed like a blob."""
    return any(
        name.lower() in {"hdi_isfolder", "is_directory"} and value == "true"
        for name, value in (metadata or {}).items()
    )


def _s3_pages(filesystem: Any, prefix: str, call: Call) -> Iterator[list[dict[str, Any]]]:
    bucket, _, start = prefix.partition("/")
    more: dict[str, str] = {}

    def page() -> Any:
        return filesystem.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=start, MaxKeys=PAGE_OBJECTS, **more
        )

    while True:
        answer = call(page)
        yield [
            {"name": f"{bucket}/{entry['Key']}", "size": entry["Size"], "ETag": entry["ETag"]}
            for entry in answer.get("Contents", ())
        ]
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


log = logging.getLogger(__name__)
_T = TypeVar("_T")
#: How long a store may be away or too busy before it counts as failed.
PATIENCE_S = 120.0
#: A store that never answered is rather a wrong name or address.
FIRST_PATIENCE_S = 15.0
#: File systems whose store has said anything in this process.
_ANSWERED: WeakSet[Any] = WeakSet()


class RetryingFilesystem:
    """Asks one file system's store. For any thread."""

    def __init__(self, filesystem: Any, patience_s: float | None = None) -> None:
        self._filesystem = filesystem
        self._patience_s = PATIENCE_S if patience_s is None else patience_s

    def __call__(self, call: Callable[[], _T]) -> _T:
        """What `call` returns, or raises for good. It must be one that may be made twice."""
        known = self._filesystem in _ANSWERED
        for attempt in Retrying(
            retry=retry_if_exception(is_passing),
            stop=stop_after_delay(self._patience_s if known else min(self._patience_s, FIRST_PATIENCE_S)),
            wait=wait_random_exponential(multiplier=0.2, max=15),
            before_sleep=_say,
            reraise=True,
        ):
            with attempt:
                return self._once(call)
        raise AssertionError  # the last attempt returned or raised

    def _once(self, call: Callable[[], _T]) -> _T:
        try:
            answer = call()
        except Exception as failed:
            if not is_passing(failed):
                _ANSWERED.add(self._filesystem)
            raise
        _ANSWERED.add(self._filesystem)
        return answer


def _say(state: RetryCallState) -> None:
    failed = state.outcome.exception() if state.outcome else None
    log.info("the store did not answer as it should (%s); once more", type(failed).__name__)


#: Statuses of a store that is busy, restarting, or cut off on the way.
#: Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes,
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (2026-11).
_PASSING_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
#: Codes that say so under another status; the last: two puts with a condition met on one key.
_PASSING_CODES: Final = frozenset(
    {"RequestTimeout", "SlowDown", "ServerBusy", "OperationAborted", "ConditionalRequestConflict"}
)
_AGAIN: Final = "then run the same command again: nothing that is recorded is lost or bought twice."


def is_passing(failed: BaseException) -> bool:
    """Whether the same request may well be answered in a moment: throttled, cut off, timed out."""
    for cause in _causes(failed):
        status, code = _answer(cause)
        if status is not None:
            return status in _PASSING_STATUSES or code in _PASSING_CODES
    return any(isinstance(cause, (*_DROPPED, *_clients_own())) for cause in _causes(failed))


def is_unknown_there(failed: BaseException) -> bool:
    """Whether the store does not know what it was asked to do."""
    answers = [_answer(cause) for cause in _causes(failed)]
    return any(status == 501 or code == "NotImplemented" for status, code in answers)


_DROPPED: Final = (ConnectionError, TimeoutError, aiohttp.ClientError)


def _clients_own() -> tuple[type[BaseException], ...]:
    """The clients' errors for connections that break; only of clients that are loaded."""
    found: list[type[BaseException]] = []
    if "azure.core" in sys.modules:
        from azure.core.exceptions import IncompleteReadError, ServiceRequestError, ServiceResponseError

        found += [ServiceRequestError, ServiceResponseError, IncompleteReadError]
    if "botocore" in sys.modules:
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        # Its own ConnectionError is no HTTPClientError, and not the system's.
        found += [exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.ResponseStreamingError]
        found += [ResponseParserError]
    return tuple(found)


def store_error(failed: BaseException, where: Address, *, verb: str = "write") -> StorageError:
    """What happened, to which object, and what to do."""
    return StorageError(f"cannot {verb} {where}: {_words(failed, where)}")


def _words(failed: BaseException, where: Address) -> str:
    answers = [answer for cause in _causes(failed) if (answer := _answer(cause))[0] is not None]
    status, code = answers[-1] if answers else (None, "")
    said = " ".join(part for part in (str(status) if status else "", code) if part)
    if code in {"NoSuchBucket", "ContainerNotFound"}:
        container = where.path.partition("/")[0]
        return f"there is no container or bucket {container!r}. Create it, or name another, {_AGAIN}"
    if status in {401, 403} or isinstance(failed, PermissionError) or _no_credential(failed):
        return (
            f"the store does not accept the credentials{f' ({said})' if said else ''}. Sign in, or see that they "
            f"may read and write there, {_AGAIN}"
        )
    if status == 404 or isinstance(failed, FileNotFoundError):
        return "it is not there"
    if is_passing(failed):
        why = said or type(failed).__name__
        return f"the store did not answer as it should, again and again ({why}). Wait or mend that, {_AGAIN}"
    if isinstance(failed, OSError) and failed.errno == errno.ENAMETOOLONG:
        return "its name is too long for the store"
    return (
        f"the store refused ({said or type(failed).__name__}). Mend that, or name another --output, {_AGAIN}"
    )


def _causes(failed: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: list[BaseException] = []
    cause: BaseException | None = failed
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__


def _answer(failed: BaseException) -> tuple[int | None, str]:
    """The HTTP status and the service's code for the error, where a client's error has them."""
    response: Any = getattr(failed, "response", None)
    if isinstance(response, dict):  # botocore's
        error = response.get("Error", {})
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return (status if isinstance(status, int) else None), str(error.get("Code", ""))
    status = getattr(failed, "status_code", None)
    code = getattr(failed, "error_code", None)
    return (status if isinstance(status, int) else None), str(getattr(code, "value", code) or "")


def _no_credential(failed: BaseException) -> bool:
    names = {type(cause).__name__ for cause in _causes(failed)}
    return bool(names & {"ClientAuthenticationError", "CredentialUnavailableError", "NoCredentialsError"})
