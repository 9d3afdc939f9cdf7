"""The SDK's HTTP clients, as every transport over HTTP uses them: they build URLs and carry credentials."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import openai

from pipeline.transports.watched import watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The HTTP client looks at every idle connection of its pool at every call: with 128 of them that was two fifths
#: of all its work. Small pools beside each other have the same connections and little to look at.
CALLS_PER_CLIENT = 16


@dataclass(slots=True)
class Clients:
    """As many clients of one deployment as its calls in flight need."""

    make: Callable[[], openai.AsyncOpenAI]
    _clients: list[openai.AsyncOpenAI] = field(default_factory=list)
    _calls: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def one(self) -> Iterator[openai.AsyncOpenAI]:
        """The client for one call: the first with room, so that few are kept warm when few are needed."""
        place = next(
            (at for at, calls in enumerate(self._calls) if calls < CALLS_PER_CLIENT), len(self._calls)
        )
        if place == len(self._calls):
            self._clients.append(self.make())
            self._calls.append(0)
        self._calls[place] += 1
        try:
            yield self._clients[place]
        finally:
            self._calls[place] -= 1

    async def aclose(self) -> None:
        for client in self._clients:
            await client.close()


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
