"""How fast one deployment may be called: calls in flight, requests a minute, tokens a minute.

A limit is what the user gave; else what the headers of the service state; and where calls are refused all the same,
what refusals teach (`rate.py`). Tokens are reserved by an estimate, which is corrected when the reply comes, or by
what the counter of the service was seen to take.

Nothing here waits: a limiter only says when there is room. The pool waits.

A `Pace` spends one quota evenly in time, never in a burst. A quota of a minute is judged over windows of 1 to 10
seconds (PROTOCOL: learn.microsoft.com, "Manage Azure OpenAI quota", 2026-11), so a minute's share sent at once is
refused. A pace keeps two lines in time, and the later one decides:

    even      at the rate of the quota; it makes up for up to `CATCH_UP_S` that a pause or a slow machine cost
    smooth    at 2 % more than that rate, with almost no memory, so that catching up is spread out. Where the rate
              is not the whole of a known limit, at the rate itself: nothing is caught up

Over any second at most 102 % of a second's share is sent; over a minute at most 100 % and `CATCH_UP_S`.

Processes that share a quota each use a part of it, and calls of several can still fall into one second: of four
processes with ten calls a second together, each sends two or three in any second. So they also use `TimeSlots`: the
even line is cut into slots of one unit, and each process spends in every n-th slot.

The token counter of a gateway takes an amount that differs from what the call uses. It counts an estimate before
the model runs: the input, and the maximum of the reply, needed or not (same source). Where headers say how many
tokens are left, `TokenCharge` learns the counter's measure from how that number falls. Until then a call is counted
at the estimate of its real use.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.limits.concurrency import AdaptiveConcurrency
from audiobatch.limits.rate import RateLearner, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

#: The pace while no rate is known: the first refusal then comes back before the last call has left. Without a given
#: concurrency it starts at the first figure and grows by a tenth each second.
UNKNOWN_AT_FIRST_PER_MIN, UNKNOWN_RATE_PER_MIN = 4_500.0, 30_000.0
UNKNOWN_GROWTH_A_S = 1.1
#: Lost time that the pace of tokens makes up for: a counter of tokens starts anew each minute.
TOKENS_CATCH_UP_S = 0.25
#: Between its permit and its departure the intent of a call is written to disk. That takes a varying time, and
#: calls whose intents share a flush would depart together. Where a rate is known, each call therefore departs this
#: long after its permit. Where several are late, because the machine stalled or the service asked for a wait, they
#: depart as evenly as they were permitted. A call that would be held longer than the second figure returns its
#: permit.
DEPARTS_AFTER_S = 0.1
LONGEST_HELD_S = 1.0
#: Processes that share a quota without time slots can each start one call more in ten seconds than their pace says.
SPARED_PER_MIN = 6.0
#: The wait after a refusal that names none: full jitter up to this, doubled with each further refusal up to the
#: second figure.
UNNAMED_WAIT_S = 1.0
LONGEST_UNNAMED_WAIT_S = 60.0
#: After this many named waits in a row without success, a named wait is lengthened in the same way.
WAITS_BELIEVED = 3


@dataclass(slots=True)
class Taken:
    """What one permitted call has taken of the limits, until it ends.

    Attributes:
        sent_s: when it departed; until then, when it was permitted.
        is_paced: it had to wait for the known rate of requests.
        tokens: tokens that were spent for it.
        by_counter: `tokens` is what the service's counter takes, not what the call is expected to use.
        departs_by_s: it is not held longer than until then.
        mark: its position among the calls that departed, for `TokenCharge`; None: it has not departed.
    """

    call: CallTokens
    sent_s: float
    is_paced: bool
    tokens: float
    by_counter: bool
    departs_by_s: float = math.inf
    mark: tuple[float, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The waits that follow a refusal.

    Attributes:
        all_s: how long nobody calls the deployment.
        this_call_s: how long only the refused call waits: its refusal does not depend on the rate.
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
        """Create the limits of a deployment.

        Args:
            max_concurrency: calls in flight; None: learned.
            rpm: requests a minute; None: from headers, or learned.
            tpm: tokens a minute; None: from headers.
            draw: returns a random number between two.
        """
        self._fixed_concurrency = max_concurrency
        self._tpm = tpm
        self._told_tpm: float | None = None
        self._first_s: float | None = None
        self._draw = draw
        self.adaptive = AdaptiveConcurrency()
        self.rate = RateLearner(given=rpm)
        self.requests = Pace(rpm or self._unknown_rate(0.0))
        self.tokens = Pace(tpm, catch_up_s=TOKENS_CATCH_UP_S)
        self.charge = TokenCharge()
        self.in_flight = 0
        self.refusals = 0
        self._in_vain = 0
        self._next_departure_s = -math.inf
        self._paused_until_s = -math.inf
        self.pause_reason = ""

    @property
    def max_concurrency(self) -> int:
        """Calls that may be in flight now: as given, or as learned so far."""
        return self._fixed_concurrency or self.adaptive.limit

    def room_in_s(self, now_s: float) -> float:
        """Return the seconds until a call may be made; infinite: not before another call has ended."""
        if self.in_flight >= self.max_concurrency:
            return math.inf
        departs_s = 0.0 if self.rate.per_minute is None else self._next_departure_s - DEPARTS_AFTER_S - now_s
        return max(self.paused_s(now_s), self.requests.wait_s(now_s), self.tokens.wait_s(now_s), departs_s)

    def take(self, call: CallTokens, now_s: float) -> Taken:
        """Count a call that is permitted."""
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
        """Return the seconds until a permitted call departs.

        Returns:
            0: it departs now, and is counted as sent. Infinite: not soon, so its permit is to be returned.
        """
        wait_s = self.paused_s(now_s)
        if self.rate.per_minute is not None:
            wait_s = max(wait_s, self._next_departure_s - now_s)
        if taken.is_paced:
            wait_s = max(wait_s, taken.sent_s + DEPARTS_AFTER_S - now_s)
        if wait_s > 0:
            held_from_s = max(now_s, taken.sent_s + DEPARTS_AFTER_S)
            taken.departs_by_s = min(taken.departs_by_s, held_from_s + LONGEST_HELD_S)
            return wait_s if now_s + wait_s <= taken.departs_by_s else math.inf
        distance_s = 60 / CATCH_UP_RATE / (self.requests.per_minute or math.inf)
        self._next_departure_s = max(self._next_departure_s, now_s - LATE_S) + distance_s
        taken.sent_s, taken.mark = now_s, self.charge.sent(taken.call)
        self.rate.sent(now_s)
        self._follow(now_s)
        return 0.0

    def give_back(self, taken: Taken, actual_tokens: float | None) -> None:
        """Count a call that has ended, or never departed; correct its estimate where the use is known."""
        self.in_flight -= 1
        if taken.mark is None:
            self.requests.correct(-1)
            self.tokens.correct(-taken.tokens)
        elif actual_tokens is not None and not taken.by_counter:
            self.tokens.correct(actual_tokens - taken.tokens)

    def ended_well(self, latency_s: float) -> None:
        """Learn from a call that ended well and is still counted as in flight."""
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
        """Follow the limits in the headers of a reply; None: the headers state none that is plausible."""
        if rpm is not None:
            self.rate.state(rpm)
            self._follow(now_s)
        if tpm is not None and self._tpm is None:
            self._told_tpm = tpm
            self._follow_tokens(now_s)
        if tokens_left is not None and taken.mark is not None:
            self.charge.left(taken.mark, tokens_left, self.rate.part)

    def refused(self, taken: Taken, now_s: float, wait_s: float | None) -> Rest:
        """Learn from a call that was refused for rate. Returns who waits, and how long."""
        self.refusals += 1
        answer = self.rate.refused(taken.sent_s, now_s, wait_s)
        rate = self.rate.per_minute
        self._follow(now_s)
        if answer is Wait.THIS_CALL:
            if self.rate.random_rejections.share:
                self.adaptive.take_back()
            return Rest(all_s=0.0, this_call_s=self._draw(0.1, UNNAMED_WAIT_S) if wait_s is None else wait_s)
        if answer is Wait.ALL_AND_SLOWER:
            self.adaptive.refused(now_s, rate_per_s=rate / 60 if rate else None)
        if taken.sent_s < self._paused_until_s:
            return Rest(all_s=wait_s or 0.0)  # it departed before the last pause ended
        self._in_vain += 1
        if wait_s is None:
            return Rest(all_s=self._back_off(self._in_vain - 1))
        if self._in_vain <= WAITS_BELIEVED:
            return Rest(all_s=wait_s)
        return Rest(all_s=max(wait_s, self._back_off(self._in_vain - WAITS_BELIEVED)))

    def _back_off(self, doublings: int) -> float:
        return self._draw(0.1, min(LONGEST_UNNAMED_WAIT_S, UNNAMED_WAIT_S * 2.0 ** min(doublings, 10)))

    def share(self, part: float, now_s: float, slots: TimeSlots | None = None) -> None:
        """Use only this part of the quotas, in these time slots; other processes use the rest."""
        self.requests.slots = slots
        if part == self.rate.part:
            return
        self.rate.share(part)
        self.charge.begin_anew()
        self._follow(now_s)
        self._follow_tokens(now_s)

    def _follow(self, now_s: float) -> None:
        rate, part = self.rate.per_minute or self._unknown_rate(now_s), self.rate.part
        if part < 1 and 60 * part / rate < SHORTEST_SLOT_S:
            rate = max(rate - SPARED_PER_MIN, rate / 2)
        # A learned or shared rate makes up for no lost time: it may be exactly what the quota allows.
        is_all_of_a_limit = part >= 1 and rate == self.rate.limit
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
        """Pause the deployment for this long; a longer pause under way is not shortened."""
        if now_s + seconds > self._paused_until_s:
            self._paused_until_s = now_s + seconds
            self.pause_reason = reason

    def paused_s(self, now_s: float) -> float:
        """Return the seconds that are left of a pause."""
        return max(0.0, self._paused_until_s - now_s)

    def binding(self, now_s: float) -> str:
        """Return which limit delays the next call, as text for the progress line; empty: none does."""
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


#: Lost time that a pace makes up for later, a little at a time.
CATCH_UP_S = 2.5
#: How much faster than the quota's rate it does so.
CATCH_UP_RATE = 1.02
#: Delay that the smooth line does not spread: timers and event loops are late by this much.
LATE_S = 0.02
#: Less than this is rounding of the clock.
_ROUNDING_S = 1e-6
#: A pace whose lost time is below this share of `catch_up_s` uses the whole rate.
_NEARLY = 0.9
#: How far into its slot a process may still spend a unit; later ones could meet the next process's.
SLOT_OPEN = 0.5
#: Slots shorter than this cannot be kept; chance then spreads the processes well enough.
SHORTEST_SLOT_S = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSlots:
    """The time slots of one of several processes that share a quota.

    Attributes:
        position: of this process, 0 to `count` - 1.
        count: number of processes.
        clock_ahead_s: the shared clock minus the clock of this process.
    """

    position: int
    count: int
    clock_ahead_s: float

    def wait_s(self, at_s: float, period_s: float) -> float:
        """Return the seconds from `at_s` until a slot of this process is open; a period has a slot for each."""
        slot_s = period_s / self.count
        if self.count == 1 or slot_s < SHORTEST_SLOT_S:
            return 0.0
        into_s = (at_s + self.clock_ahead_s - self.position * slot_s) % period_s
        return 0.0 if into_s <= SLOT_OPEN * slot_s else period_s - into_s


@dataclass(slots=True)
class Pace:
    """The even spending of one quota.

    Attributes:
        per_minute: units a minute; None: no limit.
        catch_up_s: how much lost time it makes up for.
        catch_up_rate: how many times as fast as `per_minute` it does so.
        slots: time slots of this process, whose part `per_minute` is; None: it has the quota to itself.
    """

    per_minute: float | None
    catch_up_s: float = CATCH_UP_S
    catch_up_rate: float = CATCH_UP_RATE
    slots: TimeSlots | None = None
    _even_s: float = -math.inf
    _smooth_s: float = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the next unit may be spent."""
        if self.per_minute is None:
            return 0.0
        at_s = max(self._even_s, self._smooth_s, now_s)
        if self.slots is not None:
            at_s += self.slots.wait_s(at_s, 60 / self.per_minute)
        wait_s = at_s - now_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def binds(self, now_s: float) -> bool:
        """Return whether the rate delays units now; not while there is much lost time to make up for."""
        if self.per_minute is None:
            return False
        return self.slots is not None or self._even_s > now_s - _NEARLY * self.catch_up_s

    def spend(self, units: float, now_s: float) -> None:
        """Spend this many units."""
        if self.per_minute is None:
            return
        one_s = 60 / self.per_minute
        if self._even_s == -math.inf:
            self._even_s = now_s  # nothing was lost before the first unit
        self._even_s = max(self._even_s, now_s - self.catch_up_s) + units * one_s
        self._smooth_s = max(self._smooth_s, now_s - LATE_S) + units * one_s / self.catch_up_rate

    def correct(self, units: float) -> None:
        """Spend the units by which an estimate was too low; negative: return those by which it was too high."""
        if self.per_minute is not None and self._even_s > -math.inf:
            self._even_s += units * 60 / self.per_minute
            self._smooth_s += units * 60 / self.per_minute

    def change(self, per_minute: float | None, now_s: float) -> None:
        """Change the rate. Units that are spent ahead stay the same number, so their time shrinks or grows."""
        if per_minute == self.per_minute:
            return
        if per_minute is not None and self.per_minute is not None:
            ratio = self.per_minute / per_minute
            self._even_s = now_s + max(0.0, self._even_s - now_s) * ratio
            self._smooth_s = now_s + max(0.0, self._smooth_s - now_s) * ratio
        else:
            self._even_s = self._smooth_s = -math.inf
        self.per_minute = per_minute


