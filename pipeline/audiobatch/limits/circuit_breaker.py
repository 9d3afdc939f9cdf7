"""A deployment in trouble is left alone, and asked again by one call at a time.

    closed      calls go out; `OPENS_AFTER` failures without a success between them open it
    open        no call for 2 s, then twice as long each time, up to two minutes (drawn at random, ± 25 %)
    half open   one call goes, a scout: a success closes it, a failure opens it again

Failures are the service's troubles (500 to 529, time-outs, no connection), not refusals for rate: those close
nothing, but whoever refuses is there.
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
    """One deployment's.

    Attributes:
        failures: since the last success.
        since_s: when the first of them came that no answer has followed; infinite while there is none.
        open_until_s: no call before this moment.
        half_open: the next call is a scout.
    """

    failures: int = 0
    since_s: float = math.inf
    open_until_s: float = -math.inf
    half_open: bool = False
    draw: Callable[[float, float], float] = field(default=random.uniform, repr=False)
    _opened: int = 0

    def failed(self, sent_s: float, now_s: float) -> None:
        """A call that was sent at `sent_s` came to nothing by the service's doing."""
        self.since_s = min(self.since_s, now_s)
        self.failures += 1
        if self.failures < OPENS_AFTER and not self.half_open:
            return
        if now_s < self.open_until_s or (self.half_open and sent_s < self.open_until_s):
            return  # one of those that were in flight when it opened
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**self._opened) * self.draw(0.75, 1.25)
        self._opened += 1
        self.open_until_s = now_s + wait_s
        self.half_open = True

    def answered(self) -> None:
        """A call was answered, though not with a reply: the service is there."""
        self.since_s = math.inf

    def succeeded(self) -> None:
        """A call ended well."""
        self.failures = self._opened = 0
        self.since_s = math.inf
        self.open_until_s = -math.inf
        self.half_open = False

    def wait_s(self, now_s: float) -> float:
        """Seconds until a call may go."""
        return max(0.0, self.open_until_s - now_s)

    def down_s(self, now_s: float) -> float:
        """How long nothing but failures has come."""
        return max(0.0, now_s - self.since_s)
