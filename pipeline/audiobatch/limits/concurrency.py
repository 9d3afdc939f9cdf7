"""How many calls to have in flight where the user does not say: the window grows until the service pushes back.

    slow start    one more for each call that ends well: the window doubles each round
    after the first refusal
                  a twentieth more for each call that ends well: 5 % each round
    growth        only while at least 80 % of the window was in use in this round
    known rate    the window is at least what that rate needs
    refusal       × 0.8, once per episode of 15 s, but not below what the known rate needs. A refusal that a stall
                  explains cuts nothing
    server error  cuts nothing: the circuit breaker pauses the deployment

A rate needs, by Little's law, calls a second × seconds a call.

`Gate` limits how many items are open at once. An open item holds its recording in memory. There are as many
workers as calls may ever be in flight; the gate lets in as many as the deployments have room for now, and a quarter
more, so that one is always ready.
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

#: Where slow start begins, after the first call.
START = 4.0
#: More connections than this are opened only where `--max-concurrency` says so.
MAX_IN_FLIGHT = 512
#: Refusals within this time have one cause and are answered once.
EPISODE_S = 15.0
CUT = 0.8
GROWTH = 0.05
IN_USE = 0.8
#: How many times the calls that a known rate needs are allowed.
_SPARE = 1.1


@dataclass(slots=True)
class AdaptiveConcurrency:
    """The window of calls in flight of one deployment.

    Attributes:
        maximum: the window never grows beyond this.
        window: calls that may be in flight now, before rounding down.
        latency_s: mean latency of the last twenty calls or so; None before the first.
    """

    maximum: int = MAX_IN_FLIGHT
    window: float = START
    latency_s: float | None = None
    _slow_start: bool = True
    _cut_at_s: float = -math.inf
    _before_cut: tuple[float, bool] | None = None
    _most: int = 0
    _ended: int = 0

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return max(1, min(self.maximum, int(self.window)))

    def began(self, in_flight: int) -> None:
        """Count a call that starts; `in_flight` includes it."""
        self._most = max(self._most, in_flight)

    def ended_well(self, latency_s: float, *, rate_per_s: float | None = None) -> None:
        """Grow the window after a call that ended well.

        Args:
            latency_s: seconds that the call took.
            rate_per_s: calls a second that the deployment is known to accept; None: not known.
        """
        self.latency_s = (
            latency_s if self.latency_s is None else self.latency_s + 0.05 * (latency_s - self.latency_s)
        )
        if self._most >= IN_USE * self.limit:
            self.window += 1.0 if self._slow_start else GROWTH
        if rate_per_s is not None:
            self.window = max(self.window, rate_per_s * self.latency_s * _SPARE)
        self.window = min(self.window, float(self.maximum))
        self._ended += 1
        if self._ended >= self.limit:  # a round is over
            self._ended = self._most = 0

    def refused(self, now_s: float, *, rate_per_s: float | None = None) -> bool:
        """Cut the window after a refusal for rate.

        Args:
            now_s: time of the refusal.
            rate_per_s: calls a second that the deployment is known to accept; the window is not cut below what
                they need.

        Returns:
            Whether the refusal starts an episode, so that the window was cut.
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
        """Undo the cuts since the last undo: the refusals did not depend on the rate."""
        if self._before_cut is not None:
            window, self._slow_start = self._before_cut
            self.window = max(self.window, window)
            self._before_cut = None
            self._cut_at_s = -math.inf


#: Items open at once, for each call that may be in flight, and in addition.
_OPEN_PER_CALL = 1.25
_OPEN_IN_ADDITION = 2


class Gate:
    """Limits how many items are open at once; a worker enters it before it takes an item."""

    def __init__(self, room: Callable[[], int]) -> None:
        """Create a gate.

        Args:
            room: returns how many calls may be in flight now, on all deployments.
        """
        self._room = room
        self.open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait until there is room for an item, which is open for the length of the block."""
        if self.open >= self._capacity or self._waiting:
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
        """Let another item in for the length of the block, while this one waits for its next attempt."""
        self._leave()
        try:
            yield
        finally:
            self.open += 1

    def let_in(self) -> None:
        """Let in as many items as there is room for; called when the room has grown."""
        while self._waiting and self.open < self._capacity:
            turn = self._waiting.popleft()
            if not turn.done():
                self.open += 1
                turn.set_result(None)

    def _leave(self) -> None:
        self.open -= 1
        self.let_in()

    @property
    def _capacity(self) -> int:
        return int(self._room() * _OPEN_PER_CALL) + _OPEN_IN_ADDITION
