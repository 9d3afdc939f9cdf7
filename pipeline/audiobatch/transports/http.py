"""HTTP to the service: requests that the official SDK makes, sent over connections of aiohttp.

The SDK builds each request anew from options, headers and five parsed URLs. Its usual HTTP client parses replies in
Python and passes a body through seven layers in pieces of 64 KB. Both are replaced here, because together they
cost twice to three times the CPU time of a call (docs/decisions/0012-our-own-http-path.md):

- All requests to one path of one deployment differ only in their body. The SDK builds the first one, and
  `ServiceClient.post` copies it with another body.
- `AiohttpTransport` carries requests of the SDK's HTTP client, with a parser in C. What goes on the wire is the
  same, and so are the errors that come out: see `ERRORS`.

Source: docs.aiohttp.org, "Client exceptions" hierarchy; www.python-httpx.org, "Custom transports" (2026-11).
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import sys
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx2
import openai
import orjson
from yarl import URL

from audiobatch.transports.error_mapping import from_status
from audiobatch.transports.reply_body import ACCEPTED_ENCODINGS, LARGEST_REPLY_BYTES, WatchedBody
from audiobatch.transports.reply_memory import MEMORY

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Mapping

    from audiobatch.transports.base import ServiceAccess
    from audiobatch.transports.chat_request import PiecewiseBody

#: Seconds to reach the service; nothing is sent before that, so that another try is free.
CONNECT_S = 10.0
#: An idle connection is closed after this: before any gateway closes its end, so that no call uses a closed one.
KEEPALIVE_S = 5.0
#: How much is received ahead of the reader; past twice this the socket is left to fill.
_READ_AHEAD_BYTES = 1 << 20
#: A larger body goes out piece by piece, as the socket takes it.
_PIECEWISE_BYTES = 1 << 20
_LARGEST_LINE_BYTES = 1 << 20
_MOST_HEADERS = 4096
_ENCODING_HEADERS = frozenset({b"content-encoding", b"content-length"})
#: In aiohttp's message of a connection that failed: which TLS context it had.
_SSL_SETTING = re.compile(r" ssl:(<[^>]*>|\w+)")
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
#: aiohttp's error → the usual transport's. The first match counts. Errors of connecting come first: they say that
#: nothing was sent, so that the same request may be made again.
ERRORS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ClientConnectorCertificateError, httpx2.ConnectError),
    (aiohttp.ClientHttpProxyError, httpx2.ConnectError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx2.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx2.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
    (OSError, httpx2.ReadError),
)


@dataclass(frozen=True, slots=True)
class _Template:
    """A request as the SDK makes it, and the credential that it carries."""

    credential: str
    method: str
    url: httpx2.URL
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    extensions: dict[str, Any] = field(repr=False)


class ServiceClient:
    """The SDK's client of one deployment, without its retries, over an `AiohttpTransport`."""

    def __init__(self, access: ServiceAccess) -> None:
        """Args: `access`: the deployment, and the credential for it."""
        self._key = access.key or ""
        self._tokens = access.tokens
        self._templates: dict[str, _Template] = {}
        _finish_import_of_httpx()
        self._http = openai.DefaultAsyncHttpxClient(
            transport=AiohttpTransport(largest_reply_bytes=access.largest_reply_bytes),
            timeout=httpx2.Timeout(access.timeout_s, connect=CONNECT_S),
            follow_redirects=False,  # key and prompts are for the endpoint that was named
        )
        credential: Any = access.tokens or self._key
        common: dict[str, Any] = {"max_retries": 0, "http_client": self._http, "timeout": access.timeout_s}
        if access.provider == "openai":
            self.sdk = openai.AsyncOpenAI(api_key=credential, base_url=access.endpoint, **common)
        elif access.api_version == "v1":
            base_url = f"{access.endpoint}/openai/v1"
            self.sdk = openai.AsyncOpenAI(api_key=credential, base_url=base_url, **common)
        else:
            assert access.endpoint is not None
            self.sdk = openai.AsyncAzureOpenAI(
                azure_endpoint=access.endpoint,
                azure_deployment=access.deployment,
                api_version=access.api_version,
                **({"azure_ad_token_provider": credential} if access.tokens else {"api_key": credential}),
                **common,
            )

    async def aclose(self) -> None:
        """Close the connections."""
        await self.sdk.close()

    async def post(self, path: str, body: bytes | PiecewiseBody, *, stream: bool = False) -> httpx2.Response:
        """Send a JSON body to a path of the deployment, as the SDK's `post` does.

        Args:
            path: such as `/chat/completions`.
            body: sent unchanged.
            stream: leave it to the caller to read the reply's body and to close the reply.

        Raises:
            AudioBatchError: the service answered with an error.
            httpx2.HTTPError: it did not answer.
        """
        template = await self._template(path)
        size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
        request = httpx2.Request(
            template.method,
            template.url,
            headers=[*template.headers, (b"Content-Length", b"%d" % size_bytes)],
            content=body,
            extensions=dict(template.extensions),
        )
        response = await self._http.send(request, stream=stream)
        if not response.is_success:
            await response.aread()
            raise from_status(response.status_code, _error_body(response), headers_of(response))
        return response

    async def _template(self, path: str) -> _Template:
        """Return the request to copy; each new token gets a new one."""
        credential = await self._tokens() if self._tokens else self._key
        template = self._templates.get(path)
        if template is None or template.credential != credential:
            template = self._templates[path] = await self._build_template(path, credential)
        return template

    async def _build_template(self, path: str, credential: str) -> _Template:
        """Let the SDK make the request, and take it instead of sending it."""
        requests: list[httpx2.Request] = []

        def take(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return httpx2.Response(200, content=b"{}")

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(take)) as client:
            sdk = self.sdk.with_options(http_client=client)
            await sdk.post(path, content=b"{}", cast_to=httpx2.Response)
        (request,) = requests
        return _Template(
            credential=credential,
            method=request.method,
            url=request.url,
            headers=[header for header in request.headers.raw if header[0].lower() != b"content-length"],
            extensions=dict(request.extensions),
        )


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """A transport for the SDK's HTTP client. It opens a connection for each call: others limit the calls."""

    def __init__(self, *, largest_reply_bytes: int = LARGEST_REPLY_BYTES) -> None:
        """Args: `largest_reply_bytes`: what one reply's body may unpack to."""
        self._largest_reply_bytes = largest_reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._routes: dict[str, tuple[URL, str | None]] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request, once.

        Raises:
            httpx2.TransportError: see `ERRORS`.
        """
        url, proxy = self._route(str(request.url))
        try:
            reply = await self._open_session().request(
                request.method,
                url,
                headers=[_aiohttp_header(name, value) for name, value in request.headers.raw],
                data=_aiohttp_body(request),
                allow_redirects=False,
                ssl=self._ssl_context if url.scheme == "https" else True,
                proxy=proxy,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise translated(error) from error
        return httpx2.Response(
            status_code=reply.status,
            # `WatchedBody` unpacks the body, so that these no longer hold.
            headers=[header for header in reply.raw_headers if header[0].lower() not in _ENCODING_HEADERS],
            stream=WatchedBody(reply, MEMORY.current_call(), largest_bytes=self._largest_reply_bytes),
            request=request,
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (reply.reason or "").encode(errors="replace"),
            },
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _route(self, address: str) -> tuple[URL, str | None]:
        """Return an address as aiohttp takes it, and the proxy to it. There are few addresses: both are stored."""
        if address not in self._routes:
            url = URL(address, encoded=True)
            self._routes[address] = (url, proxy_for(url.scheme, url.raw_host or ""))
        return self._routes[address]

    @functools.cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        """The certificates to trust, by the standard variables, as the usual transport does."""
        return httpx2.create_ssl_context()

    def _open_session(self) -> aiohttp.ClientSession:
        """Open the session within the event loop that sends; the loop does not run yet when a client is made."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                # The caller limits the total.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=_READ_AHEAD_BYTES,
                # Odd headers must not lose a reply that is paid for.
                max_line_size=_LARGEST_LINE_BYTES,
                max_field_size=_LARGEST_LINE_BYTES,
                max_headers=_MOST_HEADERS,
            )
        return self._session


