"""How fast one deployment may be called: calls in flight, requests a minute, tokens a minute.

What is kept to is what the user gave; where nothing was given, what the service's headers say; and where calls
are refused all the same, what refusals teach. Tokens are reserved by an estimate and put right when the reply
comes, or taken as the service's own counter is seen to take them.

Nothing here waits: a limiter only says when there will be room. The waiting is the pool's.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.limits.concurrency import AdaptiveConcurrency
from audiobatch.limits.pace import CATCH_UP_RATE, LATE_S, SHORTEST_TURN_S, Pace
from audiobatch.limits.rate import Answer, LearnedRate
from audiobatch.limits.token_charge import CallTokens, TokenCharge

if TYPE_CHECKING:
    from collections.abc import Callable

    from audiobatch.limits.pace import TimeSlots

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

    def leaves_in_s(self, taken: Taken, now_s: float) -> float:
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
