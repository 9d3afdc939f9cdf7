"""The bodies of replies, under watch.

A body that only trickles is given up instead of holding a place until the total deadline; one that is larger than
any reply, or unpacks to that, is given up too; and where a body breaks off, what had come of it is kept: it was
perhaps paid for.
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

    from audiobatch.transports.reply_memory import Held

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
