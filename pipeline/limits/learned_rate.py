"""How many requests a minute a deployment takes: as its user says, as its headers say, or as refusals teach.

A rate that was given or told is kept to from the first call. Where neither is there, or where calls are refused
although it is kept, the rate is found as a TCP sender finds its share:

    a refusal      the *edge* is what passed in the window that the service judges; go on at 98.5 % of it
    again, soon    the edge was wrong (the quota was cut): 90 % of what passed in the last second, for 15 s;
                   96 % where that was near the rate, for then calls only came bunched
    below the edge grow by 5 % each 3 s until 98.5 % of the edge
    at the edge    hold for 45 s; for 12 s while the edge was found only once, or a limit was given or told
    then           look beyond it by 1.5 % each 3 s; by 5 % once 3 % past it, or where it was found only once

Where a limit was given or told, a refusal now and then is a network's jitter: 1.5 % less for 12 s, no more, unless
such refusals come in a row.

So a stable quota is used at 98 to 103 % and costs a refusal or two a minute; a doubled one is found in 90 s.
The wait that a refusal names tells the window: up to 10 s a short one, more the minute's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

#: A refusal of a call that was sent so soon after a cut's pause says that the cut was not deep enough.
EPISODE_S = 15.0
HOLD_S = 45.0
FIRST_HOLD_S = 12.0
STEP_S = 3.0
BELOW_EDGE = 0.985
GROWTH = 1.05
LOOK = 1.015
PAST_EDGE = 1.03
DEEPER = 0.9
A_LITTLE_DEEPER = 0.96
#: Where at least this share of the rate passed in the last second, the quota was not cut: calls came bunched.
NOT_FAR = 0.8
#: Two edges that differ by less are the same edge, found twice.
SAME_EDGE = 0.06
#: Waits up to this are of windows of 1 to 10 s; longer ones, up to the second bound, of the minute.
SHORT_WAIT_S = 10.5
LONGEST_MINUTE_WAIT_S = 75.0
MINUTE_S = 60.0
_WINDOWS_S = (1.0, 2.0, 5.0, 10.0)
_LEAST_PER_MINUTE = 1.0
#: Fewer calls than this in a short window say nothing about a rate.
_ENOUGH = 4
_IN_USE = 0.8
#: After a pause of this length the last second is measured only when most of it was spent sending.
_LONG_PAUSE_S = 1.0
_WARM_S = 0.7
#: So many first cuts of an episode within a minute say that a limit which was given or told is not the service's.
_MANY = 3


@dataclass(slots=True)
class LearnedRate:
    """Requests a minute of one deployment.

    Attributes:
        given: by the user; never passed, and what headers say does not count.
        told: by the service's headers.
        edge: requests a minute above which calls were refused; None: none were.
        part: of the deployment's limit that is this process's, where several share it.
    """

    given: float | None = None
    told: float | None = None
    edge: float | None = None
    part: float = 1.0
    _rate: float | None = None
    _is_sure: bool = False
    _sent_s: deque[float] = field(default_factory=deque)
    _refused_s: deque[float] = field(default_factory=deque)
    _cut_at_s: float = -math.inf
    _cuts_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MANY))
    _cuts_in_a_row: int = 0
    _resumed_at_s: float = -math.inf
    _quiet_until_s: float = -math.inf
    _grow_at_s: float = math.inf
    _used: int = 0
    _used_since_s: float = -math.inf

    @property
    def ceiling(self) -> float | None:
        whole = self.given if self.given is not None else self.told
        return None if whole is None else whole * self.part

    @property
    def per_minute(self) -> float | None:
        """The rate to keep; None: nothing is known."""
        known = [rate for rate in (self.ceiling, self._rate) if rate is not None]
        return min(known) if known else None

    def tell(self, per_minute: float) -> None:
        """A header says the limit. Another one than before makes all that was learned void."""
        if per_minute != self.told:
            self.told = per_minute
            if self.given is None:
                self.edge = self._rate = None
                self._is_sure = False
                self._grow_at_s = math.inf

    def share(self, part: float) -> None:
        """Keep to this part of the limit from now on; what was learned was of the part so far."""
        grows = part / self.part
        self.part = part
        self.edge = None if self.edge is None else self.edge * grows
        self._rate = None if self._rate is None else self._rate * grows

    def sent(self, now_s: float) -> None:
        """A request is being sent."""
        self._sent_s.append(now_s)
        self._used += 1
        for moments in (self._sent_s, self._refused_s):
            while moments and moments[0] < now_s - MINUTE_S:
                moments.popleft()
        if now_s >= self._grow_at_s:
            self._grow(now_s)

    def refused(self, sent_s: float, now_s: float, wait_s: float | None) -> None:
        """A request that was sent at `sent_s` was refused, with the wait that the service named."""
        named_s = wait_s or 0.0
        self._refused_s.append(sent_s)
        if sent_s <= self._cut_at_s or named_s > LONGEST_MINUTE_WAIT_S:
            return  # sent before the last cut, which answered it; or a wait that is no window's
        again = sent_s < self._resumed_at_s + EPISODE_S
        passed = self._passed(now_s, named_s, again=again)
        known = self.per_minute
        self._cut_at_s, self._resumed_at_s = now_s, now_s + named_s
        if not again:
            self._cuts_s.append(now_s)
        self._cuts_in_a_row = self._cuts_in_a_row + 1 if again else 0
        jitter = self.ceiling is not None and named_s < _LONG_PAUSE_S and self._cuts_in_a_row < _MANY
        if jitter and known is not None:
            self.edge, self._rate = known, known * BELOW_EDGE
            self._next_step(self._resumed_at_s, self._hold_s)
            return
        if named_s >= _LONG_PAUSE_S:
            self._quiet_until_s = now_s + named_s
        if passed is None and known is None:
            return  # the pause answers it; what rate would pass cannot be told
        edge = max(_LEAST_PER_MINUTE, min(math.inf if passed is None else passed, known or math.inf))
        self._is_sure = self.edge is not None and abs(edge - self.edge) <= SAME_EDGE * self.edge
        self.edge = edge
        cut = BELOW_EDGE
        if again:
            near = known is not None and passed is not None and passed >= NOT_FAR * known
            cut = A_LITTLE_DEEPER if near else DEEPER
        self._rate = max(_LEAST_PER_MINUTE, edge * cut)
        self._next_step(self._resumed_at_s, EPISODE_S if again else self._hold_s)

    @property
    def _hold_s(self) -> float:
        often = len(self._cuts_s) >= _MANY and self._cuts_s[-1] - self._cuts_s[-_MANY] < MINUTE_S
        return HOLD_S if often or (self._is_sure and self.ceiling is None) else FIRST_HOLD_S

    def _passed(self, now_s: float, wait_s: float, *, again: bool) -> float | None:
        """Requests a minute that passed, over the window that the service seems to judge; None: too few to tell."""
        if wait_s > SHORT_WAIT_S:
            return float(self._count(now_s - MINUTE_S)) or None
        if again and now_s - self._quiet_until_s < _WARM_S:
            return None  # a second that was mostly a pause
        windows = _WINDOWS_S[:1] if again else _WINDOWS_S
        counts = [(self._count(now_s - window_s), window_s) for window_s in windows]
        part = 0.5 if again else 0.0  # a short window holds few calls, and a part of the next
        rates = [(count + part) * MINUTE_S / window_s for count, window_s in counts if count >= _ENOUGH]
        return max(rates, default=None)

    def _count(self, since_s: float) -> int:
        sent = sum(1 for moment in self._sent_s if moment > since_s)
        return max(0, sent - sum(1 for moment in self._refused_s if moment > since_s))

    def _grow(self, now_s: float) -> None:
        rate, edge = self._rate, self.edge
        if rate is None or edge is None:
            self._grow_at_s = math.inf
            return
        elapsed_s = now_s - self._used_since_s
        idle = self._used * MINUTE_S / elapsed_s < _IN_USE * rate if elapsed_s > 0 else True
        near = BELOW_EDGE * edge
        if idle or (self.ceiling is not None and rate >= self.ceiling):
            pause_s = STEP_S
        elif rate < near:
            self._rate = min(rate * GROWTH, near)
            pause_s = self._hold_s if self._rate >= near else STEP_S
        else:
            self._rate = rate * (LOOK if self._is_sure and rate < PAST_EDGE * edge else GROWTH)
            pause_s = STEP_S
        self._next_step(now_s, pause_s)

    def _next_step(self, now_s: float, pause_s: float) -> None:
        self._grow_at_s = now_s + pause_s
        self._used, self._used_since_s = 0, now_s
