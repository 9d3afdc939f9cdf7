"""How many retries a whole job may make: a share of what succeeds, so that an outage does not become a storm.

A bucket of tokens. A retry takes one; a call that ends well gives a tenth back; and a trickle over time lets the
last items of a job try again though nothing else succeeds any more. An empty bucket refuses: the item goes to
the end of the queue. It is deferred, never failed.

Source of the idea: the retry quota of AWS's SDKs ("standard" retry mode), and "Handling Overload" in Google's
Site Reliability Engineering book (retries at most a tenth of all requests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY = 50.0
SHARE = 0.1
TRICKLE_PER_S = 0.5


@dataclass(slots=True)
class RetryBudget:
    """One a job.

    Attributes:
        refused: how often a retry was deferred.
    """

    clock: Callable[[], float]
    capacity: float = CAPACITY
    tokens: float = CAPACITY
    refused: int = 0
    _filled_at_s: float = field(default=-math.inf)

    def allows(self) -> bool:
        """Take a token for one retry; False: there is none."""
        self._trickle()
        if self.tokens < 1.0 - 1e-9:  # ten tenths are one
            self.refused += 1
            return False
        self.tokens -= 1.0
        return True

    def succeeded(self) -> None:
        """A call ended well."""
        self.tokens = min(self.capacity, self.tokens + SHARE)

    def room_in_s(self) -> float:
        """Seconds until there is a token, by time alone."""
        self._trickle()
        return max(0.0, 1.0 - self.tokens) / TRICKLE_PER_S

    def _trickle(self) -> None:
        now_s = self.clock()
        if self._filled_at_s > -math.inf:
            self.tokens = min(self.capacity, self.tokens + (now_s - self._filled_at_s) * TRICKLE_PER_S)
        self._filled_at_s = now_s
