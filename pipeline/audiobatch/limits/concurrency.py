"""How many calls to have in flight when nobody said: found by growing until the service pushes back.

    slow start    one more for each call that ends well: twice as many each round
    after the first refusal
                  a twentieth more for each call that ends well: 5 % each round
    growth        only while at least 80 % of the window was in use in this round; else there is nothing to learn
    known rate    the window is at least what that rate needs
    refusal       × 0.8, once an episode of 15 s, but not below what the learned rate needs; one that a standstill
                  explains cuts nothing: the rate is kept, and Little's law says what it needs
    server error  none of its business: the circuit pauses, nothing is cut

Little's law says what a rate needs: calls in flight = calls a second × seconds a call. Where a rate binds, the
window stops growing a quarter above that.

The `Gate` says how many items may be open at once: a few more than calls that may be in flight.

An open item holds its recording in memory. Workers are as many as calls may ever be in flight; the gate lets in
only as many as the deployments have room for today, and a quarter more, so that one is always ready to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

#: Where slow start begins, after the scout.
START = 4.0
#: Nobody wants more connections than this without having said so.
CEILING = 512
#: A burst of refusals within this time has one cause and is answered once.
EPISODE_S = 15.0
CUT = 0.8
GROWTH = 0.05
IN_USE = 0.8
#: A learned rate's need is met with this much to spare.
_SPARE = 1.1


@dataclass(slots=True)
class AdaptiveConcurrency:
    """One deployment's window of calls in flight.

    Attributes:
        ceiling: it never grows past this.
        window: how many calls may be in flight now, before rounding down.
        latency_s: mean seconds a call, of the last twenty or so; None before the first.
    """

    ceiling: int = CEILING
    window: float = START
    latency_s: float | None = None
    _slow_start: bool = True
    _cut_at_s: float = -math.inf
    _before_cut: tuple[float, bool] | None = None
    _most: int = 0
    _ended: int = 0

    @property
    def limit(self) -> int:
        return max(1, min(self.ceiling, int(self.window)))

    def began(self, in_flight: int) -> None:
        """A call is being made; `in_flight` counts it."""
        self._most = max(self._most, in_flight)

    def ended_well(self, latency_s: float, *, rate_per_s: float | None = None) -> None:
        """A call ended well, after so many seconds; `rate_per_s`: calls a second that are known to pass."""
        self.latency_s = (
            latency_s if self.latency_s is None else self.latency_s + 0.05 * (latency_s - self.latency_s)
        )
        if self._most >= IN_USE * self.limit:
            self.window += 1.0 if self._slow_start else GROWTH
        if rate_per_s is not None:
            self.window = max(self.window, rate_per_s * self.latency_s * _SPARE)
        self.window = min(self.window, float(self.ceiling))
        self._ended += 1
        if self._ended >= self.limit:  # a round is over
            self._ended = self._most = 0

    def refused(self, now_s: float, *, rate_per_s: float | None = None) -> bool:
        """The service refused a call for rate.

        Args:
            now_s: when.
            rate_per_s: calls a second that were learned to pass; the window is not cut below their need.

        Returns:
            Whether this begins an episode.
        """
        if now_s - self._cut_at_s < EPISODE_S:
            return False
        before, in_slow_start = self._before_cut or (0.0, self._slow_start)
        self._before_cut = (max(before, self.window), in_slow_start)
        self._slow_start = False
        self._cut_at_s = now_s
        need = rate_per_s * self.latency_s * _SPARE if rate_per_s and self.latency_s else 1.0
        self.window = max(1.0, min(self.window, max(self.window * CUT, need)))
        return True

    def take_back(self) -> None:
        """The refusals that it was cut for had another cause: as it was before them."""
        if self._before_cut is not None:
            window, self._slow_start = self._before_cut
            self.window = max(self.window, window)
            self._before_cut = None
            self._cut_at_s = -math.inf


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
