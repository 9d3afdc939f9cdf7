"""How fast one deployment may be called: calls in flight, requests a minute, tokens a minute.

What is kept to is what the user gave; where nothing was given, what the service's headers say; and where calls
are refused all the same, what refusals teach. Tokens are reserved by an estimate and put right when the reply
comes, or taken as the service's own counter is seen to take them.

Nothing here waits: a limiter only says when there will be room. The waiting is the pool's.

A `Pace` is one quota as a line in time: units are spent evenly, never in a burst.

A minute's quota is judged over windows of 1 to 10 seconds (PROTOCOL: learn.microsoft.com, "Manage Azure OpenAI
quota", 2026-11), so a minute's share sent at once is refused. Two lines are kept, and the later one decides:

    even      at the quota's rate; what was lost to a pause or a slow machine, up to `CATCH_UP_S`, is made good
    smooth    at 2 % more than that rate, with almost no memory: making good is spread out, never a burst. At the
              rate itself where it is not the whole of a known limit: then nothing is made good

So over any second at most 102 % of a second's share is sent, over a minute at most 100 % and `CATCH_UP_S`.

Processes that share a quota each keep to a part of it, and still several can fall into one second together: of
four with ten calls a second between them, each sends two or three in any one second. So they also take turns
(`TimeSlots`): the quota's own line is cut into stretches of one unit, and each process spends in every n-th.

The service's token counter takes an amount for a call that is not what the call will use.

The gateway counts an estimate before the model runs: the input, and the maximum of the reply, whether the reply
needs it or not (learn.microsoft.com, "Manage Azure OpenAI quota", 2026-11). Where its headers say how many tokens
are left, the counter's own measure is learned from how that number falls; until then a call is taken at the
estimate of what it will really use.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.limits.concurrency import AdaptiveConcurrency
from audiobatch.limits.rate import Answer, LearnedRate

if TYPE_CHECKING:
    from collections.abc import Callable

#: While no rate is known, calls are this far apart: the first refusal comes back before the last call has left. It
#: begins at the first figure, where nobody said how many calls to have in flight, and grows by a tenth a second.
UNKNOWN_AT_FIRST_PER_MIN, UNKNOWN_RATE_PER_MIN = 4_500.0, 30_000.0
UNKNOWN_GROWTH_A_S = 1.1
#: A minute's tokens may be short of the mark by so much time; nothing is made good across the minute's end.
TOKENS_CATCH_UP_S = 0.25
#: Between being let through and leaving, a call's intent goes to disk, which takes as long as the disk likes, and
#: calls whose intents share a flush would leave together. So each leaves so long after it was let through, where a
#: rate is kept; and where that moment has passed for several, because the machine stood still or the service asked
#: for a wait, they leave as evenly as they were let through. No call is held longer than the second figure: rather
#: than that it is given back.
LEAVES_AFTER_S = 0.1
LONGEST_HELD_S = 1.0
#: Where several share a quota and do not take turns, each may begin a call more in ten seconds than its pace says.
SPARED_PER_MIN = 6.0
#: A refusal that names no wait: full jitter up to this, doubled for each refusal that follows, up to the second.
UNNAMED_WAIT_S = 1.0
LONGEST_UNNAMED_WAIT_S = 60.0
#: So many named waits in a row that were kept to in vain are believed; after that, the same for named ones.
WAITS_BELIEVED = 3


@dataclass(slots=True)
class Taken:
    """A call that was let through, and what it took of the limits: given back when it ends.

    Attributes:
        sent_s: when it left; until then, when it was let through.
        is_paced: the known rate of requests was what delayed it.
        tokens: that were spent for it; `by_counter`: as the service's counter takes them.
        leaves_by_s: it is not held longer.
        mark: its place among the calls that left, for that counter; None: it has not left.
    """

    call: CallTokens
    sent_s: float
    is_paced: bool
    tokens: float
    by_counter: bool
    leaves_by_s: float = math.inf
    mark: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a refusal asks for.

    Attributes:
        all_s: how long nobody may call.
        this_call_s: how long the refused call is to wait although others may go on: it was refused by chance.
    """

    all_s: float
    this_call_s: float = 0.0


