"""Handing a reply to the socket, whole or as a fault wants it.

`delivered` is told from the transport's own buffer: with its limit at zero, waiting for it to drain means
that the last byte has been taken by the operating system. Under TLS there is a second buffer below, which
asyncio does not show; it is looked at where it is found.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

from aiohttp import HttpVersion11, web

from audiobatch_emulator.faults import Do

TRICKLE_S = 0.25
POLL_S = 0.002
#: Lets the bytes before a reset reach the client: a reset throws away what it has not read.
SETTLE_S = 0.05
#: Linger on, for no time at all: closing then sends a reset.
_LINGER_NOT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def deliver(
    request: web.Request,
    *,
    status: int,
    headers: Mapping[str, str],
    pieces: Sequence[bytes],
    chunked: bool,
    do: Do,
) -> tuple[web.StreamResponse, bool]:
    """Sends the reply; says whether its last byte was sent.

    `pieces` are the body, in order; `chunked` sends it without a length.
    """
    response = web.StreamResponse(status=status, headers=headers)
    if chunked and request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.content_length = sum(map(len, pieces))
    _hold_nothing_back(request)
    try:
        await response.prepare(request)
        if do.reset == "in" or do.stall_s > 0:
            await _slowly(request, response, b"".join(pieces), do)
        else:
            for piece in pieces[:-1]:
                await response.write(piece)
            await response.write_eof(pieces[-1] if pieces else b"")
        await _taken(request)
        if do.reset == "in":
            return response, False
        if do.reset == "after":
            await asyncio.sleep(SETTLE_S)
            reset_connection(request)
    except ConnectionError:
        return response, False
    return response, True


async def _slowly(request: web.Request, response: web.StreamResponse, body: bytes, do: Do) -> None:
    half = len(body) // 2
    await response.write(body[:half])
    ends_at = asyncio.get_running_loop().time() + do.stall_s
    while (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(TRICKLE_S, left_s))
        if half + 1 < len(body):
            await response.write(body[half : half + 1])
            half += 1
    if do.reset == "in":
        await asyncio.sleep(SETTLE_S)
        reset_connection(request)
    else:
        await response.write_eof(body[half:])


def _hold_nothing_back(request: web.BaseRequest) -> None:
    """Makes every write wait until the buffer is empty."""
    if request.transport is not None:
        # asyncio's TLS pauses at "size >= high", so that zero would pause it for ever.
        under_tls = request.transport.get_extra_info("ssl_object") is not None
        request.transport.set_write_buffer_limits(high=1 if under_tls else 0, low=0)


async def _taken(request: web.BaseRequest) -> None:
    """Returns when the buffer below TLS is empty, too.

    Raises:
        ConnectionError: the connection ended before.
    """
    below = getattr(getattr(request.transport, "_ssl_protocol", None), "_transport", None)
    while isinstance(below, asyncio.WriteTransport) and below.get_write_buffer_size():
        if below.is_closing():
            raise ConnectionResetError
        await asyncio.sleep(POLL_S)


def reset_connection(request: web.BaseRequest) -> None:
    """Drops the connection with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def close_connection(request: web.BaseRequest) -> None:
    """Ends the connection in order, without an answer."""
    if request.transport is not None:
        request.transport.close()


def no_answer() -> web.Response:
    """Returns what a handler gives whose connection is gone: aiohttp finds it closed, and writes nothing."""
    return web.Response()
