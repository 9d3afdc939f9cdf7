"""The SDK's HTTP clients, as every transport over HTTP uses them: they build URLs and carry credentials."""

from __future__ import annotations

from typing import Any, Literal

import httpx2
import openai

from pipeline.transports.watched import watch


def open_client(
    *,
    provider: Literal["azure", "openai"],
    endpoint: str | None,
    api_version: str,
    deployment: str,
    secret: Any,
    timeout_s: float,
    connections: int,
) -> openai.AsyncOpenAI:
    """A client of one deployment, without retries of its own.

    Args:
        endpoint: None is OpenAI's own.
        secret: a key, or an async callable that gives tokens.
    """
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    http = openai.DefaultAsyncHttpxClient(
        limits=limits,
        event_hooks={"response": [watch]},
        timeout=httpx2.Timeout(timeout_s, connect=10.0),
    )
    common: dict[str, Any] = {"max_retries": 0, "http_client": http, "timeout": timeout_s}
    if provider == "openai":
        return openai.AsyncOpenAI(api_key=secret, base_url=endpoint, **common)
    assert endpoint is not None
    if api_version == "v1":
        return openai.AsyncOpenAI(api_key=secret, base_url=f"{endpoint}/openai/v1", **common)
    return openai.AsyncAzureOpenAI(
        azure_endpoint=endpoint,
        azure_deployment=deployment,
        api_version=api_version,
        **({"azure_ad_token_provider": secret} if callable(secret) else {"api_key": secret}),
        **common,
    )
