"""Refusals that a standstill explains: of this machine, of the network, or of the service.

A rate that is kept to the quota fills the service's window nearly to its brim, and calls that arrive together after
a standstill overfill it. Such a refusal names a short wait, and once that was kept to the calls fit again: neither
the quota nor the rate is another one. What tells it from a quota that was cut, or that others use too, is that it
comes alone. (So a limit that its user gave a few percent too high is kept to, at one refusal in a hundred.)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

#: A standstill's refusal names no longer wait.
LONGEST_NAMED_S = 1.0
#: So many of them within so many seconds, or calls, are no chance; nor are so many in a minute, or such a share of
#: its calls.
MANY, WITHIN_S, WITHIN_CALLS = 6, 6.0, 100
MANY_A_MINUTE, SHARE = 8, 0.005
#: For so long after a refusal that no standstill explains, further ones are not explained by one either.
AFTERMATH_S = 15.0


@dataclass(slots=True)
class Standstills:
    """One deployment's."""

    _began_s: deque[float] = field(default_factory=deque)
    _resumed_s: float = -math.inf
    _unexplained_until_s: float = -math.inf

    def explains(self, sent_s: float, now_s: float, wait_s: float, per_minute: float) -> bool:
        """Whether a refusal says nothing of the rate.

        Args:
            sent_s: when the refused call left.
            now_s: when the refusal came.
            wait_s: what it names; 0: nothing.
            per_minute: the rate kept to.
        """
        if sent_s > self._resumed_s:
            self._began_s.append(now_s)
        self._resumed_s = max(self._resumed_s, now_s + wait_s)
        clump_s = max(WITHIN_S, WITHIN_CALLS * 60 / per_minute)
        while self._began_s and self._began_s[0] < now_s - max(60.0, clump_s):
            self._began_s.popleft()
        clump = sum(moment > now_s - clump_s for moment in self._began_s)
        many = clump >= MANY or len(self._began_s) >= max(MANY_A_MINUTE, SHARE * per_minute)
        if many or wait_s > LONGEST_NAMED_S:
            self._unexplained_until_s = now_s + wait_s + AFTERMATH_S
        return now_s > self._unexplained_until_s
