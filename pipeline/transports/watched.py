"""The bodies of replies, under watch.

A body that only trickles is given up instead of holding a place until the total deadline; and where a body breaks
off, what had come of it is kept: it was perhaps paid for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import httpx2

from pipeline.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: After the head, this many seconds may pass without the body growing by `MIN_PROGRESS_BYTES`.
PROGRESS_WINDOW_S = 60.0
MIN_PROGRESS_BYTES = 1024


class WatchedBody(httpx2.AsyncByteStream):
    """A body as it comes. The watch is a timer of its own, so that a piece costs nothing more."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply
        self._had_bytes = 0
        self._trickled = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces.

        Raises:
            OutcomeUnknown: it broke off or trickled; carries what had come.
        """
        came: list[bytes] = []
        try:
            if not self._reply.content.is_eof():
                self._look_again()
            async for piece in self._reply.content.iter_any():
                came.append(piece)
                yield piece
        except (aiohttp.ClientError, OSError) as broke:
            raise self._broken(broke, b"".join(came)) from broke
        finally:
            self._stop_looking()

    async def aclose(self) -> None:
        """Where the whole body has come, its connection serves the next call; else it is closed."""
        self._stop_looking()
        self._reply.release()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_WINDOW_S, self._look)

    def _look(self) -> None:
        has_bytes = self._reply.content.total_bytes
        if has_bytes - self._had_bytes < MIN_PROGRESS_BYTES:
            self._trickled = True
            self._reply.close()  # whoever reads is told
        else:
            self._had_bytes = has_bytes
            self._look_again()

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _broken(self, broke: Exception, came: bytes) -> OutcomeUnknown:
        if self._trickled:
            words = (
                f"the reply trickled in: {len(came)} bytes, then less than {MIN_PROGRESS_BYTES} in "
                f"{PROGRESS_WINDOW_S:.0f} s"
            )
            return OutcomeUnknown(words, timed_out=True, raw=came)
        return OutcomeUnknown(f"the connection broke in mid-reply: {broke}".rstrip(": "), raw=came)
