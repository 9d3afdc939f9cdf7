"""One quota as a line in time: units are spent evenly, never in a burst.

A minute's quota is judged over windows of 1 to 10 seconds (PROTOCOL: learn.microsoft.com, "Manage Azure OpenAI
quota", 2026-11), so a minute's share sent at once is refused. Two lines are kept, and the later one decides:

    even      at the quota's rate; what was lost to a pause or a slow machine, up to `CATCH_UP_S`, is made good
    smooth    at 2 % more than that rate, with almost no memory: making good is spread out, never a burst. At the
              rate itself where it is not the whole of a known limit: then nothing is made good

So over any second at most 102 % of a second's share is sent, over a minute at most 100 % and `CATCH_UP_S`.

Processes that share a quota each keep to a part of it, and still several can fall into one second together: of
four with ten calls a second between them, each sends two or three in any one second. So they also take turns
(`TimeSlots`): the quota's own line is cut into stretches of one unit, and each process spends in every n-th.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Lost time that is made good later, a little at a time.
CATCH_UP_S = 2.5
#: How much faster than the quota's rate lost time is made good.
CATCH_UP_RATE = 1.02
#: What the smooth line forgives at once: timers and event loops are late by this much.
LATE_S = 0.02
#: Less than this is a clock's rounding.
_ROUNDING_S = 1e-6
#: Who is behind by less than this share of what may be made good uses the whole rate.
_NEARLY = 0.9
#: How far into its stretch a unit may still be spent; later, it could meet the next process's.
TURN_OPEN = 0.5
#: Shorter stretches than this nobody can keep to: then chance spreads the processes well enough.
SHORTEST_TURN_S = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSlots:
    """Which of the processes that share a quota this one is.

    Attributes:
        place: 0 to `count` - 1.
        clock_ahead_s: the clock that all of them read, less this process's own.
    """

    place: int
    count: int
    clock_ahead_s: float

    def wait_s(self, at_s: float, period_s: float) -> float:
        """Seconds from `at_s` until this process's stretch is open; a period holds one of each process."""
        stretch_s = period_s / self.count
        if self.count == 1 or stretch_s < SHORTEST_TURN_S:
            return 0.0
        into_s = (at_s + self.clock_ahead_s - self.place * stretch_s) % period_s
        return 0.0 if into_s <= TURN_OPEN * stretch_s else period_s - into_s


@dataclass(slots=True)
class Pace:
    """One quota.

    Attributes:
        per_minute: units a minute; None: no limit.
        catch_up_s: how much lost time may be made good.
        slots: this process's, where several take turns; `per_minute` is its own part.
    """

    per_minute: float | None
    catch_up_s: float = CATCH_UP_S
    catch_up_rate: float = CATCH_UP_RATE
    slots: TimeSlots | None = None
    _even_s: float = -math.inf
    _smooth_s: float = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next unit may be spent."""
        if self.per_minute is None:
            return 0.0
        at_s = max(self._even_s, self._smooth_s, now_s)
        if self.slots is not None:
            at_s += self.slots.wait_s(at_s, 60 / self.per_minute)
        wait_s = at_s - now_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def binds(self, now_s: float) -> bool:
        """Whether this rate delays units now; not while enough lost time may still be made good."""
        if self.per_minute is None:
            return False
        return self.slots is not None or self._even_s > now_s - _NEARLY * self.catch_up_s

    def spend(self, units: float, now_s: float) -> None:
        if self.per_minute is None:
            return
        one_s = 60 / self.per_minute
        if self._even_s == -math.inf:
            self._even_s = now_s  # nothing was lost before the first unit
        self._even_s = max(self._even_s, now_s - self.catch_up_s) + units * one_s
        self._smooth_s = max(self._smooth_s, now_s - LATE_S) + units * one_s / self.catch_up_rate

    def correct(self, units: float) -> None:
        """Take (positive) or give back (negative) what an estimate was off by."""
        if self.per_minute is not None and self._even_s > -math.inf:
            self._even_s += units * 60 / self.per_minute
            self._smooth_s += units * 60 / self.per_minute

    def change(self, per_minute: float | None, now_s: float) -> None:
        """Another rate from now on. What is owed, is owed in units: it shrinks or grows in time."""
        if per_minute == self.per_minute:
            return
        if per_minute is not None and self.per_minute is not None:
            ratio = self.per_minute / per_minute
            self._even_s = now_s + max(0.0, self._even_s - now_s) * ratio
            self._smooth_s = now_s + max(0.0, self._smooth_s - now_s) * ratio
        else:
            self._even_s = self._smooth_s = -math.inf
        self.per_minute = per_minute
