"""Open sessions of one deployment: one an item, kept between its turns, never more than the limit.

A kept session is only a saving: where the limit is reached, the one that has waited longest is closed for a
new one, and its item's next turn replays the words. So whoever may call also gets a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai.resources.realtime.realtime import AsyncRealtimeConnection

    from pipeline.model import Request

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
        self._room = asyncio.Condition()
        #: The most that were ever open at once: for tests and the log.
        self.peak = 0

    def take(self, item_id: str) -> Session | None:
        """The session kept for an item; it is the caller's now."""
        return self._kept.pop(item_id, None)

    def keep(self, session: Session) -> None:
        """For the item's next turn."""
        self._kept[session.item_id] = session

    async def reserve(self) -> None:
        """Wait for room for one more; `release` or `close` gives it back."""
        async with self._room:
            while self._open >= self._most:
                if self._kept:
                    self.close(self._kept.popitem(last=False)[1])
                await self._room.wait()
            self._open += 1
            self.peak = max(self.peak, self._open)

    async def release(self) -> None:
        """A reserved session did not come about, or is closed."""
        async with self._room:
            self._open -= 1
            self._room.notify()

    def close(self, session: Session) -> None:
        """End a session, in the background: nobody waits for a closing handshake."""
        task = asyncio.get_running_loop().create_task(self._close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: Session) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(session.connection.close(), CLOSE_TIMEOUT_S)
        await self.release()

    async def aclose(self) -> None:
        """Close all that are kept."""
        while self._kept:
            self.close(self._kept.popitem()[1])
        await asyncio.gather(*self._closing, return_exceptions=True)
