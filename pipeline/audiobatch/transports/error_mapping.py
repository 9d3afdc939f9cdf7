"""The SDK's errors and the service's words → our errors. One table; a test sees that nothing is missing.

What the service says is kept as it was said. Retry decisions go by our classes, so all reading of status codes
and error codes happens here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import openai

from audiobatch.errors import (
    AudioBatchError,
    AudioIdGone,
    AuthenticationFailed,
    ContentFiltered,
    CreditExhausted,
    DeploymentGone,
    Disconnected,
    OutcomeUnknown,
    PermissionMissing,
    RateLimited,
    RequestRejected,
    ServiceError,
    Unavailable,
)
from audiobatch.transports.rate_limit_headers import limits_in, retry_after_s

if TYPE_CHECKING:
    from collections.abc import Mapping

#: 429s that no waiting cures. Source: developers.openai.com/api/docs/guides/error-codes (2026-11).
NO_CREDIT = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
#: Raised before a byte of the request was sent.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
_SERVER_TROUBLE = 500


def translate(error: Exception) -> AudioBatchError:
    """Our error for one of the SDK's or of its HTTP client's."""
    match error:
        case AudioBatchError():
            return error
        case openai.APIStatusError():
            return _of_status(error)
        case openai.APIConnectionError():
            return _of_connection(error.__cause__ or error)
        case httpx2.HTTPError():
            return _of_connection(error)
        case openai.APIError():
            return OutcomeUnknown(f"the service broke off: {error.message}")
        case TimeoutError():
            return OutcomeUnknown("no whole reply came in time", timed_out=True)
        case _:
            # Its words may hold anything: of a header that cannot be encoded, all of it.
            return OutcomeUnknown(f"the call ended unexpectedly ({type(error).__name__})")


def _of_connection(cause: BaseException) -> AudioBatchError:
    if isinstance(cause, AudioBatchError):
        return cause
    what = str(cause) or type(cause).__name__
    if isinstance(cause, _NOT_SENT):
        return Disconnected(f"the service was not reached: {what}")
    if isinstance(cause, httpx2.TimeoutException):
        return OutcomeUnknown("the service stopped answering in mid-call", timed_out=True)
    return OutcomeUnknown(f"the connection broke in mid-call: {what}")


def _of_status(error: openai.APIStatusError) -> AudioBatchError:
    headers = {name.lower(): value for name, value in error.response.headers.items()}
    return from_status(error.status_code, error.body, headers)


def from_status(status: int, body: object, headers: Mapping[str, str]) -> AudioBatchError:
    """Our error for a status, whatever carried it.

    Args:
        status: HTTP status.
        body: the error object (without its `error` wrapper), or what else came.
        headers: with lower-case names.
    """
    error = _by_status(status, body, headers)
    error.limits = limits_in(headers)
    return error


def _by_status(status: int, body: object, headers: Mapping[str, str]) -> ServiceError:
    said: Mapping[str, Any] = body if isinstance(body, dict) else {}
    if isinstance(said.get("error"), dict):
        said = said["error"]
    code = str(said.get("code") or said.get("type") or "") or None
    words = str(said.get("message") or "").strip() or f"HTTP {status}"
    about: dict[str, Any] = {"status": status, "code": code, "request_id": request_id(headers)}
    if 300 <= status < 400:
        return DeploymentGone(_redirected(status, headers.get("location", "")), **about)
    wait_s = retry_after_s(headers)
    marks = {str(said.get("code")), str(said.get("type"))}
    match status:
        case 429 if marks & NO_CREDIT:
            return CreditExhausted(words, **about)
        case 429:
            return RateLimited(words, retry_after_s=wait_s, request_id=about["request_id"])
        case 401 if "PermissionDenied" in marks:
            return PermissionMissing(words, **about)
        case 401:
            return AuthenticationFailed(words, **about)
        case 403:
            return PermissionMissing(words, **about)
        case 404:
            return DeploymentGone(words, **about)
        case 408:
            return OutcomeUnknown(words, timed_out=True, status=status, request_id=about["request_id"])
        case 409:
            return Unavailable(words, status=status, retry_after_s=wait_s, request_id=about["request_id"])
        case 400 if "content_filter" in marks:
            return ContentFiltered(f"{words}{_categories(said)}", **about)
        case 400 if "audio_not_found" in marks:
            return AudioIdGone(words, **about)
        case _ if status >= _SERVER_TROUBLE:
            return Unavailable(words, status=status, retry_after_s=wait_s, request_id=about["request_id"])
        case _:
            return RequestRejected(words, **about)


def _redirected(status: int, location: str) -> str:
    """Where an answer pointed that is not followed: the origin alone, for the rest may hold anything."""
    try:
        parts = urlsplit(location)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "the same server"
    except ValueError:
        origin = "an address that cannot be read"
    return (
        f"the service answered with a redirect (HTTP {status}) to {origin[:200]}, and none is followed: key and "
        "prompts are for the endpoint that was named. If that is where the service is, name it as the endpoint"
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """The service's id of a request: OpenAI's header, or Azure's gateway's."""
    return headers.get("x-request-id") or headers.get("apim-request-id")


def _categories(said: Mapping[str, Any]) -> str:
    """The filter's categories that struck, for the manifest: ` (violence, jailbreak)`."""
    inner = said.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    if not isinstance(results, dict):
        return ""
    struck = [
        name
        for name, found in results.items()
        if isinstance(found, dict) and (found.get("filtered") or found.get("detected"))
    ]
    return f" ({', '.join(sorted(struck))})" if struck else ""
