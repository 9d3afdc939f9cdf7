"""The SDK's clients, as every transport over HTTP uses them: they build URLs and carry credentials.

A request of the SDK is built anew each time, from options, headers and five parsed URLs: 0.4 ms of CPU where it is
all in the processor's cache, 1 ms where other work is between. All requests to one path of one deployment are
alike but for their body. So the SDK builds the first one, and the others are that one with their own body.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import openai
import orjson

from audiobatch.transports.error_mapping import from_status
from audiobatch.transports.wire import CONNECT_S, LARGEST_REPLY_BYTES, Wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.chat_request import PiecewiseBody


@dataclass(frozen=True, slots=True)
class _Model:
    """A request as the SDK makes it, and the secret that it carries."""

    secret: str
    method: str
    url: httpx2.URL
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    extensions: dict[str, Any] = field(repr=False)


def _let_httpx_be_whole() -> None:
    """Wait while another thread imports httpx: the SDK looks into it wherever it finds it, whole or not."""
    if "httpx" in sys.modules:
        importlib.import_module("httpx")


class ServiceClient:
    """The SDK's client of one deployment, without retries of its own, over connections of ours."""

    def __init__(
        self,
        *,
        provider: Literal["azure", "openai"],
        endpoint: str | None,
        api_version: str,
        deployment: str,
        key: str | None,
        tokens: EntraTokens | None,
        timeout_s: float,
        most_reply_bytes: int = LARGEST_REPLY_BYTES,
    ) -> None:
        """Args: exactly one of `key` and `tokens` is given; `endpoint` None is OpenAI's own."""
        self._key = key or ""
        self._tokens = tokens
        self._models: dict[str, _Model] = {}
        _let_httpx_be_whole()
        self._http = openai.DefaultAsyncHttpxClient(
            transport=Wire(most_bytes=most_reply_bytes),
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
            follow_redirects=False,  # the body, and what it says, is for the service that was named
        )
        secret: Any = tokens or self._key
        common: dict[str, Any] = {"max_retries": 0, "http_client": self._http, "timeout": timeout_s}
        if provider == "openai":
            self.sdk = openai.AsyncOpenAI(api_key=secret, base_url=endpoint, **common)
        elif api_version == "v1":
            self.sdk = openai.AsyncOpenAI(api_key=secret, base_url=f"{endpoint}/openai/v1", **common)
        else:
            assert endpoint is not None
            self.sdk = openai.AsyncAzureOpenAI(
                azure_endpoint=endpoint,
                azure_deployment=deployment,
                api_version=api_version,
                **({"azure_ad_token_provider": secret} if tokens else {"api_key": secret}),
                **common,
            )

    async def aclose(self) -> None:
        await self.sdk.close()

    async def post(self, path: str, body: bytes | PiecewiseBody, *, stream: bool = False) -> httpx2.Response:
        """Send a JSON body to a path of the deployment, as the SDK's `post` does.

        Args:
            path: such as `/chat/completions`.
            body: goes as it is.
            stream: the reply's body is left to be read, and the reply to be closed, by the caller.

        Raises:
            AudioBatchError: the service answered with an error.
            httpx2.HTTPError: it did not answer.
        """
        model = await self._model(path)
        size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
        request = httpx2.Request(
            model.method,
            model.url,
            headers=[*model.headers, (b"Content-Length", b"%d" % size_bytes)],
            content=body,
            extensions=dict(model.extensions),
        )
        response = await self._http.send(request, stream=stream)
        if not response.is_success:
            await response.aread()
            raise from_status(response.status_code, _said(response), headers_of(response))
        return response

    async def _model(self, path: str) -> _Model:
        """The request to take as a model; a new one with each new token."""
        secret = await self._tokens() if self._tokens else self._key
        model = self._models.get(path)
        if model is None or model.secret != secret:
            model = self._models[path] = await self._rehearse(path, secret)
        return model

    async def _rehearse(self, path: str, secret: str) -> _Model:
        """Have the SDK make the request for real, but for the sending."""
        made: list[httpx2.Request] = []

        def take(request: httpx2.Request) -> httpx2.Response:
            made.append(request)
            return httpx2.Response(200, content=b"{}")

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(take)) as nowhere:
            sdk = self.sdk.with_options(http_client=nowhere)
            await sdk.post(path, content=b"{}", cast_to=httpx2.Response)
        (request,) = made
        return _Model(
            secret=secret,
            method=request.method,
            url=request.url,
            headers=[one for one in request.headers.raw if one[0].lower() != b"content-length"],
            extensions=dict(request.extensions),
        )


def headers_of(response: httpx2.Response) -> Mapping[str, str]:
    """With lower-case names; of a name that came twice, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


def _said(response: httpx2.Response) -> object:
    """The error that the service sent: an object where it is one, else its text."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.text
