"""How many requests a minute a deployment takes: as its user says, as its headers say, or as refusals teach.

A rate that was given or told is kept to from the first call. Where neither is there, or where calls are refused
although it is kept, the rate is found by trials. A refusal now and then at a rate that is kept begins none: a
standstill explains it (`standstills.py`), and it is enough to wait as asked. Every other one begins a trial:

    at first       the *edge* is what passed in the window that the service judges; go on at 98.5 % of it, or
                   at 88 % for 6 s or 40 calls where no edge was known before. Calls that filled the window in a
                   burst are counted over the window, whose end the wait tells
    again          at 88 % of what had passed when the trial began (66 % where that was counted over a second or
                   two), for 6 s, then 12, 24, 40, or for 40 calls, without a pause: what passes after one says
                   nothing
    most refused   the quota was cut. 90 % of what passes, at most halved at once
    nothing passes the window is full and only waiting helps; where that lasts over 10 s, it is a minute's
    few refused, and still so at the low rate, and at a still lower one: refusals do not depend on the rate.
                   Everything is as it was before the trial, and such refusals are expected from now on (`stray.py`)

    below the edge grow by 5 % each 3 s until 98.5 % of the edge
    at the edge    hold for 45 s; for 90 s at a minute's edge; for 15 s while it is not sure, or where a limit was
                   given or told
    then           the trial is over. Look beyond by 1.5 % each 3 s; by 5 % once 3 % past it, or while it is not
                   sure. It is sure once looking beyond has found it again, and a minute's is at once

So a stable quota is used at 98 to 103 % and costs a refusal or two a minute; a doubled one is found in 90 s.
The wait that a refusal names tells the window: up to 10 s a short one, more the minute's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeGuard

from audiobatch.limits.passed_calls import MINUTE_S, PassedCalls
from audiobatch.limits.standstills import Standstills
from audiobatch.limits.stray import StrayRefusals
from audiobatch.limits.trial import DEPTH, Finding, Trial

# At the edge: how long the rate is held there before it looks beyond, which costs a refusal; at a low rate so many
# calls, which take longer.
HOLD_S, HOLD_CALLS = 45.0, 250
#: … while it is not sure, or where a limit was given or told.
FIRST_HOLD_S, FIRST_HOLD_CALLS = 15.0, 60
MINUTE_HOLD_S = 90.0
BELOW_EDGE = 0.985
#: Two edges that differ by less are the same edge, found twice.
SAME_EDGE = 0.06

# Growing: every `STEP_S`, where so much of the rate is in use.
STEP_S, IN_USE = 3.0, 0.8
GROWTH = 1.05
#: Past an edge that is sure, up to so far beyond it.
LOOK, LOOK_UNTIL = 1.015, 1.03
#: From a test's low rate, this far from the edge, back to near it.
QUICK, FAR_BELOW = 1.25, 0.8
#: Back to where the rate was before a deep cut: it may have been a burst of refusals, and no smaller quota.
RECOVERY = 1.1
#: The same after the very first refusals, unless a window was counted: perhaps no more was tried so far.
DOUBT = 1.25
#: … and again, where so much more passed than before the first ones.
ANOTHER_EDGE = 1.25

# Going lower: the edge, where a test's low rate is still refused; the rate below what passes, after a deep cut,
# which halves the rate at most and is left at the earliest after so many seconds.
LOWER_EDGE = 0.97
BELOW_PASSING, MOST_AT_ONCE, AFTER_CUT_S = 0.9, 0.5, 15.0

#: Waits up to this are of windows of 1 to 10 s; longer ones, up to the second bound, of the minute.
SHORT_WAIT_S, LONGEST_MINUTE_WAIT_S = 10.5, 75.0
_LEAST_PER_MINUTE = 1.0
_ROUNDED = 1 + 1e-9


class Answer(Enum):
    """Who is to wait after a refusal."""

    ALL_SLOWER = "everybody waits as asked, and goes on slower"
    ALL_WAIT = "everybody waits as asked"
    IT_WAITS = "the refused request alone: it was refused by chance, or that is being found out"


@dataclass(slots=True)
class LearnedRate:
    """Requests a minute of one deployment.

    Attributes:
        given: by the user; never passed, and what headers say does not count.
        told: by the service's headers.
        edge: requests a minute above which calls were refused; None: none were.
        part: of the deployment's limit that is this process's, where several share it.
        stray: refusals that come at any rate.
    """

    given: float | None = None
    told: float | None = None
    edge: float | None = None
    part: float = 1.0
    stray: StrayRefusals = field(default_factory=StrayRefusals)
    _rate: float | None = None
    _is_sure: bool = False
    _trial: Trial | None = None
    _calls: PassedCalls = field(default_factory=PassedCalls)
    _standstills: Standstills = field(default_factory=Standstills)
    _changed_at_s: float = -math.inf
    _resumed_at_s: float = -math.inf
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
                self.edge = self._rate = self._trial = None
                self._is_sure = False
                self._grow_at_s = math.inf

    def share(self, part: float) -> None:
        """Keep to this part of the limit from now on; what was learned was of the part so far."""
        factor, self.part = part / self.part, part
        self.edge = None if self.edge is None else self.edge * factor
        self._rate = None if self._rate is None else self._rate * factor
        if self._trial is not None:
            self._trial.scale(factor)

    def sent(self, now_s: float) -> None:
        """A request is being sent."""
        self._calls.sent(now_s)
        self._used += 1
        self.stray.sent()
        if self._trial is not None:
            self._trial.sent(self.per_minute, now_s)
        if now_s >= self._grow_at_s:
            self._grow(now_s)

    def refused(self, sent_s: float, now_s: float, wait_s: float | None) -> Answer:
        """A request that was sent at `sent_s` was refused, with the wait that the service named.

        Returns:
            Who is to wait.
        """
        named_s = wait_s or 0.0
        self._calls.refused(sent_s)
        if named_s > LONGEST_MINUTE_WAIT_S:
            return Answer.ALL_WAIT  # no window's
        trial, known = self._trial, self.per_minute
        is_late = sent_s <= self._changed_at_s  # sent before the last change, which answered it
        by_chance = self._is_kept(known) and self._standstills.explains(sent_s, now_s, named_s, known)
        if trial is not None and known is not None and not is_late and not by_chance:
            trial.refused(known, now_s)
        if not self.stray.refused():
            return Answer.IT_WAITS
        if by_chance:
            self._resumed_at_s = now_s + named_s
            return Answer.ALL_WAIT
        if is_late:
            return Answer.IT_WAITS if trial is not None and trial.goes_on else Answer.ALL_WAIT
        if trial is None or known is None or trial.is_over(known):
            return self._begin(sent_s, now_s, named_s)
        return self._go_on(trial, known, sent_s, now_s, named_s)

    def _is_kept(self, known: float | None) -> TypeGuard[float]:
        """Whether the rate is what it is known to be: nothing is being found out."""
        if self.ceiling is not None:
            return known == self.ceiling
        is_test = self._trial is not None and self._trial.goes_on
        return known is not None and self._is_sure and not is_test and not self._looks_beyond(known)

    def _looks_beyond(self, known: float | None) -> bool:
        """Whether calls are made at the edge that was found before, or past it."""
        return known is not None and self.edge is not None and known > _ROUNDED * BELOW_EDGE * self.edge

    def _begin(self, sent_s: float, now_s: float, named_s: float) -> Answer:
        """The first refusal after a while."""
        self._resumed_at_s = now_s + named_s
        known = self.per_minute
        counted = self._calls.share_of_window(sent_s, now_s, named_s) if known is None else None
        if named_s > SHORT_WAIT_S:
            passed = self._calls.in_a_minute(now_s)
        elif counted is not None:
            passed = counted
        else:
            passed = self._calls.per_minute(now_s, is_known=known is not None)
        if not passed and known is None:
            return Answer.ALL_WAIT  # what rate would pass cannot be told, or not yet
        self._changed_at_s = now_s
        edge = max(_LEAST_PER_MINUTE, min(math.inf if passed is None else passed, known or math.inf))
        before = self._trial
        self._trial = self._new_trial(edge, now_s, is_counted=counted is not None)
        is_new = self._trial.edge is None and self.ceiling is None
        self._is_sure = self._looks_beyond(known) and abs(edge - (self.edge or 0.0)) <= SAME_EDGE * edge
        if is_new and named_s <= SHORT_WAIT_S:
            self.edge, self._rate = edge, max(_LEAST_PER_MINUTE, edge * DEPTH)
            is_another = before is None or edge > ANOTHER_EDGE * before.edge_found
            if is_another and counted is None and not self.stray.share:
                self._trial.recovery = DOUBT
            self._next_step(self._resumed_at_s, self._trial.test_s(self._rate))
        else:
            self._follow(edge, of_a_minute=named_s > SHORT_WAIT_S)
        return Answer.ALL_SLOWER

    def _follow(self, edge: float, *, of_a_minute: bool) -> None:
        """Go on a little below this."""
        self.edge, self._rate = edge, max(_LEAST_PER_MINUTE, edge * BELOW_EDGE)
        self._is_sure = self._is_sure or of_a_minute
        self._next_step(self._resumed_at_s, MINUTE_HOLD_S if of_a_minute else self._hold_s)

    def _new_trial(self, edge: float, now_s: float, *, is_counted: bool = False) -> Trial:
        before = self._trial
        is_steady = is_counted or edge == self.ceiling or self._calls.is_steady(edge, now_s)
        certain = self._calls.certain_per_minute(now_s)
        return Trial(
            edge_found=edge,
            passed=edge if is_steady else max(_LEAST_PER_MINUTE, min(edge, certain)),
            rate=before.rate if before else self._rate,
            edge=before.edge if before else self.edge,
            is_sure=before.is_sure if before else self._is_sure,
            is_steady=is_steady,
            passed_at_s=now_s,
            refused_at_s=now_s,
        )

    def _go_on(self, trial: Trial, known: float, sent_s: float, now_s: float, named_s: float) -> Answer:
        """A refusal although the rate was cut. Returns who is to wait."""
        # Of two calls sent at nearly the same time the second's refusal can come first.
        passed = self._calls.count(self._resumed_at_s, sent_s - (now_s - sent_s) / 2)
        finding = trial.finding(known, now_s, passed=passed)
        for_a_minute = named_s > SHORT_WAIT_S
        if finding is Finding.NOTHING_PASSES:
            for_a_minute = for_a_minute or now_s - trial.passed_at_s > SHORT_WAIT_S
        else:
            trial.passed_at_s = now_s
        if finding is Finding.NOTHING_YET and not for_a_minute:
            return Answer.IT_WAITS
        self._changed_at_s = now_s
        if for_a_minute:
            self._wait_for_a_minute(trial, known, now_s, named_s)
            return Answer.ALL_WAIT if finding is Finding.NOTHING_PASSES else Answer.ALL_SLOWER
        if finding is Finding.STRAY:
            self._are_stray(trial, now_s)
            return Answer.IT_WAITS
        if finding is Finding.TOO_HIGH:
            self._slow_down(trial, known, now_s)
            return Answer.IT_WAITS
        self._resumed_at_s = now_s + named_s
        if finding is Finding.FAR_TOO_HIGH:
            self._cut_deep(trial, known, now_s)
            return Answer.ALL_SLOWER
        trial.paused()
        return Answer.ALL_WAIT

    def _wait_for_a_minute(self, trial: Trial, known: float, now_s: float, named_s: float) -> None:
        """It is the minute's quota: wait as asked, and go on with what passed in the last minute."""
        self._resumed_at_s = now_s + named_s
        passing = min(self._calls.in_a_minute(now_s) or known, known)
        self._follow(max(_LEAST_PER_MINUTE, passing), of_a_minute=True)
        trial.recovery = None
        trial.paused()

    def _slow_down(self, trial: Trial, known: float, now_s: float) -> None:
        """The next lower rate of the trial, without a pause."""
        self.edge = max(_LEAST_PER_MINUTE, min(self.edge or known, known / BELOW_EDGE) * LOWER_EDGE)
        self._rate, trial.recovery = max(_LEAST_PER_MINUTE, trial.slower(known)), None
        self._next_step(now_s, trial.test_s(self._rate))

    def _cut_deep(self, trial: Trial, known: float, now_s: float) -> None:
        """Much less passes than is sent: another trial, of what passes now."""
        passing = max(_LEAST_PER_MINUTE, known * max(MOST_AT_ONCE, trial.let_in))
        self.edge, self._rate = passing, max(_LEAST_PER_MINUTE, passing * BELOW_PASSING)
        self._trial = self._new_trial(passing, now_s)
        self._trial.recovery, self._trial.recovers_to = RECOVERY, BELOW_EDGE * trial.edge_found
        self._next_step(self._resumed_at_s, max(AFTER_CUT_S, self._trial.test_s(self._rate)))
        self._trial.paused()

    def _are_stray(self, trial: Trial, now_s: float) -> None:
        """As it was before the trial; where such a share was known before, no higher than what had passed."""
        if self.stray.share:
            self._rate, self.edge, self._is_sure = trial.passed, trial.passed, False
        else:
            self._rate, self.edge, self._is_sure = trial.rate, trial.edge, trial.is_sure
        self.stray.found(trial.refused_low, trial.sent_low)
        self._trial = None
        self._resumed_at_s = now_s
        self._next_step(now_s, STEP_S)

    @property
    def _hold_s(self) -> float:
        a_call_s = MINUTE_S / (self._rate or math.inf)
        if self._is_sure and self.ceiling is None:
            return max(HOLD_S, HOLD_CALLS * a_call_s)
        return max(FIRST_HOLD_S, FIRST_HOLD_CALLS * a_call_s)

    def _grow(self, now_s: float) -> None:
        rate, edge = self._rate, self.edge
        if rate is None or edge is None:
            self._grow_at_s = math.inf
            return
        elapsed_s = now_s - self._used_since_s
        idle = self._used * MINUTE_S / elapsed_s < IN_USE * rate if elapsed_s > 0 else True
        near = BELOW_EDGE * edge
        trial = self._trial
        if trial is not None and trial.recovery and not idle and rate < trial.recovers_to:
            self._rate = min(rate * trial.recovery, trial.recovers_to)
            self.edge = max(edge, self._rate)
            pause_s = STEP_S
        elif idle or (self.ceiling is not None and rate >= self.ceiling):
            pause_s = STEP_S
        elif rate < near:
            self._rate = min(rate * (QUICK if rate < FAR_BELOW * near and trial else GROWTH), near)
            pause_s = self._hold_s if self._rate >= near else STEP_S
        else:
            self._trial = None
            self._rate = rate * (LOOK if self._is_sure and rate < LOOK_UNTIL * edge else GROWTH)
            pause_s = STEP_S
        self._next_step(now_s, pause_s)

    def _next_step(self, now_s: float, pause_s: float) -> None:
        self._grow_at_s = now_s + pause_s
        self._used, self._used_since_s = 0, now_s
