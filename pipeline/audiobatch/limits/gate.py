"""How many items may be open at once: a few more than calls that may be in flight.

An open item holds its recording in memory. Workers are as many as calls may ever be in flight; the gate lets in
only as many as the deployments have room for today, and a quarter more, so that one is always ready to go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_MORE = 1.25
_AT_LEAST = 2


class Gate:
    """Limits how many items are open at once; a worker enters it before it takes an item."""

    def __init__(self, room: Callable[[], int]) -> None:
        """Args: room: calls that may be in flight now, on all deployments."""
        self._room = room
        self.open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the block."""
        if self.open >= self._places or self._waiting:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self.let_in()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        else:
            self.open += 1
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def stepped_out(self) -> Iterator[None]:
        """An item that waits for its next try lets another in meanwhile."""
        self._leave()
        try:
            yield
        finally:
            self.open += 1

    def let_in(self) -> None:
        """Let in as many as there is room for; called when the room has grown."""
        while self._waiting and self.open < self._places:
            turn = self._waiting.popleft()
            if not turn.done():
                self.open += 1
                turn.set_result(None)

    def _leave(self) -> None:
        self.open -= 1
        self.let_in()

    @property
    def _places(self) -> int:
        return int(self._room() * _MORE) + _AT_LEAST
