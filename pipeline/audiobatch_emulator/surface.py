"""The three faces of one service: Azure's dated paths, Azure's v1 paths, and OpenAI's own.

They differ in the URL, in which credentials they take, in the shape of an error, and in the headers.

Source: learn.microsoft.com, Azure OpenAI "API version lifecycle";
github.com/openai/openai-dotnet/issues/838 and github.com/microsoft/copilot-camp/issues/551 (captured
headers); developers.openai.com/api/docs, "Rate limits" and "Debugging requests". November 2026.
"""

import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_DATED = re.compile(r"20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(-preview)?")


class Surface(StrEnum):
    """Which face a request was sent to."""

    AZURE_DATED = "azure_dated"
    AZURE_V1 = "azure_v1"
    OPENAI = "openai"

    @property
    def is_azure(self) -> bool:
        """True for both of Azure's faces."""
        return self is not Surface.OPENAI


def surface_of(path: str) -> Surface:
    """Returns the surface that a path belongs to; Azure's dated one for a path that is none of them."""
    if path.startswith("/openai/v1/"):
        return Surface.AZURE_V1
    if path.startswith("/v1/"):
        return Surface.OPENAI
    return Surface.AZURE_DATED


def dated_version(value: str | None) -> str | None:
    """Returns `api-version` where it is a dated one (`2025-01-01-preview`, `2024-10-21`), else None."""
    return value if value is not None and _DATED.fullmatch(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateState:
    """What is left of a deployment's quota, for the headers. Resets are seconds from now."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float = 0.0
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float = 0.0


def go_duration(seconds: float) -> str:
    """Returns a duration as Go prints it, which is how OpenAI writes resets: `6m0s`, `1.5s`, `12ms`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, 60_000)
    rest = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{rest}" if minutes else rest


def rate_headers(surface: Surface, rate: RateState | None) -> dict[str, str]:
    """Returns the `x-ratelimit-*` headers in the surface's style; none where no quota is set."""
    headers: dict[str, str] = {}
    if rate is None:
        return headers
    for kind, limit, remaining, reset_s in (
        ("requests", rate.limit_requests, rate.remaining_requests, rate.reset_requests_s),
        ("tokens", rate.limit_tokens, rate.remaining_tokens, rate.reset_tokens_s),
    ):
        if limit is None:
            continue
        headers[f"x-ratelimit-limit-{kind}"] = str(limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
        if not surface.is_azure:
            headers[f"x-ratelimit-reset-{kind}"] = go_duration(reset_s)
        elif kind == "tokens":
            headers["x-ratelimit-reset-tokens"] = str(round(reset_s))
    return headers


def reply_headers(
    surface: Surface, *, model: str | None, elapsed_s: float, rate: RateState | None
) -> dict[str, str]:
    """Returns the headers of every answer. The ids are fresh each time.

    `x-request-id` is sent on errors too: the SDK's `request_id` reads no other.
    """
    request_id = str(uuid.uuid4())
    if surface.is_azure:
        headers = {
            "apim-request-id": request_id,
            "x-request-id": request_id,
            "x-ms-client-request-id": request_id,
            "x-ms-region": "East US",
            "x-ms-rai-invoked": "true",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
        }
        if model is not None:
            headers["azureml-model-session"] = f"emulator-{model}"
    else:
        headers = {
            "x-request-id": "req_" + secrets.token_hex(16),
            "openai-organization": "emulator",
            "openai-processing-ms": str(round(elapsed_s * 1000)),
            "openai-version": "2020-10-01",
        }
    headers.update(rate_headers(surface, rate))
    return headers


def lower_keys(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns headers by lower-case name, so that one set replaces another whatever the spelling."""
    return {name.lower(): value for name, value in headers.items()}
