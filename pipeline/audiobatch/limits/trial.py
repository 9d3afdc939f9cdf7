"""One trial of a rate: does going slower end the refusals? What was known before it, and what comes of it.

Calls are counted from a refusal on, not from a pause's end: after a pause every window has room, and what passes
then says nothing. So the shares that are judged here are those of calls sent one after another, at one rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from audiobatch.limits.stray import at_most

#: How low the rate goes to see whether that ends the refusals, and what counts as low: a quota that let so much
#: more pass refuses nothing there. Lower, where what passed was not counted over ten seconds.
DEPTH, LOW = 0.88, 0.9
DEEP, DEEP_LOW = 0.66, 0.68
#: How long it stays low, or for how many calls, and at most, for it is doubled each time.
TEST_S, TEST_CALLS = 6.0, 40
LONGEST_TEST_S = 40.0
#: So many refusals in so many seconds at a low rate can show that they do not depend on the rate …
ENOUGH, ENOUGH_S = 2, 3.0
#: … where they are hardly more than this share, half of it for so few: a quota that was cut would refuse more.
AT_MOST = 0.2
#: So many at a low rate, and this share of the calls, say that it is not low enough.
TOO_MANY, TOO_GREAT = 4, 0.2
#: … or so many, whatever their share. A quota just below the low rate refuses few calls, too, so a still lower rate
#: is tried: where the refused share falls below `FAR_LESS` of what it was (`LESS` where it was over `MUCH`), it was
#: the rate after all.
AT_LENGTH = 8
FAR_LESS, LESS, MUCH = 0.6, 0.85, 0.12
#: After so many calls and seconds without a refusal, at a rate that is not low, the next refusal is another matter;
#: so is one at a rate so far above what the trial began with.
CLEAN_CALLS, CLEAN_S = 200, 10.0
PAST = 1.02
#: So many, and this share, say that much less passes than is sent.
CROWD, CROWDED = 4, 0.4


class Finding(Enum):
    """What a refusal during a trial says."""

    NOTHING_PASSES = "the wait answers it: how fast one calls makes no difference"
    NOTHING_YET = "more has to be seen"
    FAR_TOO_HIGH = "the quota is much smaller than what is sent"
    TOO_HIGH = "the rate is to go lower"
    STRAY = "refusals do not depend on the rate"


@dataclass(slots=True, kw_only=True)
class Trial:
    """From the first refusal until the rate looks beyond the edge again.

    Attributes:
        edge_found: requests a minute that seemed to pass when it began.
        passed: … and that passed for certain: a window that began anew is taken into account.
        rate, edge, is_sure: what was known then.
        is_steady: so much had passed for ten seconds.
        passed_at_s: when something was last seen to pass.
        recovery: how fast the rate grows to `recovers_to` after the test, unless it is refused on the way.
        goes_on: the last change of the rate was made without a pause.
        refusals: that came after the first.
        low_from_s, sent_low, refused_low: calls at a low rate.
    """

    edge_found: float
    passed: float
    rate: float | None
    edge: float | None
    is_sure: bool
    is_steady: bool
    passed_at_s: float
    recovery: float | None = None
    recovers_to: float = math.inf
    goes_on: bool = False
    refusals: int = 0
    low_from_s: float = math.inf
    sent_low: int = 0
    refused_low: int = 0
    refused_at_s: float = -math.inf
    _clean: int = 0
    _was_clean: bool = False
    _is_open: bool = False
    _sent: int = 0
    _refused: int = 0
    _tests: int = 0
    _share_before: float = math.inf

    def sent(self, per_minute: float | None, now_s: float) -> None:
        """A call is made at this rate."""
        self._clean += 1
        if self._is_open:
            self._sent += 1
        if per_minute is not None and per_minute <= self._low:
            self.low_from_s = min(self.low_from_s, now_s)
            self.sent_low += 1

    def refused(self, per_minute: float, now_s: float) -> None:
        """A call at this rate, made after its last change, was refused."""
        long_ago = now_s - self.refused_at_s > CLEAN_S and self._clean > CLEAN_CALLS
        self._was_clean = long_ago and per_minute > self._low
        self.refused_at_s, self._clean = now_s, 0
        self.refusals += 1
        self._refused += self._is_open
        self._is_open = True
        if per_minute <= self._low:
            self.refused_low += 1

    def is_over(self, per_minute: float) -> bool:
        """Whether the last refusal, at this rate, has nothing to do with this trial."""
        return self._was_clean or per_minute > PAST * self.edge_found

    def paused(self) -> None:
        """Nobody calls for a while: what passes next says nothing."""
        self._is_open, self.goes_on = False, False
        self._sent = self._refused = 0

    def slower(self, per_minute: float) -> float:
        """After a refusal at this rate calls go on, at the lower one that is returned."""
        depth = DEPTH if self.is_steady else DEEP
        self._is_open = self.goes_on = True
        self._sent = self._refused = 0
        if per_minute > self._low and self.sent_low:
            return self.passed * depth  # back to where it was low before
        self._share_before = self.refused_low / self.sent_low if self.sent_low else math.inf
        self.low_from_s = math.inf
        self.sent_low = self.refused_low = 0
        return min(per_minute, self.passed) * depth

    def finding(self, per_minute: float, now_s: float, *, passed: int) -> Finding:
        """What to make of the last refusal; `passed`: calls since the last pause that were let in before it."""
        if passed == 0:
            return Finding.NOTHING_PASSES
        if self._refused >= CROWD and self._refused >= CROWDED * self._sent:
            return Finding.FAR_TOO_HIGH
        if per_minute > self._low:
            return Finding.TOO_HIGH if self._refused else Finding.NOTHING_YET
        long_enough = self.refused_low >= ENOUGH and now_s - self.low_from_s >= ENOUGH_S
        most = AT_MOST if self.refused_low > ENOUGH else AT_MOST / 2
        are_few = long_enough and at_most(self.refused_low, self.sent_low) <= most
        if are_few or self.refused_low >= AT_LENGTH:
            return Finding.TOO_HIGH if self._helped else Finding.STRAY
        if self.refused_low >= TOO_MANY and self.refused_low >= TOO_GREAT * self.sent_low:
            return Finding.TOO_HIGH
        return Finding.NOTHING_YET

    @property
    def let_in(self) -> float:
        """The share of calls that pass now, of those counted."""
        return 1 - self._refused / max(1, self._sent)

    @property
    def _helped(self) -> bool:
        """Whether clearly fewer calls are refused than at the low rate before; not asked after a deep one."""
        before = self._share_before if self.is_steady else 0.0
        less = LESS if self.refused_low > MUCH * self.sent_low else FAR_LESS
        return self.refused_low < less * before * self.sent_low

    @property
    def _low(self) -> float:
        return self.passed * (LOW if self.is_steady else DEEP_LOW)

    def test_s(self, per_minute: float) -> float:
        """How long to stay at this low rate, this time."""
        self._tests += 1
        return min(LONGEST_TEST_S, max(TEST_CALLS * 60 / per_minute, TEST_S * 2.0 ** (self._tests - 1)))

    def scale(self, factor: float) -> None:
        """All rates of requests become so many times as great."""
        self.edge_found *= factor
        self.passed *= factor
        self.recovers_to *= factor
        self.rate = None if self.rate is None else self.rate * factor
        self.edge = None if self.edge is None else self.edge * factor
