"""Errors of the service and of the SDK become ours: none is missing, and none is changed after it was made."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from audiobatch.errors import (
    AudioBatchError,
    AudioIdGone,
    AuthenticationFailed,
    ContentFiltered,
    CreditExhausted,
    DeploymentGone,
    OutcomeUnknown,
    PermissionMissing,
    RateLimited,
    RequestRejected,
    ServiceError,
    Unavailable,
)
from audiobatch.transports.error_mapping import from_error_object, from_status, translate

REQUEST = httpx2.Request("POST", "https://example.com/v1/chat/completions")
HEADERS = {"x-request-id": "req-1", "retry-after-ms": "1500", "x-ratelimit-limit-requests": "600"}
LIMITS = {"retry-after-ms": "1500", "x-ratelimit-limit-requests": "600"}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "odd", RequestRejected),
        (400, "content_filter", ContentFiltered),
        (400, "audio_not_found", AudioIdGone),
        (401, "odd", AuthenticationFailed),
        (401, "PermissionDenied", PermissionMissing),
        (403, "odd", PermissionMissing),
        (404, "odd", DeploymentGone),
        (307, "odd", DeploymentGone),
        (408, "odd", OutcomeUnknown),
        (409, "odd", Unavailable),
        (422, "odd", RequestRejected),
        (429, "429", RateLimited),
        (429, "insufficient_quota", CreditExhausted),
        (500, "odd", Unavailable),
        (529, "odd", Unavailable),
    ],
)
def test_a_status_and_its_code_become_one_of_our_errors(
    status: int, code: str, expected: type[ServiceError]
) -> None:
    error = from_status(status, {"error": {"code": code, "message": "no"}}, HEADERS)
    assert type(error) is expected
    assert (error.request_id, error.limits) == ("req-1", LIMITS)
    if isinstance(error, RateLimited | Unavailable):
        assert error.retry_after_s == 1.5


def errors_of_the_sdk() -> list[Exception]:
    """Every error that a call of the SDK may raise."""
    with_status = [
        cls
        for cls in list(vars(openai).values())
        if isinstance(cls, type) and issubclass(cls, openai.APIStatusError) and "status_code" in vars(cls)
    ]
    return [
        *(openai.APIStatusError("no", response=answer(status), body=None) for status in (300, 418, 500, 503)),
        *(cls("no", response=answer(vars(cls)["status_code"]), body=None) for cls in with_status),
        openai.APIConnectionError(request=REQUEST),
        openai.APITimeoutError(request=REQUEST),
        openai.APIError("no", REQUEST, body=None),
    ]


def answer(status: int) -> httpx2.Response:
    """An answer of this status."""
    return httpx2.Response(status, request=REQUEST)


@pytest.mark.parametrize("error", errors_of_the_sdk(), ids=lambda error: type(error).__name__)
def test_every_error_of_the_sdk_is_known(error: Exception) -> None:
    translated = translate(error)
    assert isinstance(translated, AudioBatchError)
    assert "unexpectedly" not in translated.message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "invalid_request_error"}, RequestRejected),
        ({"type": "server_error"}, Unavailable),
        ({"code": "rate_limit_exceeded", "message": "Please try again in 300ms"}, RateLimited),
        ({"code": "insufficient_quota", "type": "rate_limit_error"}, CreditExhausted),
        ({}, Unavailable),
    ],
)
def test_an_error_object_becomes_one_of_our_errors(
    fields: dict[str, Any], expected: type[ServiceError]
) -> None:
    error = from_error_object(fields)
    assert type(error) is expected
    if isinstance(error, RateLimited):
        assert error.retry_after_s == 0.3


def test_limits_are_added_to_a_copy_and_never_replace_those_of_the_error() -> None:
    plain = OutcomeUnknown("the connection broke", timed_out=True, raw=b"half")
    copied = plain.with_limits(LIMITS)
    assert (plain.limits, copied.limits) == ({}, LIMITS)
    assert type(copied) is OutcomeUnknown
    assert (copied.message, copied.error_type, copied.raw) == (plain.message, plain.error_type, b"half")
    own = RateLimited("slow down", retry_after_s=2.0, limits={"retry-after": "2"})
    assert own.with_limits(LIMITS).limits == {"retry-after": "2"}
