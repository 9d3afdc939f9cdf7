"""Quotas of deployments: requests and tokens a minute, checked as Azure does.

Requests are counted over one second, ten seconds and a minute, so that a minute's share sent at once is
refused. Tokens are counted as an *estimate* made before the model runs, with the maximum of the reply in
it, and the count is reset each minute. A refused request is not counted.

The short windows are measured a little short (`SLACK`): a client that keeps exactly the rate is not refused
for its jitter.

Source: learn.microsoft.com, "Manage Azure OpenAI quota" ("Understanding rate limits").
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from audiobatch_emulator.config import Quota
from audiobatch_emulator.surface import RateState

MINUTE_S = 60.0
WINDOWS_S = (1.0, 10.0, MINUTE_S)
SLACK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`refused_for` is None, `requests` or `tokens`."""

    refused_for: str | None
    retry_after_s: float
    rate: RateState


class _Meter:
    """One deployment's counts."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.taken_at: deque[float] = deque()
        self.minute_started_at = -math.inf
        self.tokens = 0

    def take(self, tokens: int, now: float) -> Verdict:
        """Counts the request, or says why not."""
        while self.taken_at and self.taken_at[0] <= now - MINUTE_S * (1 - SLACK):
            self.taken_at.popleft()
        if now - self.minute_started_at >= MINUTE_S:
            self.minute_started_at, self.tokens = now, 0
        refused_for, wait_s = None, self._request_wait_s(now)
        if wait_s > 0:
            refused_for = "requests"
        elif self.quota.tpm is not None and self.tokens + tokens > self.quota.tpm:
            refused_for, wait_s = "tokens", self.minute_started_at + MINUTE_S - now
        else:
            self.taken_at.append(now)
            self.tokens += tokens
        return Verdict(refused_for=refused_for, retry_after_s=wait_s, rate=self.rate(now))

    def _request_wait_s(self, now: float) -> float:
        """Returns the seconds until one more request fits every window; 0 or less: it fits now."""
        if self.quota.rpm is None:
            return 0.0
        wait_s = 0.0
        for window_s in WINDOWS_S:
            allowed = math.ceil(self.quota.rpm * window_s / MINUTE_S)
            if len(self.taken_at) >= allowed:
                wait_s = max(wait_s, self.taken_at[-allowed] + window_s * (1 - SLACK) - now)
        return wait_s

    def rate(self, now: float) -> RateState:
        """Returns what is left, for the headers."""
        rpm, tpm = self.quota.rpm, self.quota.tpm
        return RateState(
            limit_requests=rpm,
            remaining_requests=None if rpm is None else max(0, rpm - len(self.taken_at)),
            reset_requests_s=max(0.0, self.taken_at[0] + MINUTE_S - now) if self.taken_at else 0.0,
            limit_tokens=tpm,
            remaining_tokens=None if tpm is None else max(0, tpm - self.tokens),
            reset_tokens_s=max(0.0, self.minute_started_at + MINUTE_S - now),
        )


class Quotas:
    """The meters of all deployments that have a quota."""

    def __init__(self, initial: Mapping[str, Quota], *, now: Callable[[], float] = time.monotonic) -> None:
        self._initial = dict(initial)
        self._now = now
        self._meters: dict[str, _Meter] = {}
        self.reset()

    def reset(self) -> None:
        """Restores the quotas of the start, and forgets what was counted."""
        self._meters = {name: _Meter(quota) for name, quota in self._initial.items()}

    def change(self, quotas: Mapping[str, Quota]) -> None:
        """Sets these deployments' quotas; what was counted stays counted, other deployments keep theirs."""
        for name, quota in quotas.items():
            if name in self._meters:
                self._meters[name].quota = quota
            else:
                self._meters[name] = _Meter(quota)

    def take(self, deployment: str, tokens: int) -> Verdict | None:
        """Asks for one request of so many estimated tokens; None where there is no quota."""
        meter = self._meters.get(deployment)
        return None if meter is None else meter.take(max(0, tokens), self._now())

    def current(self) -> dict[str, Quota]:
        """Returns the quotas in force."""
        return {name: meter.quota for name, meter in self._meters.items()}
