"""Map what goes wrong to our errors: the SDK's errors, HTTP statuses, closed sockets, error objects.

Retry decisions go by our classes, so that all reading of status codes, error codes and messages happens here. The
service's message stays as it was sent. A test checks that no error of the SDK is missing.

An upgrade to a socket that is refused is an HTTP answer (`from_status`). An error object, in an `error` event, a
failed `response.done` or a stream, has the same types and codes without a status (`from_error_object`).

Source: the Realtime reference (`error`, `status_details`); github.com/jsboige/CoursIA/pull/13149 (a refusal
as an `error` event and a close 4000), checked 2026-11-20.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import openai
import orjson
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

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

#: Codes of 429s that do not pass by waiting. Source: developers.openai.com/api/docs/guides/error-codes (2026-11).
_NO_CREDIT = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
#: HTTP status and error codes → our error. The first match counts; None: any code. Other statuses from 500 on are
#: `Unavailable`, and the rest `RequestRejected`.
_BY_STATUS: tuple[tuple[int, frozenset[str] | None, type[ServiceError]], ...] = (
    (429, _NO_CREDIT, CreditExhausted),
    (429, None, RateLimited),
    (401, frozenset({"PermissionDenied"}), PermissionMissing),
    (401, None, AuthenticationFailed),
    (403, None, PermissionMissing),
    (404, None, DeploymentGone),
    (408, None, OutcomeUnknown),
    (409, None, Unavailable),
    (400, frozenset({"content_filter"}), ContentFiltered),
    (400, frozenset({"audio_not_found"}), AudioIdGone),
)
_LEAST_SERVER_ERROR = 500
#: Code or type of an error object → our error. The first match counts; other objects are `Unavailable`.
_BY_CODE: tuple[tuple[frozenset[str], type[ServiceError]], ...] = (
    (_NO_CREDIT, CreditExhausted),
    (frozenset({"rate_limit_exceeded", "rate_limit_error", "slow_down", "429"}), RateLimited),
    (frozenset({"content_filter"}), ContentFiltered),
    (frozenset({"invalid_api_key", "authentication_error", "401"}), AuthenticationFailed),
    (frozenset({"model_not_found", "invalid_model", "DeploymentNotFound"}), DeploymentGone),
    (frozenset({"server_error", "service_unavailable_error", "overloaded_error"}), Unavailable),
    (frozenset({"invalid_request_error"}), RequestRejected),
)
#: "Please try again in 1.2s", "Please retry after 12 seconds", "try again in 300ms": a wait, never a decision.
_WAIT = re.compile(r"(?:try again in|retry after) (\d+(?:\.\d+)?) ?(ms|s)", re.IGNORECASE)
#: Raised before a byte of the request was sent.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


def translate(error: Exception) -> AudioBatchError:
    """Return our error for one of the SDK's or of its HTTP client's."""
    match error:
        case AudioBatchError():
            return error
        case openai.APIStatusError():
            return _from_sdk_status(error)
        case openai.APIConnectionError():
            return _from_connection_error(error.__cause__ or error)
        case httpx2.HTTPError():
            return _from_connection_error(error)
        case openai.APIError():
            return OutcomeUnknown(f"the service broke off: {error.message}")
        case TimeoutError():
            return OutcomeUnknown("no whole reply came in time", timed_out=True)
        case _:
            # Its message may hold anything: of a header that cannot be encoded, all of it.
            return OutcomeUnknown(f"the call ended unexpectedly ({type(error).__name__})")


def _from_connection_error(cause: BaseException) -> AudioBatchError:
    if isinstance(cause, AudioBatchError):
        return cause
    reason = str(cause) or type(cause).__name__
    if isinstance(cause, _NOT_SENT):
        return Disconnected(f"the service was not reached: {reason}")
    if isinstance(cause, httpx2.TimeoutException):
        return OutcomeUnknown("the service stopped answering in mid-call", timed_out=True)
    return OutcomeUnknown(f"the connection broke in mid-call: {reason}")


def _from_sdk_status(error: openai.APIStatusError) -> AudioBatchError:
    headers = {name.lower(): value for name, value in error.response.headers.items()}
    return from_status(error.status_code, error.body, headers)


def from_status(status: int, body: object, headers: Mapping[str, str]) -> ServiceError:
    """Return our error for an HTTP status.

    Args:
        status: HTTP status.
        body: the error object, in its `error` wrapper or without, or another body.
        headers: with lower-case names.
    """
    fields: Mapping[str, Any] = body if isinstance(body, dict) else {}
    if isinstance(fields.get("error"), dict):
        fields = fields["error"]
    code = str(fields.get("code") or fields.get("type") or "") or None
    message = str(fields.get("message") or "").strip() or f"HTTP {status}"
    origin: dict[str, Any] = {"request_id": request_id(headers), "limits": limits_in(headers)}
    about = {"status": status, "code": code, **origin}
    if 300 <= status < 400:
        return DeploymentGone(_redirect_message(status, headers.get("location", "")), **about)
    kind = _kind_of_status(status, {str(fields.get("code")), str(fields.get("type"))})
    if issubclass(kind, RateLimited):
        return kind(message, retry_after_s=retry_after_s(headers), **origin)
    if issubclass(kind, Unavailable):
        return kind(message, status=status, retry_after_s=retry_after_s(headers), **origin)
    if issubclass(kind, OutcomeUnknown):
        return kind(message, timed_out=True, status=status, **origin)
    if issubclass(kind, ContentFiltered):
        message += _categories(fields)
    return kind(message, **about)


def _kind_of_status(status: int, codes: set[str]) -> type[ServiceError]:
    for known_status, known_codes, kind in _BY_STATUS:
        if status == known_status and (known_codes is None or codes & known_codes):
            return kind
    return Unavailable if status >= _LEAST_SERVER_ERROR else RequestRejected


def _redirect_message(status: int, location: str) -> str:
    """Describe a redirect, which is never followed, by its origin only: the rest may hold anything."""
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
    """Return the service's id of a request: OpenAI's header, or that of Azure's gateway."""
    return headers.get("x-request-id") or headers.get("apim-request-id")