#: Tokens that a gateway is assumed to count for a reply without a maximum; only a basis to learn from.
UNSTATED_MAXIMUM = 1000.0
#: Calls between two readings before they are compared: replies come back out of order.
_LEAST_CALLS = 8
_BOUNDS = (0.02, 50.0)
#: A learned count is raised a little: a refusal costs more than half a percent.
_CAUTION = 1.004


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """Tokens of a call before it is made.

    Attributes:
        expected: input and output tokens that it probably uses.
        input: the input among them.
        maximum: output tokens that the request allows; None: it states no maximum.
    """

    expected: float
    input: float = 0.0
    maximum: float | None = None

    @property
    def basis(self) -> float:
        """What a gateway counts, up to a factor."""
        return max(1.0, self.input + (UNSTATED_MAXIMUM if self.maximum is None else self.maximum))


@dataclass(slots=True)
class TokenCharge:
    """Learns what the token counter of one deployment takes for a call.

    Attributes:
        factor: the counter takes `factor` × `CallTokens.basis`; None: not known yet.
    """

    factor: float | None = None
    _basis_sent: float = 0.0
    _calls_sent: int = 0
    _from: tuple[float, int, float] | None = None
    _last: tuple[int, float] = (0, 0.0)

    def of(self, call: CallTokens) -> float:
        """Return the tokens to spend for a call."""
        return call.expected if self.factor is None else call.basis * self.factor * _CAUTION

    def sent(self, call: CallTokens) -> tuple[float, int]:
        """Count a call that departs. Returns its mark, for `left`."""
        self._basis_sent += call.basis
        self._calls_sent += 1
        return self._basis_sent, self._calls_sent

    def begin_anew(self) -> None:
        """Forget the readings so far: other processes have started or stopped to use the same counter."""
        self._from = None

    def left(self, mark: tuple[float, int], tokens_left: float, part: float = 1.0) -> None:
        """Learn from a reply that states how many tokens are left in the current minute.

        Args:
            mark: what `sent` returned for the call.
            tokens_left: tokens left to all processes.
            part: part of the quota that this process uses.
        """
        basis, calls = mark
        if calls <= self._last[0]:
            return  # the reply to a later call came first
        if self._from is None or tokens_left > self._last[1]:
            self._from = (basis, calls, tokens_left)  # a new minute
        self._last = (calls, tokens_left)
        fell, spent = (self._from[2] - tokens_left) * part, basis - self._from[0]
        if calls - self._from[1] < _LEAST_CALLS or fell <= 0 or tokens_left <= 0:
            return
        seen = min(_BOUNDS[1], max(_BOUNDS[0], fell / spent))
        self.factor = seen if self.factor is None else self.factor + 0.2 * (seen - self.factor)
