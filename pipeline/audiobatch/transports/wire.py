"""The wire beneath the SDK's HTTP client: its requests carried by aiohttp, whose parser is compiled.

The SDK's clients take any transport of their HTTP client. The usual one parses in Python and hands a body through
seven layers in pieces of 64 KB: of a reply of 640 KB that was 1.4 ms of CPU more than this one takes, of a
short reply 0.5 ms. What goes on the wire is the same, and so are the errors that come out: the table below.

Source: docs.aiohttp.org, "Client exceptions" hierarchy; www.python-httpx.org, "Custom transports" (2026-11).

The bodies of replies are watched. A body that only trickles is given up instead of holding a place until the total
deadline; one that is larger than any reply, or unpacks to that, is given up too; and where a body breaks off, what
had come of it is kept: it was perhaps paid for.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import re
import urllib.request
import zlib
from typing import TYPE_CHECKING

import aiohttp
import httpx2
from yarl import URL

from audiobatch.errors import BadReply, OutcomeUnknown
from audiobatch.transports.reply_memory import MEMORY

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator

    from audiobatch.transports.reply_memory import Held

#: Seconds to reach the service; nothing is sent before that, so that another try is free.
CONNECT_S = 10.0
#: An idle connection is kept so long: less than any gateway keeps its end, so that no call goes into a closed one.
KEPT_S = 5.0
#: Received and not yet taken; past twice this the socket is left to fill.
_READ_AHEAD_BYTES = 1 << 20
#: A body past this goes out piece by piece, as the socket takes it.
_PIECEWISE_BYTES = 1 << 20
#: What one reply may unpack to, unless the job says otherwise.
LARGEST_REPLY_BYTES = 128_000_000
_LARGEST_LINE_BYTES = 1 << 20
_MOST_HEADERS = 4096
_OF_PACKING = frozenset({b"content-encoding", b"content-length"})
#: In aiohttp's words of a connection that failed: which TLS context it was given.
_SSL_SETTING = re.compile(r" ssl:(<[^>]*>|\w+)")
_HERE = frozenset({"127.0.0.1", "::1", "localhost"})
#: What aiohttp raises → what the usual transport would. First match; the connection's own troubles come first,
#: because nothing was sent then, and that is what matters: the same request is made again without a doubt.
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


class Wire(httpx2.AsyncBaseTransport):
    """A transport for the SDK's HTTP client. Connections are as many as there are calls: others limit those."""

    def __init__(self, *, most_bytes: int = LARGEST_REPLY_BYTES) -> None:
        """Args: `most_bytes`: what one reply's body may unpack to."""
        self._most_bytes = most_bytes
        self._session: aiohttp.ClientSession | None = None
        self._places: dict[str, tuple[URL, str | None]] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request, once.

        Raises:
            httpx2.TransportError: see `ERRORS`.
        """
        url, proxy = self._place(str(request.url))
        try:
            reply = await self._open().request(
                request.method,
                url,
                headers=[_sent(name, value) for name, value in request.headers.raw],
                data=_body_of(request),
                allow_redirects=False,
                ssl=self._trusted if url.scheme == "https" else True,
                proxy=proxy,
            )
        except (aiohttp.ClientError, OSError) as failed:
            raise translated(failed) from failed
        return httpx2.Response(
            status_code=reply.status,
            # Unpacked here, within bounds.
            headers=[pair for pair in reply.raw_headers if pair[0].lower() not in _OF_PACKING],
            stream=WatchedBody(reply, MEMORY.account(), most_bytes=self._most_bytes),
            request=request,
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (reply.reason or "").encode(errors="replace"),
            },
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _place(self, address: str) -> tuple[URL, str | None]:
        """An address as aiohttp takes it, and the proxy on the way there: worked out once, they are few."""
        if address not in self._places:
            url = URL(address, encoded=True)
            self._places[address] = (url, proxy_for(url.scheme, url.raw_host or ""))
        return self._places[address]

    @functools.cached_property
    def _trusted(self) -> ssl.SSLContext:
        """Whom to trust, by the standard variables, as the usual transport does."""
        return httpx2.create_ssl_context()

    def _open(self) -> aiohttp.ClientSession:
        """Inside the event loop that sends, which is not there yet when a client is made."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S
                ),  # the caller keeps the total
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=_READ_AHEAD_BYTES,
                # What surrounds a reply that is paid for is no reason to lose it.
                max_line_size=_LARGEST_LINE_BYTES,
                max_field_size=_LARGEST_LINE_BYTES,
                max_headers=_MOST_HEADERS,
            )
        return self._session


def _sent(name: bytes, value: bytes) -> tuple[str, str]:
    """A header as aiohttp takes it; packings that cannot be unpacked within bounds are not asked for."""
    if name.lower() == b"accept-encoding":
        return name.decode("ascii"), ACCEPTED
    return name.decode("ascii"), value.decode("latin-1")


def translated(failed: Exception) -> httpx2.TransportError:
    """The error that the usual transport would have raised."""
    for theirs, usual in ERRORS:
        if isinstance(failed, theirs):
            return usual(_SSL_SETTING.sub("", str(failed)) or type(failed).__name__)
    return httpx2.ReadError(repr(failed))


