"""When a call is retried, and after how long: the only retry layer of the project, built on tenacity.

The retries of the SDK are off. Layers multiply (three times three is nine paid calls), the SDK retries when credit
is exhausted, and it gives up where a Retry-After exceeds two minutes.

| raised | retried? |
|---|---|
| `RateLimited` | always, after the wait that it asks for: of the deployment, or of this call alone |
| `Disconnected` | always, after the pause of the deployment: nothing was sent. A longer outage ends the run |
| `Unavailable` | up to `MAX_TRIES`, after full-jitter back-off: nothing was billed |
| … when the retry budget of the job is used up | later: the item goes to the end of the queue (`Deferred`) |
| `OutcomeUnknown` | with `--on-unknown retry`, at most `MAX_UNKNOWN` times: the call was perhaps billed |
| `AskAgain` | at once: in another way, to another deployment, or when the deployment's pause has ended |
| everything else | never |

`RetryBudget` limits the retries of a whole job to a share of its successes, so that retries do not make an outage
worse. It is a token bucket: a retry takes a token; a success adds a tenth; and time adds a few, so that the last
items of a job are retried although nothing else succeeds. Without a token the item is deferred, not failed.

Source of the idea: the retry quota of AWS's SDKs ("standard" retry mode), and "Handling Overload" in Google's
Site Reliability Engineering book (retries at most a tenth of all requests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from audiobatch.errors import (
    Disconnected,
    ErrorType,
    OutcomeUnknown,
    RateLimited,
    TransientError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Failures of the service after which an item is recorded as failed (a later run sends it again).
MAX_TRIES = 6
#: How often a call whose end is unknown is retried, for one turn of an item.
MAX_UNKNOWN = 2
#: Refusals for rate after which a turn fails. Each can ask for up to 15 minutes, so there is a limit.
MAX_RATE_LIMITED = 100
#: A longer wait than this parks the deployment.
PARKED_AFTER_S = 15 * 60.0
_BACK_OFF = wait_random_exponential(multiplier=1, max=30)


class Deferred(Exception):
    """The retry budget is used up; the item goes to the end of the queue."""


class AskAgain(TransientError):
    """The turn can be sent again at once: in another way, to another deployment, or because it was not sent."""

    error_type = ErrorType.BAD_REPLY


class Tries:
    """Counts the failures of one turn and decides whether it is tried again. The turn's call owns it.

    Attributes:
        deferred: the retry budget refused the last retry, so that the item continues later in the run.
        pause_s: how long the last refused call waits before its retry, while other calls go on.
        unknown: calls whose end is unknown, those of earlier runs included.
        failures: failures of the service.
        refusals: refusals for rate.
    """

    def __init__(
        self, *, retry_unknown: bool, unknown_before: int = 0, budget: RetryBudget | None = None
    ) -> None:
        """Start counting.

        Args:
            retry_unknown: whether a call whose end is unknown is retried.
            unknown_before: calls of earlier runs whose end is unknown.
            budget: the retry budget of the job; None: no limit.
        """
        self.deferred = False
        self.pause_s = 0.0
        self._budget = budget
        self.unknown = unknown_before
        self.failures = 0
        self.refusals = 0
        self._retry_unknown = retry_unknown

    def again(self, error: BaseException) -> bool:
        """Count a failure. Returns whether the call is retried."""
        match error:
            case RateLimited():
                self.refusals += 1
                return self.refusals < MAX_RATE_LIMITED
            case OutcomeUnknown():
                self.unknown += 1
                again = self._retry_unknown and self.unknown <= MAX_UNKNOWN
                if again and self._budget is not None:
                    self._budget.allows()  # takes a token if there is one; the call is retried either way
                return again
            case Disconnected() | AskAgain():
                return True
            case TransientError():
                self.failures += 1
                if self.failures >= MAX_TRIES:
                    return False
                self.deferred = self._budget is not None and not self._budget.allows()
                return not self.deferred
            case _:
                return False

    def wait_s(self, state: RetryCallState) -> float:
        """Return the seconds to wait before the retry: no back-off where the deployment itself pauses."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimited):
            return self.pause_s
        if isinstance(error, (Disconnected, AskAgain)):
            return 0.0
        if isinstance(error, Unavailable) and error.retry_after_s:
            return 0.0
        return float(_BACK_OFF(state))


def retrying(tries: Tries, *, sleep: Callable[[float], Awaitable[Any]]) -> AsyncRetrying:
    """Return the retry loop of one turn. `sleep` may raise an error, which ends the loop."""
    return AsyncRetrying(retry=retry_if_exception(tries.again), wait=tries.wait_s, sleep=sleep, reraise=True)


#: Tokens of a retry budget at the start and at most; tokens that a success adds; tokens that a second adds.
CAPACITY = 50.0
SHARE = 0.1
TRICKLE_PER_S = 0.5


@dataclass(slots=True)
class RetryBudget:
    """The retry budget of a job.

    Attributes:
        clock: returns seconds.
        capacity: the most tokens that it holds.
        tokens: tokens that it holds now.
        refused: number of retries that were deferred.
    """

    clock: Callable[[], float]
    capacity: float = CAPACITY
    tokens: float = CAPACITY
    refused: int = 0
    _filled_at_s: float = field(default=-math.inf)

    def allows(self) -> bool:
        """Take a token for one retry. Returns False where there is none."""
        self._trickle()
        if self.tokens < 1.0 - 1e-9:  # ten tenths are one
            self.refused += 1
            return False
        self.tokens -= 1.0
        return True

    def succeeded(self) -> None:
        """Add the tokens for a call that ended well."""
        self.tokens = min(self.capacity, self.tokens + SHARE)

    def room_in_s(self) -> float:
        """Return the seconds until time alone has added a whole token."""
        self._trickle()
        return max(0.0, 1.0 - self.tokens) / TRICKLE_PER_S

    def _trickle(self) -> None:
        now_s = self.clock()
        if self._filled_at_s > -math.inf:
            self.tokens = min(self.capacity, self.tokens + (now_s - self._filled_at_s) * TRICKLE_PER_S)
        self._filled_at_s = now_s
