"""What a store's client raises, put in order: what passes by waiting, and the words for what does not.

Clients raise the system's errors, their own, and those of the HTTP library below them. Their messages are not
repeated, since they may quote a request: the status and the service's own code for the error say what happened.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from audiobatch.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.address import Address

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
    for one in _causes(failed):
        status, code = _answer(one)
        if status is not None:
            return status in _PASSING_STATUSES or code in _PASSING_CODES
    return any(isinstance(one, (*_DROPPED, *_clients_own())) for one in _causes(failed))


def is_unknown_there(failed: BaseException) -> bool:
    """Whether the store does not know what it was asked to do."""
    answers = [_answer(one) for one in _causes(failed)]
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
    answers = [answer for one in _causes(failed) if (answer := _answer(one))[0] is not None]
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
    one: BaseException | None = failed
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__


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
    names = {type(one).__name__ for one in _causes(failed)}
    return bool(names & {"ClientAuthenticationError", "CredentialUnavailableError", "NoCredentialsError"})
