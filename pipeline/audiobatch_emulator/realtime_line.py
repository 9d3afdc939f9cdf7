"""The way from a session to its client: events out, and each way in which a connection can end."""

import asyncio
import contextlib
from typing import Any

import orjson
from aiohttp import web

from audiobatch_emulator.delivery import POLL_S, close_connection, reset_connection
from audiobatch_emulator.faults import Do

#: Codes that no close frame may carry: the connection is dropped instead. Source: RFC 6455, 7.4.1.
_NEVER_SENT = (1004, 1005, 1006, 1015)


class SocketLine:
    """`Line` over aiohttp's socket."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = socket

    async def send(self, event: dict[str, Any]) -> None:
        """Sends one event; a client that is gone hears nothing."""
        await self.send_raw(orjson.dumps(event).decode())

    async def send_raw(self, frame: str) -> None:
        """Sends one text frame, whatever is in it."""
        if not self._socket.closed:
            with contextlib.suppress(ConnectionError):
                await self._socket.send_str(frame)

    async def drained(self) -> bool:
        """Waits until the operating system has everything; false where the client is gone."""
        transport = self._request.transport
        below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        while transport is not None and not transport.is_closing() and not self._socket.closed:
            buffers = [buffer for buffer in (transport, below) if isinstance(buffer, asyncio.WriteTransport)]
            if not any(buffer.get_write_buffer_size() for buffer in buffers):
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def end(self, do: Do) -> None:
        """Ends the connection: by a close frame, without one, or by a reset."""
        code = do.close_code or (1000 if do.corrupt == "close" else None)
        if code is None:
            reset_connection(self._request)
        elif code in _NEVER_SENT:
            close_connection(self._request)
        else:
            await self.close(code)

    async def close(self, code: int, reason: str = "") -> None:
        """Ends the connection by a close frame."""
        with contextlib.suppress(ConnectionError):
            await self._socket.close(code=code, message=reason.encode())