class Limiter:
    """The limits of one deployment, and how much of them is in use."""

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Args: what the user gave; None leaves it to be learned."""
        self._fixed_concurrency = max_concurrency
        self._tpm = tpm
        self._told_tpm: float | None = None
        self._first_s: float | None = None
        self._draw = draw
        self.adaptive = AdaptiveConcurrency()
        self.rate = LearnedRate(given=rpm)
        self.requests = Pace(rpm or self._unknown_rate(0.0))
        self.tokens = Pace(tpm, catch_up_s=TOKENS_CATCH_UP_S)
        self.charge = TokenCharge()
        self.in_flight = 0
        self.refusals = 0
        self._in_vain = 0
        self._next_leaves_s = -math.inf
        self._paused_until_s = -math.inf
        self.pause_reason = ""

    @property
    def max_concurrency(self) -> int:
        """Calls that may be in flight now: as given, or as learned so far."""
        return self._fixed_concurrency or self.adaptive.limit

    def room_in_s(self, now_s: float) -> float:
        """Seconds until a call may be made; infinite while only the end of another call makes room."""
        if self.in_flight >= self.max_concurrency:
            return math.inf
        leaves_s = 0.0 if self.rate.per_minute is None else self._next_leaves_s - LEAVES_AFTER_S - now_s
        return max(self.paused_s(now_s), self.requests.wait_s(now_s), self.tokens.wait_s(now_s), leaves_s)

    def take(self, call: CallTokens, now_s: float) -> Taken:
        """A call is let through."""
        if self._first_s is None:
            self._first_s = now_s
        self._follow(now_s)
        tokens = self.charge.of(call)
        is_paced = self.rate.per_minute is not None and self.requests.binds(now_s)
        self.requests.spend(1, now_s)
        self.tokens.spend(tokens, now_s)
        self.in_flight += 1
        self.adaptive.began(self.in_flight)
        return Taken(call, now_s, is_paced, tokens, self.charge.factor is not None)

    def departs_in_s(self, taken: Taken, now_s: float) -> float:
        """Seconds until a call that was let through is to leave.

        Returns:
            0: it leaves now; infinite: not soon, so it is to be given back.
        """
        wait_s = self.paused_s(now_s)
        if self.rate.per_minute is not None:
            wait_s = max(wait_s, self._next_leaves_s - now_s)
        if taken.is_paced:
            wait_s = max(wait_s, taken.sent_s + LEAVES_AFTER_S - now_s)
        if wait_s > 0:
            held_from_s = max(now_s, taken.sent_s + LEAVES_AFTER_S)
            taken.leaves_by_s = min(taken.leaves_by_s, held_from_s + LONGEST_HELD_S)
            return wait_s if now_s + wait_s <= taken.leaves_by_s else math.inf
        distance_s = 60 / CATCH_UP_RATE / (self.requests.per_minute or math.inf)
        self._next_leaves_s = max(self._next_leaves_s, now_s - LATE_S) + distance_s
        taken.sent_s, taken.mark = now_s, self.charge.sent(taken.call)
        self.rate.sent(now_s)
        self._follow(now_s)
        return 0.0

    def give_back(self, taken: Taken, actual_tokens: float | None) -> None:
        """The call has ended, or never left; an estimate of its use is put right where the use is known."""
        self.in_flight -= 1
        if taken.mark is None:
            self.requests.correct(-1)
            self.tokens.correct(-taken.tokens)
        elif actual_tokens is not None and not taken.by_counter:
            self.tokens.correct(actual_tokens - taken.tokens)

    # What the service lets know.

    def ended_well(self, latency_s: float) -> None:
        """A call ended well; it is still counted as in flight."""
        self._in_vain = 0
        rate = self.rate.per_minute
        self.adaptive.ended_well(latency_s, rate_per_s=rate / 60 if rate else None)

    def told(
        self,
        taken: Taken,
        now_s: float,
        *,
        rpm: float | None,
        tpm: float | None,
        tokens_left: float | None,
    ) -> None:
        """What the headers of a call's answer say; None where they say nothing that can be believed."""
        if rpm is not None:
            self.rate.tell(rpm)
            self._follow(now_s)
        if tpm is not None and self._tpm is None:
            self._told_tpm = tpm
            self._follow_tokens(now_s)
        if tokens_left is not None and taken.mark is not None:
            self.charge.left(taken.mark, tokens_left, self.rate.part)

    def refused(self, taken: Taken, now_s: float, wait_s: float | None) -> Rest:
        """A call was refused for rate. Returns who is to rest, and how long."""
        self.refusals += 1
        answer = self.rate.refused(taken.sent_s, now_s, wait_s)
        rate = self.rate.per_minute
        self._follow(now_s)
        if answer is Answer.IT_WAITS:
            if self.rate.stray.share:
                self.adaptive.take_back()
            return Rest(all_s=0.0, this_call_s=self._draw(0.1, UNNAMED_WAIT_S) if wait_s is None else wait_s)
        if answer is Answer.ALL_SLOWER:
            self.adaptive.refused(now_s, rate_per_s=rate / 60 if rate else None)
        if taken.sent_s < self._paused_until_s:
            return Rest(
                all_s=wait_s or 0.0
            )  # it was in flight when the pause that is under way, or was, began
        self._in_vain += 1
        if wait_s is None:
            return Rest(all_s=self._back_off(self._in_vain - 1))
        if self._in_vain <= WAITS_BELIEVED:
            return Rest(all_s=wait_s)
        return Rest(all_s=max(wait_s, self._back_off(self._in_vain - WAITS_BELIEVED)))

    def _back_off(self, doublings: int) -> float:
        return self._draw(0.1, min(LONGEST_UNNAMED_WAIT_S, UNNAMED_WAIT_S * 2.0 ** min(doublings, 10)))

    def share(self, part: float, now_s: float, slots: TimeSlots | None = None) -> None:
        """Keep to this part of the quotas: other processes take the rest, in turn with this one."""
        self.requests.slots = slots
        if part == self.rate.part:
            return
        self.rate.share(part)
        self.charge.begin_anew()
        self._follow(now_s)
        self._follow_tokens(now_s)

    def _follow(self, now_s: float) -> None:
        rate, part = self.rate.per_minute or self._unknown_rate(now_s), self.rate.part
        if part < 1 and 60 * part / rate < SHORTEST_TURN_S:
            rate = max(rate - SPARED_PER_MIN, rate / 2)
        # Of a rate that was learned, or that others share, nothing lost is made good: it may be the very edge.
        is_all_of_a_limit = part >= 1 and rate == self.rate.ceiling
        self.requests.catch_up_rate = CATCH_UP_RATE if is_all_of_a_limit else 1.0
        self.requests.change(rate, now_s)

    def _follow_tokens(self, now_s: float) -> None:
        whole = self._told_tpm if self._tpm is None else self._tpm
        self.tokens.change(None if whole is None else whole * self.rate.part, now_s)

    def _unknown_rate(self, now_s: float) -> float:
        if self._fixed_concurrency:
            return UNKNOWN_RATE_PER_MIN * self.rate.part
        since_s = math.floor(now_s - self._first_s) if self._first_s is not None else 0
        grown = UNKNOWN_AT_FIRST_PER_MIN * UNKNOWN_GROWTH_A_S ** min(since_s, 60)
        return min(UNKNOWN_RATE_PER_MIN, grown) * self.rate.part

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
            limit = self.max_concurrency
            return f"{limit} calls at once" if self._fixed_concurrency else f"{limit} calls at once so far"
        tokens_s, requests_s = self.tokens.wait_s(now_s), self.requests.wait_s(now_s)
        if max(tokens_s, requests_s) <= 0:
            return ""
        if tokens_s > requests_s:
            return f"{self.tokens.per_minute:.0f} tokens a minute"
        known = self.rate.per_minute
        return f"{known:.0f} requests a minute" if known else ""


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


