"""How fast one deployment may be called: calls in flight, requests a minute, tokens a minute.

Each quota is a line in time (a leaky bucket without a bucket): `n` units at `r` units a second move the moment
of the next call by n/r seconds. Nothing is sent in a burst, since the service judges windows of 1 to 10
seconds, not minutes. Tokens are reserved by an estimate and put right when the reply says what they were.

Nothing here waits: a limiter only says when there will be room. The waiting is the pool's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: A call that was late by up to this much does not cost the quota anything: timers and event loops are late.
CATCH_UP_S = 0.25


@dataclass(slots=True)
class Pace:
    """One quota as a line in time.

    Attributes:
        per_minute: units a minute; None: no limit.
        next_s: the moment (monotonic seconds) from which the next unit may be spent.
    """

    per_minute: float | None
    next_s: float = -math.inf

    def wait_s(self, now_s: float) -> float:
        return 0.0 if self.per_minute is None else max(0.0, self.next_s - now_s)

    def spend(self, units: float, now_s: float) -> None:
        if self.per_minute is not None:
            self.next_s = max(self.next_s, now_s - CATCH_UP_S) + units * 60 / self.per_minute

    def correct(self, units: float) -> None:
        """Take (positive) or give back (negative) what an estimate was off by."""
        if self.per_minute is not None:
            self.next_s += units * 60 / self.per_minute


class Limiter:
    """The limits of one deployment, and how much of them is in use."""

    def __init__(self, *, max_concurrency: int, rpm: float | None = None, tpm: float | None = None) -> None:
        self.max_concurrency = max_concurrency
        self.requests = Pace(rpm)
        self.tokens = Pace(tpm)
        self.in_flight = 0
        self._paused_until_s = -math.inf
        self.pause_reason = ""

    def room_in_s(self, now_s: float) -> float:
        """Seconds until a call may be made; infinite while only the end of another call makes room."""
        if self.in_flight >= self.max_concurrency:
            return math.inf
        return max(self.paused_s(now_s), self.requests.wait_s(now_s), self.tokens.wait_s(now_s))

    def take(self, tokens: float, now_s: float) -> None:
        """A call is being made that is thought to take this many tokens."""
        self.requests.spend(1, now_s)
        self.tokens.spend(tokens, now_s)
        self.in_flight += 1

    def give_back(self, tokens: float, actual_tokens: float | None) -> None:
        """The call has ended; its estimate is put right where the actual count is known."""
        self.in_flight -= 1
        if actual_tokens is not None:
            self.tokens.correct(actual_tokens - tokens)

    def pause(self, seconds: float, now_s: float, reason: str) -> None:
        """Nobody calls for this long; a longer pause that is under way stays."""
        if now_s + seconds > self._paused_until_s:
            self._paused_until_s = now_s + seconds
            self.pause_reason = reason

    def paused_s(self, now_s: float) -> float:
        """Seconds that are left of a pause."""
        return max(0.0, self._paused_until_s - now_s)

    def binding(self, now_s: float) -> str:
        """Which limit holds the next call back, in words; empty when none does."""
        if self.paused_s(now_s):
            return f"{self.pause_reason}, {self.paused_s(now_s):.0f} s left"
        if self.in_flight >= self.max_concurrency:
            return f"{self.max_concurrency} calls at once"
        tokens_s, requests_s = self.tokens.wait_s(now_s), self.requests.wait_s(now_s)
        if max(tokens_s, requests_s) <= 0:
            return ""
        if tokens_s > requests_s:
            return f"{self.tokens.per_minute:.0f} tokens a minute"
        return f"{self.requests.per_minute:.0f} requests a minute"
