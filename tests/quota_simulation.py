"""A deployment with a quota, and limiters that always have more calls to make, in simulated time.

The quota is judged by the emulator's own meter, on the simulation's clock; nothing sleeps. Beside the quota the
service can refuse calls at random, whatever their rate, or all calls for a while; and others can use its quota.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from audiobatch.limits.limiter import CallTokens, Limiter, Taken
from audiobatch_emulator.config import Quota
from audiobatch_emulator.quota import Quotas, Verdict

NAME = "d"
ROUND_TRIP_S = 0.02
Spans = Sequence[tuple[float, float]]


def stall_spans(
    a_minute: float, shortest_s: float, longest_s: float, *, until_s: float, seed: int = 1
) -> Spans:
    """Return the spans of random stalls, so many a minute, of a duration between these two."""
    chance = random.Random(seed)
    from_s, found = 5.0, []
    while (from_s := from_s + chance.expovariate(a_minute / 60)) < until_s:
        to_s = from_s + chance.uniform(shortest_s, longest_s)
        found.append((from_s, to_s))
        from_s = to_s
    return found


def _goes_on(moment_s: float, spans: Spans) -> float:
    return next((to_s for from_s, to_s in spans if from_s <= moment_s < to_s), moment_s)


@dataclass
class Simulation:
    """Limiters against one quota.

    Attributes:
        others: limiters of other processes on the same quota.
        random_share: share of calls that is refused at any rate.
        random_wait_s: wait that such a refusal names.
        hears: the client reads the limits in headers.
        names_waits: refusals name their wait.
        jitter_s: a call arrives up to this much late, at random.
        intent_s: a call's intent takes up to this long to reach the disk, at random.
        stalls: spans in which the service stalls: calls arrive when it goes on.
        halts: spans in which the client stalls: calls depart when it goes on.
        counter_takes: what the service's token counter takes for a call.
    """

    limiter: Limiter
    rpm: int | None = None
    tpm: int | None = None
    others: tuple[Limiter, ...] = ()
    random_share: float = 0.0
    random_wait_s: float | None = None
    latency_s: float = 0.5
    hears: bool = True
    names_waits: bool = True
    jitter_s: float = 0.01
    intent_s: float = 0.03
    stalls: Spans = ()
    halts: Spans = ()
    counter_takes: float = 1000.0
    call: CallTokens = field(default_factory=lambda: CallTokens(expected=100.0, input=20.0))
    seed: int = 1
    now_s: float = 0.0
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        for limiter in (self.limiter, *self.others):
            limiter._draw = self._random.uniform
        self._quotas = Quotas({NAME: Quota(rpm=self.rpm, tpm=self.tpm)}, now=lambda: self.now_s)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wakes_at_s: dict[int, float] = {}
        self._bursts: list[tuple[float, float, float | None]] = []

    def burst(self, from_s: float, to_s: float, wait_s: float | None) -> None:
        """Between these moments every call is refused, with this wait named."""
        self._bursts.append((from_s, to_s, wait_s))

    def strangers(self, from_s: float, to_s: float, per_minute: float) -> None:
        """Somebody else calls the same deployment at this rate."""

        def call(moment_s: float) -> None:
            self._quotas.take(NAME, round(self.counter_takes))
            if moment_s < to_s:
                later_s = moment_s + 60 / per_minute
                self.at(later_s, lambda: call(later_s))

        self.at(from_s, lambda: call(from_s))

    def change(self, **quota: int | None) -> None:
        self._quotas.change({NAME: Quota(**quota)})

    def at(self, moment_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment_s, next(self._order), act))

    def run(self, until_s: float) -> None:
        self._ask()
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
            self._ask()
        self.now_s = until_s

    def share(self, from_s: float, to_s: float, per_minute: float) -> float:
        """Accepted calls as a share of a quota."""
        return (
            sum(from_s <= moment_s < to_s for moment_s in self.accepted_s)
            * 60
            / (per_minute * (to_s - from_s))
        )

    def refused_share(self, from_s: float = 0.0) -> float:
        refused = sum(moment_s >= from_s for moment_s in self.refused_s)
        return refused / max(1, refused + sum(moment_s >= from_s for moment_s in self.accepted_s))

    def episodes(self, gap_s: float = 2.0) -> list[float]:
        """When each group of refusals began."""
        began, last = [], -1e9
        for moment_s in self.refused_s:
            if moment_s - last > gap_s:
                began.append(moment_s)
            last = moment_s
        return began

    def _ask(self) -> None:
        for limiter in (self.limiter, *self.others):
            self._ask_of(limiter)

    def _ask_of(self, limiter: Limiter) -> None:
        wait_s = _goes_on(self.now_s, self.halts) - self.now_s
        while wait_s <= 0 and (wait_s := limiter.room_in_s(self.now_s)) <= 0:
            taken = limiter.take(self.call, self.now_s)
            self.most_in_flight = max(self.most_in_flight, limiter.in_flight)
            written_s = self.now_s + self._random.uniform(0, self.intent_s)
            self.at(written_s, partial(self._leave, limiter, taken))
        wakes_s = self.now_s + wait_s
        if wait_s < 1e9 and not (self.now_s < self._wakes_at_s.get(id(limiter), -1.0) <= wakes_s):
            self._wakes_at_s[id(limiter)] = wakes_s
            self.at(wakes_s + self._random.uniform(0, 0.002), lambda: None)

    def _leave(self, limiter: Limiter, taken: Taken) -> None:
        again_s = _goes_on(self.now_s, self.halts)
        if again_s == self.now_s and (wait_s := limiter.departs_in_s(taken, self.now_s)) > 0:
            if wait_s == math.inf:
                limiter.give_back(taken, 0.0)
                return
            again_s += wait_s + self._random.uniform(0, 0.002)
        if again_s > self.now_s:
            self.at(again_s, lambda: self._leave(limiter, taken))
            return
        arrives_s = self.now_s + ROUND_TRIP_S / 2 + self._random.uniform(0, self.jitter_s)
        self.at(_goes_on(arrives_s, self.stalls), lambda: self._arrive(limiter, taken))

    def _arrive(self, limiter: Limiter, taken: Taken) -> None:
        refused, named_s = self._refused_anyway()
        verdict = None if refused else self._quotas.take(NAME, round(self.counter_takes))
        if verdict is not None and verdict.refused_for is not None:
            refused, named_s = True, verdict.retry_after_s if self.names_waits else None
        if refused:
            self.refused_s.append(self.now_s)
            heard_s = _goes_on(self.now_s + ROUND_TRIP_S / 2, self.halts)
            self.at(heard_s, lambda: self._refusal(limiter, taken, verdict, named_s))
        else:
            self.accepted_s.append(self.now_s)
            heard_s = _goes_on(self.now_s + self.latency_s, self.halts)
            self.at(heard_s, lambda: self._reply(limiter, taken, verdict))

    def _refused_anyway(self) -> tuple[bool, float | None]:
        for from_s, to_s, wait_s in self._bursts:
            if from_s <= self.now_s < to_s:
                return True, wait_s
        return self._random.random() < self.random_share, self.random_wait_s

    def _heard(self, limiter: Limiter, taken: Taken, verdict: Verdict | None) -> None:
        if self.hears and verdict is not None:
            rate = verdict.rate
            limiter.told(
                taken,
                self.now_s,
                rpm=rate.limit_requests,
                tpm=rate.limit_tokens,
                tokens_left=rate.remaining_tokens,
            )

    def _reply(self, limiter: Limiter, taken: Taken, verdict: Verdict | None) -> None:
        self._heard(limiter, taken, verdict)
        limiter.ended_well(self.latency_s)
        limiter.give_back(taken, self.call.expected)

    def _refusal(
        self, limiter: Limiter, taken: Taken, verdict: Verdict | None, named_s: float | None
    ) -> None:
        self._heard(limiter, taken, verdict)
        limiter.pause(limiter.refused(taken, self.now_s, named_s).all_s, self.now_s, "asked")
        limiter.give_back(taken, None)
