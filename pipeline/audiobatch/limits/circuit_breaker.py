"""A circuit breaker: a failing deployment gets no calls for a while, then one call at a time.

    closed      calls are made; `OPENS_AFTER` failures without a success between them open the circuit
    open        no call for 2 s, then twice as long each time, up to two minutes (drawn at random, ± 25 %)
    half open   a single call is made: success closes the circuit, failure opens it again

Failures are errors of the service (500 to 529, time-outs, no connection). A refusal for rate is not one: it shows
that the service is reachable.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OPENS_AFTER = 5
FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 120.0


@dataclass(slots=True)
class Circuit:
    """The circuit breaker of one deployment.

    Attributes:
        failures: failures since the last success.
        since_s: time of the first failure since the last answer; infinite: there is none.
        open_until_s: no call is made before this time.
        half_open: the next call is made alone.
        draw: returns a random number between two.
    """

    failures: int = 0
    since_s: float = math.inf
    open_until_s: float = -math.inf
    half_open: bool = False
    draw: Callable[[float, float], float] = field(default=random.uniform, repr=False)
    _opened: int = 0

    def failed(self, sent_s: float, now_s: float) -> None:
        """Count a call, sent at `sent_s`, that failed because of the service."""
        self.since_s = min(self.since_s, now_s)
        self.failures += 1
        if self.failures < OPENS_AFTER and not self.half_open:
            return
        if now_s < self.open_until_s or (self.half_open and sent_s < self.open_until_s):
            return  # it was in flight when the circuit opened
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**self._opened) * self.draw(0.75, 1.25)
        self._opened += 1
        self.open_until_s = now_s + wait_s
        self.half_open = True

    def answered(self) -> None:
        """Count an answer other than a reply: the service is reachable."""
        self.since_s = math.inf

    def succeeded(self) -> None:
        """Count a call that ended well: the circuit closes."""
        self.failures = self._opened = 0
        self.since_s = math.inf
        self.open_until_s = -math.inf
        self.half_open = False

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a call may be made."""
        return max(0.0, self.open_until_s - now_s)

    def down_s(self, now_s: float) -> float:
        """Return for how many seconds there were only failures."""
        return max(0.0, now_s - self.since_s)