def headers_of(response: httpx2.Response) -> Mapping[str, str]:
    """Return a reply's headers by lower-case names; where a name occurs twice, the last value."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


def translated(error: Exception) -> httpx2.TransportError:
    """Return the error that the usual transport would have raised."""
    for aiohttp_error, usual_error in ERRORS:
        if isinstance(error, aiohttp_error):
            return usual_error(_SSL_SETTING.sub("", str(error)) or type(error).__name__)
    return httpx2.ReadError(repr(error))


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy that the standard variables name for a host; None for this machine."""
    if host in _LOOPBACK_HOSTS or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return (proxy if "://" in proxy else f"http://{proxy}") if proxy else None


def _finish_import_of_httpx() -> None:
    """Wait while another thread imports httpx: the SDK uses the module even where it is half imported."""
    if "httpx" in sys.modules:
        importlib.import_module("httpx")


def _error_body(response: httpx2.Response) -> object:
    """Return the error that the service sent: an object where it is one, else its text."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.text


def _aiohttp_header(name: bytes, value: bytes) -> tuple[str, str]:
    """Convert a header; `Accept-Encoding` names only what can be unpacked within bounds."""
    if name.lower() == b"accept-encoding":
        return name.decode("ascii"), ACCEPTED_ENCODINGS
    return name.decode("ascii"), value.decode("latin-1")


def _aiohttp_body(request: httpx2.Request) -> bytes | io.BytesIO | AsyncIterable[bytes]:
    try:
        content = request.content
    except httpx2.RequestNotRead:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        return request.stream
    return content if len(content) < _PIECEWISE_BYTES else io.BytesIO(content)
