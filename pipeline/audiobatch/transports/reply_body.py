"""Read the body of a reply as it arrives: unpacked, bounded in size and memory, and watched.

A body that only trickles is given up, so that it does not occupy a call until the total deadline. A body that is
larger than any reply, or unpacks to that, is given up too. Where a body breaks off, the error carries what had
arrived: it was perhaps paid for.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import TYPE_CHECKING

import aiohttp
import httpx2

from audiobatch.errors import BadReply, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from audiobatch.transports.reply_memory import CallMemory

#: What one reply may unpack to, unless the job says otherwise.
LARGEST_REPLY_BYTES = 128_000_000
#: After the head, this many seconds may pass without the body growing by `MIN_PROGRESS_BYTES`.
PROGRESS_WINDOW_S = 60.0
MIN_PROGRESS_BYTES = 1024
#: How much is read of an error's body, and stored of a body that is too large.
DIAGNOSIS_BYTES = 1 << 20
#: `Accept-Encoding`: what can be unpacked within bounds.
ACCEPTED_ENCODINGS = "gzip, deflate"
#: `Content-Encoding` → zlib's window. Source: RFC 9110, section 8.4.1; zlib.net, `inflateInit2`.
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
#: How much a packed body unpacks to at a time.
_PIECE_BYTES = 1 << 20

log = logging.getLogger(__name__)


class WatchedBody(httpx2.AsyncByteStream):
    """A body as it arrives, unpacked. A timer watches its progress, so that pieces cost nothing more."""

    def __init__(self, reply: aiohttp.ClientResponse, memory: CallMemory, *, largest_bytes: int) -> None:
        """Args: `largest_bytes`: what it may unpack to; of an error only `DIAGNOSIS_BYTES` are read."""
        self._reply = reply
        self._memory = memory
        self._largest_bytes = largest_bytes
        self._is_error = not 200 <= reply.status < 300
        self._seen_bytes = 0
        self._trickled = False
        self._packed: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body's pieces.

        Raises:
            OutcomeUnknown: the body broke off or trickled; carries what had arrived.
            BadReply: it is too large, or packed in a way that cannot be read; carries its beginning.
        """
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            if not self._reply.content.is_eof():
                self._start_timer()
            async for piece in self._unpacked():
                size_bytes += len(piece)
                if self._is_error and size_bytes > DIAGNOSIS_BYTES:
                    yield piece[: DIAGNOSIS_BYTES - size_bytes]
                    self._reply.close()
                    return
                if size_bytes > self._largest_bytes:
                    self._reply.close()
                    raise self._too_large(b"".join(pieces)[:DIAGNOSIS_BYTES])
                await self._memory.grow(len(piece))
                pieces.append(piece)
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken_off(error, b"".join(pieces)) from error
        except zlib.error as error:
            raw = b"".join([*self._packed, *[piece async for piece in self._rest()]])
            raise BadReply(f"the reply cannot be unpacked: {error}", raw=raw) from error
        finally:
            self._stop_timer()

    async def _unpacked(self) -> AsyncIterator[bytes]:
        """Yield the body unpacked, at most `_PIECE_BYTES` at a time."""
        encoding = self._reply.headers.get("Content-Encoding", "").strip().lower()
        window = _WINDOWS.get(encoding)
        if window is None and encoding not in {"", "identity"}:
            raw = b"".join([piece async for piece in self._rest()])
            raise BadReply(f"the reply is packed as {encoding[:40]!r}, which was not asked for", raw=raw)
        unpack = None if window is None else zlib.decompressobj(window)
        has_unpacked = False
        async for piece in self._reply.content.iter_any():
            if unpack is None:
                yield piece
            else:
                packed = piece
                self._packed.append(piece)
                while packed:
                    unpacked = unpack.decompress(packed, _PIECE_BYTES)
                    packed = unpack.unconsumed_tail
                    if unpacked:
                        has_unpacked = True
                        yield unpacked
                        await asyncio.sleep(0)
            # Buffered bytes are read without a pause: without this, time-outs would not get their turn.
            await asyncio.sleep(0)
        if unpack is None:
            return
        if rest := unpack.flush():
            yield rest
        elif not has_unpacked and self._packed:
            raise zlib.error("it breaks off before its first byte")

    async def _rest(self) -> AsyncIterator[bytes]:
        """Yield the rest of a body that cannot be unpacked, as it arrives; it was paid for."""
        left_bytes = self._largest_bytes - sum(map(len, self._packed))
        try:
            async for piece in self._reply.content.iter_any():
                left_bytes -= len(piece)
                if left_bytes < 0:
                    break
                await self._memory.grow(len(piece))
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            log.info("a body that cannot be read broke off, too: %s", error)

    async def aclose(self) -> None:
        """Return the connection to the pool where the whole body was read; else close it."""
        self._stop_timer()
        self._reply.release()

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_WINDOW_S, self._check_progress)

    def _check_progress(self) -> None:
        received_bytes = self._reply.content.total_bytes
        if received_bytes - self._seen_bytes < MIN_PROGRESS_BYTES and not self._memory.is_waiting:
            self._trickled = True
            self._reply.close()  # the reader gets an error
        else:
            self._seen_bytes = received_bytes
            self._start_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self, beginning: bytes) -> BadReply:
        message = f"the reply is larger than {self._largest_bytes / 1_000_000:.0f} MB (--max-reply-mb)"
        return BadReply(f"{message}; its beginning is kept", raw=beginning)

    def _broken_off(self, error: Exception, received: bytes) -> OutcomeUnknown:
        if self._trickled:
            message = (
                f"the reply trickled in: {len(received)} bytes, then less than {MIN_PROGRESS_BYTES} in "
                f"{PROGRESS_WINDOW_S:.0f} s"
            )
            return OutcomeUnknown(message, timed_out=True, raw=received)
        return OutcomeUnknown(f"the connection broke in mid-reply: {error}".rstrip(": "), raw=received)
