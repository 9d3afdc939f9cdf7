"""A deployment with a quota, and one limiter that is always asked for more: hours in simulated seconds.

The quota is judged by the emulator's own meter, on the simulation's clock; nothing sleeps.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.emulator.config import Quota
from pipeline.emulator.quota import Quotas
from pipeline.limits.limiter import Limiter
from pipeline.limits.token_charge import CallTokens

NAME = "d"
ROUND_TRIP_S = 0.02


@dataclass
class Simulation:
    """One limiter, or several that share, against one quota.

    Attributes:
        others: limiters of other processes on the same quota.
        hears: the client reads what headers say of limits.
        names_waits: refusals name their wait.
        jitter_s: a call arrives up to this much late, at random.
        counter_takes: what the service's token counter takes for a call.
    """

    limiter: Limiter
    others: tuple[Limiter, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    latency_s: float = 0.5
    hears: bool = True
    names_waits: bool = True
    jitter_s: float = 0.01
    counter_takes: float = 1000.0
    call: CallTokens = field(default_factory=lambda: CallTokens(expected=100.0, input=20.0))
    seed: int = 1
    now_s: float = 0.0
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._quotas = Quotas({NAME: Quota(rpm=self.rpm, tpm=self.tpm)}, now=lambda: self.now_s)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake_at_s: dict[Limiter, float] = {}

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
        return sum(from_s <= one < to_s for one in self.accepted_s) * 60 / (per_minute * (to_s - from_s))

    def refused_share(self, from_s: float = 0.0) -> float:
        refused = sum(one >= from_s for one in self.refused_s)
        return refused / max(1, refused + sum(one >= from_s for one in self.accepted_s))

    def episodes(self, gap_s: float = 2.0) -> list[float]:
        """When each group of refusals began."""
        began, last = [], -1e9
        for one in self.refused_s:
            if one - last > gap_s:
                began.append(one)
            last = one
        return began

    def _ask(self) -> None:
        for limiter in (self.limiter, *self.others):
            self._ask_one(limiter)

    def _ask_one(self, limiter: Limiter) -> None:
        while (wait_s := limiter.room_in_s(self.now_s)) <= 0:
            taken = limiter.take(self.call, self.now_s)
            self.most_in_flight = max(self.most_in_flight, limiter.in_flight)
            arrives_s = self.now_s + ROUND_TRIP_S / 2 + self._random.uniform(0, self.jitter_s)
            self.at(arrives_s, lambda taken=taken: self._arrive(limiter, taken))
        wakes_s = self.now_s + wait_s
        if wait_s < 1e9 and not (self.now_s < self._wake_at_s.get(limiter, -1.0) <= wakes_s):
            self._wake_at_s[limiter] = wakes_s
            self.at(wakes_s + self._random.uniform(0, 0.002), lambda: None)

    def _arrive(self, limiter: Limiter, taken: object) -> None:
        verdict = self._quotas.take(NAME, round(self.counter_takes))
        assert verdict is not None
        if verdict.refused_for is None:
            self.accepted_s.append(self.now_s)
            self.at(self.now_s + self.latency_s, lambda: self._reply(limiter, taken, verdict))
        else:
            self.refused_s.append(self.now_s)
            self.at(self.now_s + ROUND_TRIP_S / 2, lambda: self._refusal(limiter, taken, verdict))

    def _heard(self, limiter, taken, verdict) -> None:
        if self.hears:
            rate = verdict.rate
            limiter.told(
                taken,
                self.now_s,
                rpm=rate.limit_requests,
                tpm=rate.limit_tokens,
                tokens_left=rate.remaining_tokens,
            )

    def _reply(self, limiter, taken, verdict) -> None:
        self._heard(limiter, taken, verdict)
        limiter.ended_well(self.latency_s)
        limiter.give_back(taken, self.call.expected)

    def _refusal(self, limiter, taken, verdict) -> None:
        self._heard(limiter, taken, verdict)
        wait_s = verdict.retry_after_s if self.names_waits else None
        limiter.pause(limiter.refused(taken, self.now_s, wait_s), self.now_s, "asked")
        limiter.give_back(taken, None)