def _categories(fields: Mapping[str, Any]) -> str:
    """Return the content filter's categories, for the manifest: ` (violence, jailbreak)`."""
    inner = fields.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    if not isinstance(results, dict):
        return ""
    categories = [
        name
        for name, result in results.items()
        if isinstance(result, dict) and (result.get("filtered") or result.get("detected"))
    ]
    return f" ({', '.join(sorted(categories))})" if categories else ""


def from_failed_opening(error: Exception) -> AudioBatchError:
    """Return our error for a session that could not be opened; nothing was bought."""
    match error:
        case AudioBatchError():
            return error
        case InvalidStatus():
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            try:
                body: Any = orjson.loads(bytes(response.body or b""))
            except orjson.JSONDecodeError:
                body = None
            return from_status(response.status_code, body, headers)
        case TimeoutError():
            return Disconnected("the service was not reached: no session in time")
        case InvalidHandshake() | ConnectionClosed():
            return Disconnected(f"the service did not open a session: {error}")
        case OSError():
            return Disconnected(f"the service was not reached: {error}")
        case _:
            return translate(error)


def close_reason(error: ConnectionClosed) -> str:
    """Describe for a person how a session was closed: code and reason."""
    frame = error.rcvd or error.sent
    if frame is None:
        return "the connection broke (no close frame)"
    reason = f": {frame.reason}" if frame.reason else ""
    return f"the session was closed ({frame.code}{reason})"


def from_error_object(error: Mapping[str, Any], *, wait_s: float | None = None) -> ServiceError:
    """Return our error for an error object, where it is certain that nothing was bought.

    Args:
        error: `type`, `code`, `message`.
        wait_s: by the last `rate_limits.updated`; None: the message may name a wait.
    """
    codes = {str(error.get("code")), str(error.get("type"))}
    code = str(error.get("code") or error.get("type") or "") or None
    message = str(error.get("message") or "").strip() or f"the service says: {code or 'error'}"
    kind = next((kind for known_codes, kind in _BY_CODE if codes & known_codes), Unavailable)
    if issubclass(kind, RateLimited):
        return kind(message, retry_after_s=wait_s or _named_wait_s(message))
    return kind(message) if issubclass(kind, Unavailable) else kind(message, code=code)


def reset_wait_s(limits: list[Any]) -> float | None:
    """Return the seconds until exhausted counters of `rate_limits.updated` are reset; None where none is."""
    waits = [
        float(limit["reset_seconds"])
        for limit in limits
        if isinstance(limit, dict)
        and limit.get("remaining") == 0
        and isinstance(limit.get("reset_seconds"), int | float)
        and limit["reset_seconds"] > 0
    ]
    return max(waits, default=None)


def _named_wait_s(message: str) -> float | None:
    """Return the wait that a message names, in seconds; None where it names none."""
    wait = _WAIT.search(message)
    if wait is None:
        return None
    return float(wait[1]) / (1000 if wait[2].lower() == "ms" else 1) or None
