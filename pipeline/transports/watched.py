"""A watch over the bodies of replies.

A reply that only trickles is given up instead of holding a place until the total deadline; and where a body breaks
off, what had come of it is kept: it was perhaps paid for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx2

from pipeline.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: After the first byte, this many seconds may pass without the body growing by `MIN_PROGRESS_BYTES`.
PROGRESS_WINDOW_S = 60.0
MIN_PROGRESS_BYTES = 1024


async def watch(response: httpx2.Response) -> None:
    """A response hook of the SDK's HTTP client: whoever reads this body is told when it goes wrong."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _WatchedBody(response.stream)


class _WatchedBody(httpx2.AsyncByteStream):
    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces.

        Raises:
            OutcomeUnknown: it broke off or trickled; carries what had come.
        """
        came: list[bytes] = []
        size_bytes = had_bytes = 0
        window_ends_s = time.monotonic() + PROGRESS_WINDOW_S
        try:
            async for piece in self._body:
                came.append(piece)
                size_bytes += len(piece)
                now_s = time.monotonic()
                if now_s >= window_ends_s:
                    if size_bytes - had_bytes < MIN_PROGRESS_BYTES:
                        raise OutcomeUnknown(
                            f"the reply trickled in: {size_bytes} bytes, then less than {MIN_PROGRESS_BYTES} in "
                            f"{PROGRESS_WINDOW_S:.0f} s",
                            timed_out=True,
                            raw=b"".join(came),
                        )
                    had_bytes, window_ends_s = size_bytes, now_s + PROGRESS_WINDOW_S
                yield piece
        except httpx2.HTTPError as broke:
            late = isinstance(broke, httpx2.TimeoutException)
            what = (
                "the service stopped answering in mid-reply" if late else "the connection broke in mid-reply"
            )
            raise OutcomeUnknown(
                f"{what}: {broke}".rstrip(": "), timed_out=late, raw=b"".join(came)
            ) from broke

    async def aclose(self) -> None:
        await self._body.aclose()
