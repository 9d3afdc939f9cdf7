"""How many requests a minute a deployment takes: as its user says, as its headers say, or as refusals teach.

A limit that the user gave, or that headers state, is kept from the first call. Without one, or where calls are
refused although it is kept, the rate is learned from refusals. What is known of services:

- A quota of a minute is judged over windows of 1 to 10 seconds, and over the minute. A full window refuses all
  calls until it ends. The wait that a refusal names tells which: up to 10 s a short window, more the minute.
- A refusal comes back at once, a reply after seconds. So a call counts as accepted from when it is sent until it is
  refused.
- After a pause every window has room. What is accepted then says nothing about the rate.
- A machine, a network or a service stalls now and then. Calls that arrive together after a stall overfill a window
  although the rate is right. Such a refusal comes alone and names a short wait.
- Some services refuse a share of calls at any rate.

So each refusal has one of three causes:

    a stall             it comes alone, at a rate that is known, with a short wait (`Stalls`): wait as asked
    random rejection    refusals go on in the same share at a rate far below what was accepted before; later ones
                        fit that share (`RandomRejections`): only the refused call waits
    the rate            every other refusal: a probe (`Probe`) finds the rate

A probe lasts from the first refusal until the rate looks beyond the ceiling again. The ceiling is what was accepted
in the window that the service judges:

    first refusal       98.5 % of the ceiling. 88 % for 6 s where none was known before. A burst that
                        filled a window is counted over that window, whose end the wait tells
    refused again       88 % of what was accepted when the probe began (66 % where that was counted over less than
                        ten seconds), without a pause, for 6 s, then 12, 24, 40
    most are refused    the quota was cut: 90 % of what is accepted, at most halved at once
    all are refused     unchanged: the window is full and only waiting helps. After 10 s of this it is the minute's
    few are refused     also at the low rate and at a still lower one: the rate before the probe. These are random
                        rejections

    below the ceiling   5 % more each 3 s, up to 98.5 % of the ceiling
    at the ceiling      unchanged for a while (`HOLD_CONFIRMED` and others); then the probe is over
    beyond it           1.5 % more each 3 s up to 3 % beyond, then 5 %; 5 % while the ceiling is not confirmed

Looking beyond a ceiling confirms it by finding it again; the ceiling of a minute is confirmed at once. A stable
quota is so used at 98 to 103 %, for one or two refusals a minute. A doubled quota is found in 90 s.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeGuard

MINUTE_S = 60.0
#: The windows over which services judge a rate; a steady rate is measured over the last one.
WINDOWS_S = (1.0, 2.0, 5.0, 10.0)
#: Waits up to the first are of a window of 1 to 10 s; longer ones, up to the second, of the minute.
SHORT_WAIT_S, LONGEST_MINUTE_WAIT_S = 10.5, 75.0
_LEAST_PER_MINUTE = 1.0
_ROUNDED = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Hold:
    """How long the rate is held just below the ceiling before it looks beyond, which costs a refusal.

    Attributes:
        seconds: at least this long.
        calls: and for at least this many calls.
    """

    seconds: float
    calls: int

    def duration_s(self, per_minute: float) -> float:
        """Return the seconds at this rate."""
        return max(self.seconds, self.calls * MINUTE_S / per_minute)


HOLD_CONFIRMED = Hold(45.0, 250)
#: While the ceiling is not confirmed, or where a limit was given or stated.
HOLD_UNCONFIRMED = Hold(15.0, 60)

# Where the rate goes, as factors.
BELOW_CEILING = 0.985
#: Each `STEP_S`, while at least `IN_USE` of the rate is used.
STEP_S, IN_USE = 3.0, 0.8
GROWTH = 1.05
#: From a low rate, this far below the ceiling, back to near it.
QUICK, FAR_BELOW = 1.25, 0.8
#: Beyond a confirmed ceiling, up to the second.
BEYOND, BEYOND_UNTIL = 1.015, 1.03
#: Each step after a deep cut, up to the rate before it: it was perhaps a burst of refusals and no smaller quota.
RECOVERY = 1.1
#: Each step after the very first refusals, unless a window was counted: perhaps a higher rate was not tried.
DOUBT = 1.25
#: The ceiling, where calls are still refused at the low rate of a probe.
LOWER_CEILING = 0.97
#: After a deep cut: the rate below what is accepted; the most that the rate is cut at once; how long it stays.
BELOW_ACCEPTED, MOST_AT_ONCE, AFTER_CUT_S = 0.9, 0.5, 15.0
#: Two ceilings that differ by less are the same one, found twice.
SAME_CEILING = 0.06


@dataclass(frozen=True, slots=True)
class Depth:
    """How far a probe goes below what was accepted.

    Attributes:
        rate: the factor by which it goes lower.
        low: a rate up to this factor counts as low: a quota that accepted so much more refuses nothing there.
    """

    rate: float
    low: float


STEADY_DEPTH = Depth(0.88, 0.90)
#: Where what was accepted was counted over less than ten seconds.
UNSTEADY_DEPTH = Depth(0.66, 0.68)

#: How long a probe stays at its first low rate; doubled each time, up to the second.
PROBE_S, LONGEST_PROBE_S = 6.0, 40.0
#: So many refusals at the low rate can show that they do not depend on the rate …
ENOUGH = 2
#: … where their share is hardly more than this: a cut quota would refuse more.
FEW = 0.2
#: So many at the low rate, and this share of its calls, say that it is not low enough.
MANY, GREAT_SHARE = 4, 0.2
#: … or so many, whatever their share. A quota just below the low rate refuses few calls, too, so a still lower rate
#: is tried. Where the refused share falls below `FAR_LESS` of what it was (`LESS` where it was over `MUCH`), the
#: rate was the cause after all.
AT_LENGTH = 8
FAR_LESS, LESS, MUCH = 0.6, 0.85, 0.12
#: After so many calls without a refusal, at a rate that is not low, the next refusal belongs to no probe.
CLEAN_CALLS = 200
#: Nor does one at a rate so far above what the probe began with.
PAST = 1.02
#: So many refusals, and this share of the calls, say that much less is accepted than is sent.
MOST_REFUSED, MOST_REFUSED_SHARE = 4, 0.4

#: Fewer calls than this in a window say nothing about a rate.
_CALLS_OF_WINDOW = 4
#: Before a rate is known, fewer calls than this say nothing, nor does the only refusal of the last `_ALONE`, except
#: where a third of the calls of ten seconds was refused.
_CALLS_AT_FIRST, _ALONE = 30, 60
#: A burst fills a window early, so the wait is at least this part of it. Windows may be measured a little short.
_LEAST_PART, _MEASURED_SHORT = 0.25, 0.1
#: What was accepted in ten seconds, as a share of the most in shorter windows: it was no burst.
_STEADY = 0.9

#: A refusal that a stall explains names no longer wait.
LONGEST_STALL_WAIT_S = 1.0
#: So many within so many seconds are not chance; nor are so many in a minute, or such a share of its calls.
STALLS, STALLS_WITHIN_S = 6, 6.0
STALLS_A_MINUTE, STALLS_SHARE = 8, 0.005
#: For so long after a refusal that no stall explains, none explains the next ones.
AFTER_UNEXPLAINED_S = 15.0

#: The known share of random rejections is exceeded where a share twice as great is e^10 = 22 000 times as likely.
ALARM = 10.0
#: A greater share than this is worth going slower for; a smaller one than the second is none.
GREATEST_SHARE, LEAST_SHARE = 0.25, 0.005
#: The share is reviewed each so many calls, over the last so many.
_REVIEWED_EACH, _MEMORY = 100, 2000


class Wait(Enum):
    """Who waits after a refusal."""

    ALL_AND_SLOWER = "all calls wait as asked, and go on at a lower rate"
    ALL = "all calls wait as asked"
    THIS_CALL = "only the refused call waits: the rate has not refused it, or that is being found out"


class Finding(Enum):
    """What a refusal during a probe says."""

    NOTHING_ACCEPTED = "only waiting helps: the rate makes no difference"
    NOTHING_YET = "more refusals are needed to tell"
    FAR_TOO_HIGH = "the quota is much smaller than what is sent"
    TOO_HIGH = "the rate has to go lower"
    RANDOM = "refusals do not depend on the rate"


@dataclass(slots=True)
class RecentCalls:
    """The calls of the last minute, and how many a minute of them were accepted."""

    _sent_s: deque[float] = field(default_factory=deque)
    _refused_s: deque[float] = field(default_factory=deque)
    _first_s: float = math.inf

    def sent(self, now_s: float) -> None:
        """Count a call that is sent."""
        self._first_s = min(self._first_s, now_s)
        self._sent_s.append(now_s)
        for moments in (self._sent_s, self._refused_s):
            while moments and moments[0] < now_s - MINUTE_S:
                moments.popleft()

    def refused(self, sent_s: float) -> None:
        """Count the refusal of a call that was sent at `sent_s`."""
        self._refused_s.append(sent_s)

    def count(self, since_s: float, until_s: float = math.inf) -> int:
        """Return the number of calls that were sent between these times and accepted."""
        sent = sum(1 for moment in self._sent_s if since_s < moment < until_s)
        return max(0, sent - sum(1 for moment in self._refused_s if since_s < moment < until_s))

    def in_a_minute(self, now_s: float) -> float | None:
        """Return what was accepted in the last minute; None: nothing."""
        return float(self.count(now_s - MINUTE_S)) or None

    def per_minute(self, now_s: float, *, is_known: bool) -> float | None:
        """Return the most that was accepted, per minute, over any window that a service may judge.

        Args:
            now_s: the time.
            is_known: a rate is known that this is compared with; without one, more calls are required.

        Returns:
            None: too few calls to tell.
        """
        counts = self._counts(now_s)
        if not is_known:
            count, longest_s = counts[-1]
            if self._is_crowd(now_s):
                if min(longest_s, now_s - self._first_s) < WINDOWS_S[0]:
                    return None  # a burst at the very start: it cannot be told which window it filled
                return _certain(counts) or None
            if count < _CALLS_AT_FIRST or self._of_the_last(_ALONE) < 2:
                return None  # one refusal among few calls, or the first one, has any cause
        rates = [count * MINUTE_S / window_s for count, window_s in counts if count >= _CALLS_OF_WINDOW]
        return max(rates, default=None)

    def filled_window(self, sent_s: float, wait_s: float) -> float | None:
        """Return the rate at which a burst filled a window whose end a refusal tells by its wait.

        Args:
            sent_s: when the refused call was sent.
            wait_s: the wait that the refusal names.

        Returns:
            Requests a minute. None: the wait is not until the end of a window, or more than its share was accepted
            already.
        """
        window_s = next((window_s for window_s in (WINDOWS_S[0], WINDOWS_S[-1]) if wait_s < window_s), None)
        if window_s is None or wait_s < _LEAST_PART * window_s:
            return None
        since_s = sent_s + wait_s - (1 + _MEASURED_SHORT) * window_s
        # A call that was sent after the first refused one found the window full, too.
        full_s = min((moment for moment in self._refused_s if moment > since_s), default=sent_s)
        share = self.count(since_s, full_s) * MINUTE_S / window_s
        parts_s = [part_s for part_s in WINDOWS_S if part_s <= window_s]
        most = max(self.count(full_s - part_s, full_s) * MINUTE_S / part_s for part_s in parts_s)
        return share if 0 < most <= share else None

    def is_steady(self, per_minute: float, now_s: float) -> bool:
        """Return whether this rate was accepted over ten seconds."""
        return self.count(now_s - WINDOWS_S[-1]) * MINUTE_S / WINDOWS_S[-1] >= _STEADY * per_minute

    def certain_per_minute(self, now_s: float) -> float:
        """Return the rate that was accepted for certain: a window may have started anew while it was counted."""
        return _certain(self._counts(now_s))

    def _is_crowd(self, now_s: float) -> bool:
        """Return whether a third of the calls of ten seconds was refused."""
        since_s = now_s - WINDOWS_S[-1]
        refused = sum(1 for moment in self._refused_s if moment > since_s)
        return 2 * refused >= self.count(since_s)

    def _of_the_last(self, calls: int) -> int:
        """Return how many of the last calls were refused."""
        last_s = self._sent_s[-min(calls, len(self._sent_s))] if self._sent_s else -math.inf
        return sum(1 for moment in self._refused_s if moment >= last_s)

    def _counts(self, now_s: float) -> list[tuple[int, float]]:
        return [(self.count(now_s - window_s), window_s) for window_s in WINDOWS_S]


def _certain(counts: list[tuple[int, float]]) -> float:
    return max(count * MINUTE_S / (window_s + WINDOWS_S[0]) for count, window_s in counts)


@dataclass(slots=True)
class Stalls:
    """Tells refusals that a stall explains from those of a quota that was cut, or that others use too."""

    _began_s: deque[float] = field(default_factory=deque)
    _resumed_s: float = -math.inf
    _unexplained_until_s: float = -math.inf

    def explains(self, sent_s: float, now_s: float, wait_s: float, per_minute: float) -> bool:
        """Return whether a stall explains a refusal, which then says nothing about the rate.

        Args:
            sent_s: when the refused call was sent.
            now_s: when the refusal came.
            wait_s: the wait that it names; 0: none.
            per_minute: the rate that is kept.
        """
        if sent_s > self._resumed_s:
            self._began_s.append(now_s)
        self._resumed_s = max(self._resumed_s, now_s + wait_s)
        while self._began_s and self._began_s[0] < now_s - MINUTE_S:
            self._began_s.popleft()
        clump = sum(moment > now_s - STALLS_WITHIN_S for moment in self._began_s)
        many = clump >= STALLS or len(self._began_s) >= max(STALLS_A_MINUTE, STALLS_SHARE * per_minute)
        if many or wait_s > LONGEST_STALL_WAIT_S:
            self._unexplained_until_s = now_s + wait_s + AFTER_UNEXPLAINED_S
        return now_s > self._unexplained_until_s


def greatest_share(refused: int, calls: int) -> float:
    """Return the greatest plausible share of refusals: the observed one and two standard errors."""
    return (refused + 2 * math.sqrt(refused) + 1) / max(1, calls)


@dataclass(slots=True)
class RandomRejections:
    """The share of calls that a service refuses at any rate, and whether a refusal exceeds it.

    A probe finds such a share. From then on a cumulative sum (Page's test) judges refusals: each call moves it by
    the logarithm of how much likelier its end is with twice the share than with the known one. It never falls below
    0, and beyond `ALARM` the refusals are too many for the known share.

    Attributes:
        share: of all calls; 0: none is known, so each refusal is due to the rate.
    """

    share: float = 0.0
    _sum: float = 0.0
    _calls: int = 0
    _refused: int = 0
    _step_accepted: float = 0.0

    def found(self, refused: int, calls: int) -> None:
        """Take the share from this many refusals at a low rate."""
        self._calls, self._refused = calls, refused
        self.share, self._sum = min(GREATEST_SHARE, greatest_share(refused, calls)), 0.0
        self._step_accepted = math.log((1 - 2 * self.share) / (1 - self.share))

    def sent(self) -> None:
        """Count a call that is sent."""
        if not self.share:
            return
        self._calls += 1
        self._sum = max(0.0, self._sum + self._step_accepted)
        if self._calls % _REVIEWED_EACH == 0:
            self._review()

    def refused(self) -> bool:
        """Count a refusal. Returns whether it is due to the rate."""
        if not self.share:
            return True
        self._refused += 1
        self._sum += math.log(2) - self._step_accepted
        if self._sum < ALARM:
            return False
        self._sum = 0.0
        return True

    def _review(self) -> None:
        """Forget a share that has become too small; a probe finds a greater one, as it found the first."""
        share = greatest_share(self._refused, self._calls)
        if share < LEAST_SHARE:
            self.share = 0.0
        if self._calls > _MEMORY:
            self._calls //= 2
            self._refused //= 2


@dataclass(slots=True, kw_only=True)
class Probe:
    """Finds out whether a lower rate ends the refusals.

    Calls are counted from a refusal on, not from the end of a pause. So the shares that are judged are those of
    calls that were sent one after another, at one rate.

    Attributes:
        ceiling_found: requests a minute that were accepted, as it seemed when the probe began.
        accepted: requests a minute that were accepted for certain.
        rate: the rate before the probe.
        ceiling: the ceiling before it.
        is_confirmed: whether that ceiling was confirmed.
        is_steady: `accepted` was counted over ten seconds.
        accepted_at_s: when a call was last seen to be accepted.
        recovery: factor by which the rate grows each step, up to `recovers_to`, until it is refused on the way.
        goes_on: the last change of the rate was made without a pause.
        sent_low: calls at the low rate.
        refused_low: refusals among them.
    """

    ceiling_found: float
    accepted: float
    rate: float | None
    ceiling: float | None
    is_confirmed: bool
    is_steady: bool
    accepted_at_s: float
    recovery: float | None = None
    recovers_to: float = math.inf
    goes_on: bool = False
    sent_low: int = 0
    refused_low: int = 0
    _clean: int = 0
    _was_clean: bool = False
    _is_counting: bool = False
    _sent: int = 0
    _refused: int = 0
    _low_rates: int = 0
    _share_before: float = math.inf

    def sent(self, per_minute: float | None) -> None:
        """Count a call that is sent at this rate."""
        self._clean += 1
        if self._is_counting:
            self._sent += 1
        if per_minute is not None and per_minute <= self._low:
            self.sent_low += 1

    def refused(self, per_minute: float) -> None:
        """Count the refusal of a call that was sent at this rate, after the last change of the rate."""
        self._was_clean = self._clean > CLEAN_CALLS and per_minute > self._low
        self._clean = 0
        self._refused += self._is_counting
        self._is_counting = True
        if per_minute <= self._low:
            self.refused_low += 1

    def is_over(self, per_minute: float) -> bool:
        """Return whether the last refusal, at this rate, does not belong to this probe."""
        return self._was_clean or per_minute > PAST * self.ceiling_found

    def paused(self) -> None:
        """Stop counting: after a pause, what is accepted says nothing."""
        self._is_counting, self.goes_on = False, False
        self._sent = self._refused = 0

    def lower_rate(self, per_minute: float) -> float:
        """Return the rate to go on at after a refusal at this one."""
        depth = self._depth.rate
        self._is_counting = self.goes_on = True
        self._sent = self._refused = 0
        if per_minute > self._low and self.sent_low:
            return self.accepted * depth  # the low rate of before
        self._share_before = self.refused_low / self.sent_low if self.sent_low else math.inf
        self.sent_low = self.refused_low = 0
        return min(per_minute, self.accepted) * depth

    def finding(self, per_minute: float, *, accepted: int) -> Finding:
        """Return what the last refusal says; `accepted`: calls that were accepted between the last pause and it."""
        if accepted == 0:
            return Finding.NOTHING_ACCEPTED
        if self._refused >= MOST_REFUSED and self._refused >= MOST_REFUSED_SHARE * self._sent:
            return Finding.FAR_TOO_HIGH
        if per_minute > self._low:
            return Finding.TOO_HIGH if self._refused else Finding.NOTHING_YET
        are_few = self.refused_low >= ENOUGH and greatest_share(self.refused_low, self.sent_low) <= FEW
        if are_few or self.refused_low >= AT_LENGTH:
            return Finding.TOO_HIGH if self._helped else Finding.RANDOM
        if self.refused_low >= MANY and self.refused_low >= GREAT_SHARE * self.sent_low:
            return Finding.TOO_HIGH
        return Finding.NOTHING_YET

    @property
    def accepted_share(self) -> float:
        """The share of the counted calls that was accepted."""
        return 1 - self._refused / max(1, self._sent)

    @property
    def _helped(self) -> bool:
        """Whether clearly fewer calls are refused than at the low rate before; not asked after a deep one."""
        before = self._share_before if self.is_steady else 0.0
        less = LESS if self.refused_low > MUCH * self.sent_low else FAR_LESS
        return self.refused_low < less * before * self.sent_low

    @property
    def _depth(self) -> Depth:
        return STEADY_DEPTH if self.is_steady else UNSTEADY_DEPTH

    @property
    def _low(self) -> float:
        return self.accepted * self._depth.low

    def low_rate_s(self) -> float:
        """Return how long to stay at the low rate, this time."""
        self._low_rates += 1
        return min(LONGEST_PROBE_S, PROBE_S * 2.0 ** (self._low_rates - 1))

    def scale(self, factor: float) -> None:
        """Multiply all rates by this factor."""
        self.ceiling_found *= factor
        self.accepted *= factor
        self.recovers_to *= factor
        self.rate = None if self.rate is None else self.rate * factor
        self.ceiling = None if self.ceiling is None else self.ceiling * factor


@dataclass(slots=True)
class RateLearner:
    """The requests a minute of one deployment.

    Attributes:
        given: limit that the user gave; it is never exceeded, and headers do not count.
        stated: limit that the headers state.
        ceiling: requests a minute above which calls were refused; None: none were.
        part: part of the deployment's limit that this process uses, where several share it.
        random_rejections: refusals that come at any rate.
    """

    given: float | None = None
    stated: float | None = None
    ceiling: float | None = None
    part: float = 1.0
    random_rejections: RandomRejections = field(default_factory=RandomRejections)
    _rate: float | None = None
    _is_confirmed: bool = False
    _probe: Probe | None = None
    _calls: RecentCalls = field(default_factory=RecentCalls)
    _stalls: Stalls = field(default_factory=Stalls)
    _changed_at_s: float = -math.inf
    _resumed_at_s: float = -math.inf
    _grow_at_s: float = math.inf
    _used: int = 0
    _used_since_s: float = -math.inf

    @property
    def limit(self) -> float | None:
        """The part of the limit, given or stated, that this process uses; None: there is no limit."""
        whole = self.given if self.given is not None else self.stated
        return None if whole is None else whole * self.part

    @property
    def per_minute(self) -> float | None:
        """The rate to keep; None: nothing is known."""
        known = [rate for rate in (self.limit, self._rate) if rate is not None]
        return min(known) if known else None

    def state(self, per_minute: float) -> None:
        """Follow a limit that a header states. A new one makes all that was learned void."""
        if per_minute != self.stated:
            self.stated = per_minute
            if self.given is None:
                self.ceiling = self._rate = self._probe = None
                self._is_confirmed = False
                self._grow_at_s = math.inf

    def share(self, part: float) -> None:
        """Use this part of the limit from now on; what was learned applied to the part so far."""
        factor, self.part = part / self.part, part
        self.ceiling = None if self.ceiling is None else self.ceiling * factor
        self._rate = None if self._rate is None else self._rate * factor
        if self._probe is not None:
            self._probe.scale(factor)

    def sent(self, now_s: float) -> None:
        """Count a request that is sent, and let the rate grow where it is time."""
        self._calls.sent(now_s)
        self._used += 1
        self.random_rejections.sent()
        if self._probe is not None:
            self._probe.sent(self.per_minute)
        if now_s >= self._grow_at_s:
            self._grow(now_s)

    def refused(self, sent_s: float, now_s: float, wait_s: float | None) -> Wait:
        """Learn from the refusal of a request.

        Args:
            sent_s: when the request was sent.
            now_s: when the refusal came.
            wait_s: the wait that it names; None: none.

        Returns:
            Who waits.
        """
        named_s = wait_s or 0.0
        self._calls.refused(sent_s)
        if named_s > LONGEST_MINUTE_WAIT_S:
            return Wait.ALL  # it is not until the end of a window
        probe, known = self._probe, self.per_minute
        is_late = sent_s <= self._changed_at_s  # the last change of the rate has answered it
        by_stall = self._is_kept(known) and self._stalls.explains(sent_s, now_s, named_s, known)
        if probe is not None and known is not None and not is_late and not by_stall:
            probe.refused(known)
        if not self.random_rejections.refused():
            return Wait.THIS_CALL
        if by_stall:
            self._resumed_at_s = now_s + named_s
            return Wait.ALL
        if is_late:
            return Wait.THIS_CALL if probe is not None and probe.goes_on else Wait.ALL
        if probe is None or known is None or probe.is_over(known):
            return self._begin(sent_s, now_s, named_s)
        return self._go_on(probe, known, sent_s, now_s, named_s)

    def _is_kept(self, known: float | None) -> TypeGuard[float]:
        """Return whether the rate is a known one, so that nothing is being found out."""
        if self.limit is not None:
            return known == self.limit
        is_low = self._probe is not None and self._probe.goes_on
        return known is not None and self._is_confirmed and not is_low and not self._is_beyond(known)

    def _is_beyond(self, known: float | None) -> bool:
        """Return whether the rate is at the ceiling that was found before, or beyond it."""
        return (
            known is not None and self.ceiling is not None and known > _ROUNDED * BELOW_CEILING * self.ceiling
        )

    def _begin(self, sent_s: float, now_s: float, named_s: float) -> Wait:
        """Begin a probe after the first refusal for a while."""
        self._resumed_at_s = now_s + named_s
        known = self.per_minute
        counted = self._calls.filled_window(sent_s, named_s) if known is None else None
        if named_s > SHORT_WAIT_S:
            accepted = self._calls.in_a_minute(now_s)
        elif counted is not None:
            accepted = counted
        else:
            accepted = self._calls.per_minute(now_s, is_known=known is not None)
        if not accepted and known is None:
            return Wait.ALL  # there is no telling yet which rate is accepted
        self._changed_at_s = now_s
        ceiling = max(_LEAST_PER_MINUTE, min(math.inf if accepted is None else accepted, known or math.inf))
        before = self._probe
        self._probe = self._new_probe(ceiling, now_s, is_counted=counted is not None)
        is_new = self._probe.ceiling is None and self.limit is None
        is_same = abs(ceiling - (self.ceiling or 0.0)) <= SAME_CEILING * ceiling
        self._is_confirmed = self._is_beyond(known) and is_same
        if is_new and named_s <= SHORT_WAIT_S:
            self.ceiling, self._rate = ceiling, max(_LEAST_PER_MINUTE, ceiling * STEADY_DEPTH.rate)
            is_another = before is None
            if is_another and counted is None:
                self._probe.recovery = DOUBT
            self._next_step(self._resumed_at_s, self._probe.low_rate_s())
        else:
            self._follow(ceiling, of_a_minute=named_s > SHORT_WAIT_S)
        return Wait.ALL_AND_SLOWER

    def _follow(self, ceiling: float, *, of_a_minute: bool) -> None:
        """Go on a little below this ceiling."""
        self.ceiling, self._rate = ceiling, max(_LEAST_PER_MINUTE, ceiling * BELOW_CEILING)
        self._is_confirmed = self._is_confirmed or of_a_minute
        self._next_step(self._resumed_at_s, self._hold.duration_s(self._rate))

    def _new_probe(self, ceiling: float, now_s: float, *, is_counted: bool = False) -> Probe:
        before = self._probe
        is_steady = is_counted or ceiling == self.limit or self._calls.is_steady(ceiling, now_s)
        certain = self._calls.certain_per_minute(now_s)
        return Probe(
            ceiling_found=ceiling,
            accepted=ceiling if is_steady else max(_LEAST_PER_MINUTE, min(ceiling, certain)),
            rate=before.rate if before else self._rate,
            ceiling=before.ceiling if before else self.ceiling,
            is_confirmed=before.is_confirmed if before else self._is_confirmed,
            is_steady=is_steady,
            accepted_at_s=now_s,
        )

    def _go_on(self, probe: Probe, known: float, sent_s: float, now_s: float, named_s: float) -> Wait:
        """Go on with a probe after a further refusal."""
        # Of two calls that are sent at nearly the same time, the refusal of the second can come first.
        accepted = self._calls.count(self._resumed_at_s, sent_s - (now_s - sent_s) / 2)
        finding = probe.finding(known, accepted=accepted)
        for_a_minute = named_s > SHORT_WAIT_S
        if finding is Finding.NOTHING_ACCEPTED:
            for_a_minute = for_a_minute or now_s - probe.accepted_at_s > SHORT_WAIT_S
        else:
            probe.accepted_at_s = now_s
        if finding is Finding.NOTHING_YET and not for_a_minute:
            return Wait.THIS_CALL
        self._changed_at_s = now_s
        if for_a_minute:
            self._wait_for_a_minute(probe, known, now_s, named_s)
            return Wait.ALL if finding is Finding.NOTHING_ACCEPTED else Wait.ALL_AND_SLOWER
        if finding is Finding.RANDOM:
            self._end_as_random(probe, now_s)
            return Wait.THIS_CALL
        if finding is Finding.TOO_HIGH:
            self._slow_down(probe, known, now_s)
            return Wait.THIS_CALL
        self._resumed_at_s = now_s + named_s
        if finding is Finding.FAR_TOO_HIGH:
            self._cut_deep(probe, known, now_s)
            return Wait.ALL_AND_SLOWER
        probe.paused()
        return Wait.ALL

    def _wait_for_a_minute(self, probe: Probe, known: float, now_s: float, named_s: float) -> None:
        """Wait as asked for the quota of a minute, and go on at what was accepted in the last minute."""
        self._resumed_at_s = now_s + named_s
        accepted = min(self._calls.in_a_minute(now_s) or known, known)
        self._follow(max(_LEAST_PER_MINUTE, accepted), of_a_minute=True)
        probe.recovery = None
        probe.paused()

    def _slow_down(self, probe: Probe, known: float, now_s: float) -> None:
        """Go on at the next lower rate of the probe, without a pause."""
        ceiling = min(self.ceiling or known, known / BELOW_CEILING) * LOWER_CEILING
        self.ceiling = max(_LEAST_PER_MINUTE, ceiling)
        self._rate, probe.recovery = max(_LEAST_PER_MINUTE, probe.lower_rate(known)), None
        self._next_step(now_s, probe.low_rate_s())

    def _cut_deep(self, probe: Probe, known: float, now_s: float) -> None:
        """Begin another probe, from what is accepted now: much less than is sent."""
        accepted = max(_LEAST_PER_MINUTE, known * max(MOST_AT_ONCE, probe.accepted_share))
        self.ceiling, self._rate = accepted, max(_LEAST_PER_MINUTE, accepted * BELOW_ACCEPTED)
        self._probe = self._new_probe(accepted, now_s)
        self._probe.recovery, self._probe.recovers_to = RECOVERY, BELOW_CEILING * probe.ceiling_found
        self._next_step(self._resumed_at_s, max(AFTER_CUT_S, self._probe.low_rate_s()))
        self._probe.paused()

    def _end_as_random(self, probe: Probe, now_s: float) -> None:
        """Return to the rate before the probe."""
        self._rate, self.ceiling, self._is_confirmed = probe.rate, probe.ceiling, probe.is_confirmed
        self.random_rejections.found(probe.refused_low, probe.sent_low)
        self._probe = None
        self._resumed_at_s = now_s
        self._next_step(now_s, STEP_S)

    @property
    def _hold(self) -> Hold:
        return HOLD_CONFIRMED if self._is_confirmed and self.limit is None else HOLD_UNCONFIRMED

    def _grow(self, now_s: float) -> None:
        rate, ceiling = self._rate, self.ceiling
        if rate is None or ceiling is None:
            self._grow_at_s = math.inf
            return
        elapsed_s = now_s - self._used_since_s
        idle = self._used * MINUTE_S / elapsed_s < IN_USE * rate if elapsed_s > 0 else True
        near = BELOW_CEILING * ceiling
        probe, pause_s = self._probe, STEP_S
        if idle or (self.limit is not None and rate >= self.limit):
            pass
        elif probe is not None and probe.recovery and rate < probe.recovers_to:
            self._rate = min(rate * probe.recovery, probe.recovers_to)
            self.ceiling = max(ceiling, self._rate)
        elif rate < near:
            self._rate = min(rate * (QUICK if rate < FAR_BELOW * near else GROWTH), near)
            if self._rate >= near:
                pause_s = self._hold.duration_s(self._rate)
        else:
            self._probe = None
            self._rate = rate * (BEYOND if self._is_confirmed and rate < BEYOND_UNTIL * ceiling else GROWTH)
        self._next_step(now_s, pause_s)

    def _next_step(self, now_s: float, pause_s: float) -> None:
        self._grow_at_s = now_s + pause_s
        self._used, self._used_since_s = 0, now_s
