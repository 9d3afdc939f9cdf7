"""Open sessions of one deployment: one an item, kept between its turns, never more than the limit.

A kept session is only a saving: where the limit is reached, the one that has waited longest is closed for a
new one, and its item's next turn replays the words. So whoever may call also gets a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed, WebSocketException

if TYPE_CHECKING:
    from openai.resources.realtime.realtime import AsyncRealtimeConnection

    from audiobatch.model import Request

log = logging.getLogger(__name__)

#: A closing handshake is a courtesy; a server that does not answer it is left.
CLOSE_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """One open session.

    Attributes:
        turns: how many of the item's turns it has heard and answered.
        ends_at_s: when the service will close it, by `time.time()`.
        settings: as last told by `session.update`; None before the first.
    """

    item_id: str
    connection: AsyncRealtimeConnection
    ends_at_s: float
    turns: int = 0
    model: str = ""
    settings: dict[str, Any] | None = None

    def serves(self, request: Request, *, for_s: float) -> bool:
        """Whether this request is the item's next turn, and can be answered before the session ends."""
        voice = (self.settings or {}).get("audio", {}).get("output", {}).get("voice")
        same = self.turns == len(request.history) and (not request.voice or request.voice == voice)
        return same and time.time() + for_s < self.ends_at_s


class Sessions:
    """The sessions of one deployment."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        #: The most that were ever open at once: for tests and the log.
        self.peak = 0

    def take(self, item_id: str) -> Session | None:
        """The session kept for an item; it is the caller's now."""
        return self._kept.pop(item_id, None)

    def keep(self, session: Session) -> None:
        """For the item's next turn, unless somebody needs the room before."""
        self._kept[session.item_id] = session
        self._wake()

    async def reserve(self) -> None:
        """Wait for room for one more; `release` or `close` gives it back."""
        while self._open >= self._most:
            if self._kept:
                self.close(self._kept.popitem(last=False)[1])
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # what woke this one is another's now
                raise
        self._open += 1
        self.peak = max(self.peak, self._open)

    def release(self) -> None:
        """A reserved session did not come about, or is closed."""
        self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def close(self, session: Session) -> None:
        """End a session, in the background: nobody waits for a closing handshake."""
        task = asyncio.get_running_loop().create_task(self._close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: Session) -> None:
        connection = session.connection
        transport = getattr(getattr(connection, "_connection", None), "transport", None)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                # What still comes is read away: behind unread frames the end would never be seen.
                await asyncio.gather(connection.close(), _read_away(connection))
        except (OSError, TimeoutError, WebSocketException) as failed:
            log.debug("a session did not end in order: %r", failed)
        finally:
            if transport is not None:
                transport.abort()
            self.release()

    async def aclose(self) -> None:
        """Close all that are kept."""
        while self._kept:
            self.close(self._kept.popitem()[1])
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _read_away(connection: AsyncRealtimeConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv_bytes()
