"""What goes wrong on a socket → our errors: refused upgrades, closes, `error` events, failed responses.

An upgrade that is refused is an HTTP answer, and reads as one (`error_mapping.from_status`). An error object, in
an `error` event or in a failed `response.done`, has the same types and codes without a status.

Source: the Realtime reference (`error`, `status_details`); github.com/jsboige/CoursIA/pull/13149 (a refusal
as an `error` event and a close 4000), checked 2026-11-20.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from audiobatch.errors import (
    AudioBatchError,
    AuthenticationFailed,
    ContentFiltered,
    CreditExhausted,
    DeploymentGone,
    Disconnected,
    RateLimited,
    RequestRejected,
    ServiceError,
    Unavailable,
)
from audiobatch.transports.error_mapping import NO_CREDIT, from_status, translate

if TYPE_CHECKING:
    from collections.abc import Mapping

#: "Please try again in 1.2s", "Please retry after 12 seconds", "try again in 300ms": a wait, never a decision.
_WAIT = re.compile(r"(?:try again in|retry after) (\d+(?:\.\d+)?) ?(ms|s)", re.IGNORECASE)
_WRONG_KEY = frozenset({"invalid_api_key", "authentication_error", "401"})
_NO_MODEL = frozenset({"model_not_found", "invalid_model", "DeploymentNotFound"})
_SERVERS = frozenset({"server_error", "service_unavailable_error", "overloaded_error"})


def not_opened(error: Exception) -> AudioBatchError:
    """Our error for a session that did not come about; nothing was bought."""
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


def closed_words(error: ConnectionClosed) -> str:
    """How a session was closed, for a person: code and reason."""
    frame = error.rcvd or error.sent
    if frame is None:
        return "the connection broke (no close frame)"
    reason = f": {frame.reason}" if frame.reason else ""
    return f"the session was closed ({frame.code}{reason})"


def of_error(error: Mapping[str, Any], *, wait_s: float | None = None) -> ServiceError:
    """Our error for an error object, where it is certain that nothing was bought.

    Args:
        error: `type`, `code`, `message`.
        wait_s: what the last `rate_limits.updated` says; else the message may name a wait.
    """
    marks = {str(error.get("code")), str(error.get("type"))}
    code = str(error.get("code") or error.get("type") or "") or None
    words = str(error.get("message") or "").strip() or f"the service says: {code or 'error'}"
    if marks & NO_CREDIT:
        return CreditExhausted(words, code=code)
    if marks & {"rate_limit_exceeded", "rate_limit_error", "slow_down", "429"}:
        return RateLimited(words, retry_after_s=wait_s or _named_wait_s(words))
    if "content_filter" in marks:
        return ContentFiltered(words, code=code)
    if marks & _WRONG_KEY:
        return AuthenticationFailed(words, code=code)
    if marks & _NO_MODEL:
        return DeploymentGone(words, code=code)
    if marks & _SERVERS or "invalid_request_error" not in marks:
        return Unavailable(words)
    return RequestRejected(words, code=code)


def waits_s(limits: list[Any]) -> float | None:
    """Seconds until an exhausted counter of `rate_limits.updated` is reset; None where none is exhausted."""
    waits = [
        float(limit["reset_seconds"])
        for limit in limits
        if isinstance(limit, dict)
        and limit.get("remaining") == 0
        and isinstance(limit.get("reset_seconds"), int | float)
        and limit["reset_seconds"] > 0
    ]
    return max(waits, default=None)


def _named_wait_s(words: str) -> float | None:
    found = _WAIT.search(words)
    if found is None:
        return None
    return float(found[1]) / (1000 if found[2].lower() == "ms" else 1) or None