#: What a gateway is thought to count for a reply when the request names no maximum; only a basis to learn from.
UNSTATED_MAXIMUM = 1000.0
#: So many calls must lie between two readings before they are compared: replies come back out of order.
_LEAST_CALLS = 8
_BOUNDS = (0.02, 50.0)
#: A count that was learned is taken a little higher: being refused costs more than half a percent.
_CAUTION = 1.004


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """A call before it is made.

    Attributes:
        expected: input and output that it is likely to take.
        input: of which input.
        maximum: output that it may take by its own words; None: it names none.
    """

    expected: float
    input: float = 0.0
    maximum: float | None = None

    @property
    def basis(self) -> float:
        """What a gateway would count, up to a factor."""
        return max(1.0, self.input + (UNSTATED_MAXIMUM if self.maximum is None else self.maximum))


@dataclass(slots=True)
class TokenCharge:
    """Learns one deployment's measure. `factor` × basis is what its counter takes; None: not known."""

    factor: float | None = None
    _basis_sent: float = 0.0
    _calls_sent: int = 0
    _from: tuple[float, int, float] | None = None
    _last: tuple[int, float] = (0, 0.0)

    def of(self, call: CallTokens) -> float:
        return call.expected if self.factor is None else call.basis * self.factor * _CAUTION

    def sent(self, call: CallTokens) -> tuple[float, int]:
        """A call is being made. Returns its mark, to be given back with what its reply says."""
        self._basis_sent += call.basis
        self._calls_sent += 1
        return self._basis_sent, self._calls_sent

    def begin_anew(self) -> None:
        """Forget the readings so far: other processes began, or ended, to move the same counter."""
        self._from = None

    def left(self, mark: tuple[float, int], tokens_left: float, part: float = 1.0) -> None:
        """The reply to the call of this mark said how many tokens are left in the current minute.

        Args:
            mark: of the call.
            tokens_left: to all who share the counter.
            part: of what moves the counter that is this process's.
        """
        basis, calls = mark
        if calls <= self._last[0]:
            return  # overtaken by a later call's reply
        if self._from is None or tokens_left > self._last[1]:
            self._from = (basis, calls, tokens_left)  # a new minute
        self._last = (calls, tokens_left)
        fell, spent = (self._from[2] - tokens_left) * part, basis - self._from[0]
        if calls - self._from[1] < _LEAST_CALLS or fell <= 0 or tokens_left <= 0:
            return
        seen = min(_BOUNDS[1], max(_BOUNDS[0], fell / spent))
        self.factor = seen if self.factor is None else self.factor + 0.2 * (seen - self.factor)
