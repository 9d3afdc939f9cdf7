"""When a call is made again, and after how long: the project's one retry layer, on tenacity.

The SDK's own retries are off. Layers multiply (three times three is nine paid calls), the SDK retries exhausted
credit, and it gives up where a Retry-After passes two minutes.

| raised | again? |
|---|---|
| `RateLimited` | always, after the pause it asked for: the deployment's, or this call's where chance refused it |
| `Disconnected` | always, after the deployment's pause: nothing was sent; a network that stays away ends the run |
| `Unavailable` | up to `MAX_TRIES`, after full-jitter back-off: nothing was bought |
| … when the job's budget of retries is used up | later: the item goes to the end of the queue (`Deferred`) |
| `OutcomeUnknown` | by `--on-unknown retry`, at most `MAX_UNKNOWN` times an item: perhaps it was bought |
| `AskAgain` | at once: in another way, elsewhere, or once the deployment has rested |
| everything else | never |

`RetryBudget` limits the retries of a whole job to a share of what succeeds, so that an outage becomes no storm.

A bucket of tokens. A retry takes one; a call that ends well gives a tenth back; and a trickle over time lets the
last items of a job try again though nothing else succeeds any more. An empty bucket refuses: the item goes to
the end of the queue. It is deferred, never failed.

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

#: Calls that may fail for the service's troubles before the item is recorded as failed (a later run sends it).
MAX_TRIES = 6
#: Calls with an unknown end that are made again, for one item and turn.
MAX_UNKNOWN = 2
#: Refusals for rate that one item sits through. With waits of up to 15 minutes each this ends somewhere.
MAX_RATE_LIMITED = 100
#: A pause up to this long is waited out; a longer one parks the deployment.
PARKED_AFTER_S = 15 * 60.0
_BACK_OFF = wait_random_exponential(multiplier=1, max=30)


class Deferred(Exception):
    """The budget of retries is used up: the item goes to the end of the queue."""


class AskAgain(TransientError):
    """The turn can be asked for at once: in another way, elsewhere, or where the call was taken back."""

    error_type = ErrorType.BAD_REPLY


class Tries:
    """What has happened to one item's turn so far, and the decision that follows."""

    def __init__(
        self, *, retry_unknown: bool, unknown_before: int = 0, budget: RetryBudget | None = None
    ) -> None:
        """Args: budget: the job's; where it refuses a retry, `deferred` is set and the item goes on later."""
        self.deferred = False
        #: How long a refused call waits while others go on: its refusal had nothing to do with the rate.
        self.pause_s = 0.0
        self._budget = budget
        self.unknown = unknown_before
        self.troubles = 0
        self.refusals = 0
        self._retry_unknown = retry_unknown

    def again(self, error: BaseException) -> bool:
        """Count this failure, and say whether the call is made once more."""
        match error:
            case RateLimited():
                self.refusals += 1
                return self.refusals < MAX_RATE_LIMITED
            case OutcomeUnknown():
                self.unknown += 1
                again = self._retry_unknown and self.unknown <= MAX_UNKNOWN
                if again and self._budget is not None:
                    self._budget.allows()  # takes its token if there is one; such a call is made again either way
                return again
            case Disconnected() | AskAgain():
                return True
            case TransientError():
                self.troubles += 1
                if self.troubles >= MAX_TRIES:
                    return False
                self.deferred = self._budget is not None and not self._budget.allows()
                return not self.deferred
            case _:
                return False

    def wait_s(self, state: RetryCallState) -> float:
        """Return how long to wait before the next try: no back-off where the deployment itself pauses."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimited):
            return self.pause_s
        if isinstance(error, (Disconnected, AskAgain)):
            return 0.0
        if isinstance(error, Unavailable) and error.retry_after_s:
            return 0.0
        return float(_BACK_OFF(state))


def retrying(tries: Tries, *, sleep: Callable[[float], Awaitable[Any]]) -> AsyncRetrying:
    """The retry loop of one turn. `sleep` may raise to end it when the run stops."""
    return AsyncRetrying(retry=retry_if_exception(tries.again), wait=tries.wait_s, sleep=sleep, reraise=True)


CAPACITY = 50.0
SHARE = 0.1
TRICKLE_PER_S = 0.5


@dataclass(slots=True)
class RetryBudget:
    """One a job.

    Attributes:
        refused: how often a retry was deferred.
    """

    clock: Callable[[], float]
    capacity: float = CAPACITY
    tokens: float = CAPACITY
    refused: int = 0
    _filled_at_s: float = field(default=-math.inf)

    def allows(self) -> bool:
        """Take a token for one retry; False: there is none."""
        self._trickle()
        if self.tokens < 1.0 - 1e-9:  # ten tenths are one
            self.refused += 1
            return False
        self.tokens -= 1.0
        return True

    def succeeded(self) -> None:
        """A call ended well."""
        self.tokens = min(self.capacity, self.tokens + SHARE)

    def room_in_s(self) -> float:
        """Seconds until there is a token, by time alone."""
        self._trickle()
        return max(0.0, 1.0 - self.tokens) / TRICKLE_PER_S

    def _trickle(self) -> None:
        now_s = self.clock()
        if self._filled_at_s > -math.inf:
            self.tokens = min(self.capacity, self.tokens + (now_s - self._filled_at_s) * TRICKLE_PER_S)
        self._filled_at_s = now_s
