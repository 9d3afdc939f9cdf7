"""How fast one deployment may be called: calls in flight, requests a minute, tokens a minute.

Each quota is a line in time (a leaky bucket without a bucket): `n` units at `r` units a second move the moment
of the next call by n/r seconds. Nothing is sent in a burst, since the service judges windows of 1 to 10
seconds, not minutes. Tokens are reserved by an estimate and put right when the reply says what they were.

Callers are served in the order they came. Time and sleep are injected, so tests take no time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: A call that was late by up to this much does not cost the quota anything: timers and event loops are late.
CATCH_UP_S = 0.25


@dataclass(slots=True)
class Pace:
    """One quota as a line in time.

    Attributes:
        per_minute: units a minute; None: no limit.
        next_s: the moment (monotonic) from which the next unit may be spent.
    """

    per_minute: float | None
    next_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        return 0.0 if self.per_minute is None else max(0.0, self.next_s - now_s)

    def spend(self, units: float, now_s: float) -> None:
        if self.per_minute is not None:
            self.next_s = max(self.next_s, now_s - CATCH_UP_S) + units * 60 / self.per_minute

    def correct(self, units: float) -> None:
        """Give back (negative) or take (positive) what an estimate was off by."""
        if self.per_minute is not None:
            self.next_s += units * 60 / self.per_minute


@dataclass(slots=True, eq=False)
class Lease:
    """The right to make one call. Release it exactly once, with the tokens it really took where known."""

    limiter: Limiter
    tokens: float
    _released: bool = field(default=False)

    def release(self, actual_tokens: float | None = None) -> None:
        if self._released:
            return
        self._released = True
        self.limiter._give_back(self, actual_tokens)  # noqa: SLF001 - one module, one mechanism


class Limiter:
    """Shared by every call to one deployment from this process."""

    def __init__(
        self,
        *,
        max_concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.max_concurrency = max_concurrency
        self.requests = Pace(rpm)
        self.tokens = Pace(tpm)
        self.in_flight = 0
        self._clock = clock
        self._sleep = sleep
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()
        self._paused_until_s = 0.0
        self._pause_reason = ""

    async def acquire(self, tokens: float) -> Lease:
        """Wait for a free place, the end of a pause, and both quotas; then the call may be made."""
        async with self._line:
            while True:
                while self.in_flight >= self.max_concurrency:
                    self._freed.clear()
                    await self._freed.wait()
                now_s = self._clock()
                wait_s = max(
                    self._paused_until_s - now_s, self.requests.wait_s(now_s), self.tokens.wait_s(now_s)
                )
                if wait_s <= 0:
                    break
                await self._sleep(wait_s)
            self.requests.spend(1, now_s)
            self.tokens.spend(tokens, now_s)
            self.in_flight += 1
            return Lease(self, tokens)

    def _give_back(self, lease: Lease, actual_tokens: float | None) -> None:
        self.in_flight -= 1
        self._freed.set()
        if actual_tokens is not None:
            self.tokens.correct(actual_tokens - lease.tokens)

    def pause(self, seconds: float, reason: str) -> None:
        """Nobody calls for this long; a longer pause that is under way stays."""
        until_s = self._clock() + seconds
        if until_s > self._paused_until_s:
            self._paused_until_s = until_s
            self._pause_reason = reason

    @property
    def paused_s(self) -> float:
        """Seconds that are left of a pause."""
        return max(0.0, self._paused_until_s - self._clock())

    def binding(self) -> str:
        """Which limit calls are waiting for, in a word; empty when none are."""
        if not self._line.locked():
            return ""
        now_s = self._clock()
        if self._paused_until_s > now_s:
            return self._pause_reason
        if self.in_flight >= self.max_concurrency:
            return "concurrency"
        waits = {
            "requests a minute": self.requests.wait_s(now_s),
            "tokens a minute": self.tokens.wait_s(now_s),
        }
        name = max(waits, key=lambda one: waits[one])
        return name if waits[name] > 0 else ""
