"""The calls of the last minute, and how many a minute of them passed.

A call counts as passed from when it is sent until it is refused: refusals come back at once, replies after seconds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MINUTE_S = 60.0
#: What services judge a rate over; the last one is what a steady rate is measured over here.
WINDOWS_S = (1.0, 2.0, 5.0, 10.0)
#: Fewer calls than this in a short window say nothing about a rate.
_ENOUGH = 4
#: Before a rate is known, fewer calls than this say nothing either, unless refusals are a crowd: so many of the
#: last calls, or a third of ten seconds' calls. Nor does a refusal that is the only one of the last `_ALONE` calls.
_MANY, _ALONE = 30, 60
_LAST, _CROWD = 12, 4
_CROWD_TO_ONE = 2
#: So many refusals are hardly chance.
_NO_CHANCE = 2
#: A burst fills a window early, so that the wait is a good part of it. Windows may be measured a little short.
_GOOD_PART, _SHORT = 0.25, 0.1
_CONFIRMED_WITHIN_S = 2.0
#: What passed in ten seconds, as a share of the most that passed in shorter windows: it was no burst.
_STEADY = 0.9


@dataclass(slots=True)
class PassedCalls:
    """One deployment's."""

    _sent_s: deque[float] = field(default_factory=deque)
    _refused_s: deque[float] = field(default_factory=deque)
    _first_s: float = math.inf
    _counted: tuple[float, float] = (0.0, -math.inf)

    def sent(self, now_s: float) -> None:
        """A call is being made."""
        self._first_s = min(self._first_s, now_s)
        self._sent_s.append(now_s)
        for moments in (self._sent_s, self._refused_s):
            while moments and moments[0] < now_s - MINUTE_S:
                moments.popleft()

    def refused(self, sent_s: float) -> None:
        """A call that was sent then was refused."""
        self._refused_s.append(sent_s)

    def count(self, since_s: float, until_s: float = math.inf) -> int:
        """Calls that were sent then, and not refused."""
        sent = sum(1 for moment in self._sent_s if since_s < moment < until_s)
        return max(0, sent - sum(1 for moment in self._refused_s if since_s < moment < until_s))

    def in_a_minute(self, now_s: float) -> float | None:
        """What passed in the last minute; None: nothing."""
        return float(self.count(now_s - MINUTE_S)) or None

    def per_minute(self, now_s: float, *, is_known: bool) -> float | None:
        """The most a minute that passed, over any window that a service may judge.

        Args:
            now_s: when.
            is_known: there is a rate already that this is to be compared with; without one, more has to be seen.

        Returns:
            None: too few to tell.
        """
        counts = self._counts(now_s)
        if not is_known:
            count, longest_s = counts[-1]
            if self._is_crowd(now_s):
                if min(longest_s, now_s - self._first_s) < WINDOWS_S[0]:
                    return None  # a burst at the very start: a window's share passed, but of which?
                return _certain(counts) or None
            if count < _MANY or self._of_the_last(_ALONE) < _NO_CHANCE:
                return None  # a refusal among few calls, or a first one, may be anything
        rates = [count * MINUTE_S / window_s for count, window_s in counts if count >= _ENOUGH]
        return max(rates, default=None)

    def share_of_window(self, sent_s: float, now_s: float, wait_s: float) -> float | None:
        """Requests a minute, where a refusal's wait tells when the window is over that a burst has filled.

        Args:
            sent_s: when the refused call left.
            now_s: when the refusal came.
            wait_s: what it names.

        Returns:
            0 after a first refusal: another one has to confirm it. None: the wait tells no window's end, or more
            than that has passed already.
        """
        share = self._calls_of_window(sent_s, wait_s)
        earlier, earlier_s = self._counted
        is_confirmed = now_s - earlier_s <= _CONFIRMED_WITHIN_S
        if share is not None:
            self._counted = share, now_s
            return share if is_confirmed else 0.0
        return earlier if is_confirmed else None

    def _calls_of_window(self, sent_s: float, wait_s: float) -> float | None:
        window_s = next((one for one in (WINDOWS_S[0], WINDOWS_S[-1]) if wait_s < one), None)
        if window_s is None or wait_s < _GOOD_PART * window_s:
            return None
        began_s = sent_s + wait_s - window_s
        if self._first_s > began_s + _SHORT * window_s:
            return None
        since_s = began_s - _SHORT * window_s
        # What left later than the first that was refused found the window full, too.
        full_s = min((moment for moment in self._refused_s if moment > since_s), default=sent_s)
        share = self.count(since_s, full_s) * MINUTE_S / window_s
        most = max(self.count(full_s - one, full_s) * MINUTE_S / one for one in WINDOWS_S if one <= window_s)
        return share if 0 < most <= share else None

    def is_steady(self, per_minute: float, now_s: float) -> bool:
        """Whether so much passed over ten seconds."""
        return self.count(now_s - WINDOWS_S[-1]) * MINUTE_S / WINDOWS_S[-1] >= _STEADY * per_minute

    def certain_per_minute(self, now_s: float) -> float:
        """What passed for certain: a second's share may have passed at either end of the time counted."""
        return _certain(self._counts(now_s))

    def _is_crowd(self, now_s: float) -> bool:
        """Many of the last calls were refused, one after another or most of ten seconds' calls."""
        since_s = now_s - WINDOWS_S[-1]
        refused = sum(1 for moment in self._refused_s if moment > since_s)
        return self._of_the_last(_LAST) >= _CROWD or _CROWD_TO_ONE * refused >= self.count(since_s)

    def _of_the_last(self, calls: int) -> int:
        """How many of so many calls were refused."""
        last_s = self._sent_s[-min(calls, len(self._sent_s))] if self._sent_s else -math.inf
        return sum(1 for moment in self._refused_s if moment >= last_s)

    def _counts(self, now_s: float) -> list[tuple[int, float]]:
        return [(self.count(now_s - window_s), window_s) for window_s in WINDOWS_S]


def _certain(counts: list[tuple[int, float]]) -> float:
    return max(count * MINUTE_S / (window_s + WINDOWS_S[0]) for count, window_s in counts)