def _body_of(request: httpx2.Request) -> bytes | io.BytesIO | AsyncIterable[bytes]:
    try:
        content = request.content
    except httpx2.RequestNotRead:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        return request.stream
    return content if len(content) < _PIECEWISE_BYTES else io.BytesIO(content)


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the standard variables name for this host; none to this machine itself."""
    if host in _HERE or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    return (found if "://" in found else f"http://{found}") if found else None


log = logging.getLogger(__name__)

#: After the head, this many seconds may pass without the body growing by `MIN_PROGRESS_BYTES`.
PROGRESS_WINDOW_S = 60.0
MIN_PROGRESS_BYTES = 1024
#: Of a body that is only looked into: an error's, or one that is too large.
DIAGNOSIS_BYTES = 1 << 20
#: What a packed body unpacks to at a time.
_PIECE_BYTES = 1 << 20
#: `Content-Encoding` → zlib's window. Source: RFC 9110, section 8.4.1; zlib.net, `inflateInit2`.
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
#: What is asked for: what can be unpacked within bounds.
ACCEPTED = "gzip, deflate"


class WatchedBody(httpx2.AsyncByteStream):
    """A body as it comes, unpacked. The watch is a timer of its own, so that a piece costs nothing more."""

    def __init__(self, reply: aiohttp.ClientResponse, held: Held, *, most_bytes: int) -> None:
        """Args: `most_bytes`: what it may unpack to; of an error `DIAGNOSIS_BYTES` are read, and no more."""
        self._reply = reply
        self._held = held
        self._most_bytes = most_bytes
        self._is_error = not 200 <= reply.status < 300
        self._had_bytes = 0
        self._trickled = False
        self._packed: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces.

        Raises:
            OutcomeUnknown: it broke off or trickled; carries what had come.
            BadReply: it is too large, or packed in a way that cannot be read; carries its beginning.
        """
        came: list[bytes] = []
        size_bytes = 0
        try:
            if not self._reply.content.is_eof():
                self._look_again()
            async for piece in self._unpacked():
                size_bytes += len(piece)
                if self._is_error and size_bytes > DIAGNOSIS_BYTES:
                    yield piece[: DIAGNOSIS_BYTES - size_bytes]
                    self._reply.close()
                    return
                if size_bytes > self._most_bytes:
                    self._reply.close()
                    raise self._too_large(b"".join(came)[:DIAGNOSIS_BYTES])
                await self._held.grow(len(piece))
                came.append(piece)
                yield piece
        except (aiohttp.ClientError, OSError) as broke:
            raise self._broken(broke, b"".join(came)) from broke
        except zlib.error as broke:
            raw = b"".join([*self._packed, *[piece async for piece in self._rest()]])
            raise BadReply(f"the reply cannot be unpacked: {broke}", raw=raw) from broke
        finally:
            self._stop_looking()

    async def _unpacked(self) -> AsyncIterator[bytes]:
        """The same bytes as the service packed, never more than `_PIECE_BYTES` at a time."""
        encoding = self._reply.headers.get("Content-Encoding", "").strip().lower()
        window = _WINDOWS.get(encoding)
        if window is None and encoding not in {"", "identity"}:
            raw = b"".join([piece async for piece in self._rest()])
            raise BadReply(f"the reply is packed as {encoding[:40]!r}, which was not asked for", raw=raw)
        unpack = None if window is None else zlib.decompressobj(window)
        any_plain = False
        async for piece in self._reply.content.iter_any():
            if unpack is None:
                yield piece
            else:
                packed = piece
                self._packed.append(piece)
                while packed:
                    plain = unpack.decompress(packed, _PIECE_BYTES)
                    packed = unpack.unconsumed_tail
                    if plain:
                        any_plain = True
                        yield plain
                        await asyncio.sleep(0)
            await asyncio.sleep(
                0
            )  # bytes that are there already wait for nothing: time-outs must get their turn
        if unpack is None:
            return
        if rest := unpack.flush():
            yield rest
        elif not any_plain and self._packed:
            raise zlib.error("it breaks off before its first byte")

    async def _rest(self) -> AsyncIterator[bytes]:
        """What is still to come of a body that nobody can read, as it comes; it was paid for."""
        left_bytes = self._most_bytes - sum(map(len, self._packed))
        try:
            async for piece in self._reply.content.iter_any():
                left_bytes -= len(piece)
                if left_bytes < 0:
                    break
                await self._held.grow(len(piece))
                yield piece
        except (aiohttp.ClientError, OSError) as broke:
            log.info("a body that cannot be read broke off, too: %s", broke)

    async def aclose(self) -> None:
        """Where the whole body has come, its connection serves the next call; else it is closed."""
        self._stop_looking()
        self._reply.release()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_WINDOW_S, self._look)

    def _look(self) -> None:
        has_bytes = self._reply.content.total_bytes
        if has_bytes - self._had_bytes < MIN_PROGRESS_BYTES and not self._held.is_waiting:
            self._trickled = True
            self._reply.close()  # whoever reads is told
        else:
            self._had_bytes = has_bytes
            self._look_again()

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self, beginning: bytes) -> BadReply:
        words = f"the reply is larger than {self._most_bytes / 1_000_000:.0f} MB (--max-reply-mb)"
        return BadReply(f"{words}; its beginning is kept", raw=beginning)

    def _broken(self, broke: Exception, came: bytes) -> OutcomeUnknown:
        if self._trickled:
            words = (
                f"the reply trickled in: {len(came)} bytes, then less than {MIN_PROGRESS_BYTES} in "
                f"{PROGRESS_WINDOW_S:.0f} s"
            )
            return OutcomeUnknown(words, timed_out=True, raw=came)
        return OutcomeUnknown(f"the connection broke in mid-reply: {broke}".rstrip(": "), raw=came)
