"""What the end of a call means for the deployment that served it, and for the run.

| the call ended by | the deployment |
|---|---|
| a reply | its headers' limits are followed; its window grows; a circuit that was open closes |
| `RateLimited` | pauses as it asked; over 15 minutes: is parked. Its rate is cut, unless chance explains it |
| `Unavailable`, time-out | counts towards its circuit; pauses where it asked for it |
| `Disconnected` | the same; one that was never reached is given up: a wrong address |
| `DeploymentFatal` | is out for this run |

The run ends when no deployment is left, when all that are left are parked, or when none answered for 15 minutes
(a refusal for rate and an unusable reply are answers); with `--wait` it waits instead.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from audiobatch.errors import (
    AudioBatchError,
    BadReply,
    DeploymentFatal,
    DeploymentGone,
    Disconnected,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    ServiceError,
    Unavailable,
)
from audiobatch.limits.retry import PARKED_AFTER_S
from audiobatch.stop import StopReason
from audiobatch.transports.rate_limit_headers import limit_a_minute, tokens_left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.limits.pool import Deployment, NoDeployment, Permit, Pool
    from audiobatch.limits.retry import RetryBudget
    from audiobatch.model import Reply
    from audiobatch.stop import Stop

log = logging.getLogger(__name__)

#: A deployment that was never reached is given up after so many tries: a wrong address, not an outage.
FIRST_TRIES = 4


@dataclass(slots=True, kw_only=True)
class CallFeedback:
    """One a run.

    Attributes:
        waits: `--wait`: no wait is too long.
    """

    pool: Pool
    stop: Stop
    budget: RetryBudget
    waits: bool = False
    _never_reached: Counter[str] = field(default_factory=Counter)

    def went_well(self, permit: Permit, reply: Reply) -> None:
        """Apply what a reply says of its deployment."""
        deployment = permit.deployment
        self._heard(permit, reply.limits)
        deployment.limiter.ended_well(reply.latency_s)
        deployment.circuit.succeeded()
        self.budget.succeeded()

    def went_wrong(self, permit: Permit, failed: AudioBatchError) -> float:
        """Apply what a call without a reply says of its deployment.

        Returns:
            For how many seconds this call alone waits before it is made again; the deployment's pause is its own.
        """
        deployment, now_s = permit.deployment, self.pool.clock()
        pause_s = 0.0
        if isinstance(failed, ServiceError):
            self._heard(permit, failed.limits)
        match failed:
            case RateLimited(retry_after_s=wait_s):
                deployment.circuit.answered()
                rest = deployment.limiter.refused(permit.taken, now_s, wait_s)
                pause_s = rest.this_call_s
                self._pause(deployment, rest.all_s, named=wait_s is not None)
            case Unavailable(retry_after_s=wait_s):
                deployment.circuit.failed(permit.taken.sent_s, now_s)
                if wait_s is not None:
                    self._pause(deployment, wait_s, named=True)
            case Disconnected() | OutcomeUnknown() if not self.stop.asked:
                deployment.circuit.failed(permit.taken.sent_s, now_s)
                if isinstance(failed, Disconnected):
                    self._not_reached(deployment, failed)
            case DeploymentFatal():
                self._drop(deployment, failed)
            case RequestRejected():
                deployment.circuit.succeeded()
            case BadReply():
                deployment.circuit.answered()
            case _:
                pass
        self._end_at_outage(now_s, failed)
        return pause_s

    def _drop(self, deployment: Deployment, failed: DeploymentFatal) -> None:
        """Take a deployment out of the pool for this run; without any other the run ends."""
        self.pool.drop(deployment, failed)
        log.error("deployment %s is out: %s", deployment.name, failed.message)
        if not self.others_left and not deployment.named_only:
            self.stop.ask(StopReason.NO_DEPLOYMENT, failed.message)

    @property
    def others_left(self) -> bool:
        """Whether any deployment can serve calls, now or after a wait."""
        return any(deployment.out is None for deployment in self._shared)

    @property
    def others_usable(self) -> bool:
        """Whether any deployment can serve calls without a long wait."""
        now_s = self.pool.clock()
        return any(deployment.usable(now_s) for deployment in self._shared)

    @property
    def _shared(self) -> list[Deployment]:
        """The deployments that serve every item, not only those that name them."""
        return [deployment for deployment in self.pool.deployments if not deployment.named_only]

    def nobody(self, ended: NoDeployment) -> None:
        """End the run: a call found no deployment that could serve it."""
        if ended.cause is not None:
            self.stop.ask(StopReason.NO_DEPLOYMENT, ended.cause.message)
            return
        back = datetime.now(UTC).astimezone() + timedelta(seconds=ended.parked_s or 0.0)
        self.stop.ask(
            StopReason.PARKED,
            f"the service asked to wait until {back:%Y-%m-%d %H:%M %Z}; run again then, or use --wait",
        )

    def _heard(self, permit: Permit, headers: Mapping[str, str]) -> None:
        if headers:
            permit.deployment.limiter.told(
                permit.taken,
                self.pool.clock(),
                rpm=limit_a_minute(headers, "requests"),
                tpm=limit_a_minute(headers, "tokens"),
                tokens_left=tokens_left(headers),
            )

    def _pause(self, deployment: Deployment, seconds: float, *, named: bool) -> None:
        if seconds > PARKED_AFTER_S:
            self.pool.park(deployment, seconds)
            log.warning("deployment %s asked for %.0f s: it is left aside", deployment.name, seconds)
            return
        reason = f"asked for {seconds:.0f} s" if named else "has too many requests"
        self.pool.pause(deployment, seconds, f"deployment {deployment.name} {reason}")

    def _not_reached(self, deployment: Deployment, failed: Disconnected) -> None:
        """Pause a deployment to which nothing could be sent, longer each time."""
        self._never_reached[deployment.name] += not deployment.proven
        if self._never_reached[deployment.name] >= FIRST_TRIES and not deployment.proven:
            self.pool.drop(deployment, DeploymentGone(f"{failed.message}; is the endpoint's address right?"))
        away_s = deployment.circuit.down_s(self.pool.clock())
        wait_s = random.uniform(0.5, 1.0) * min(30.0, 1.0 + away_s / 2)
        self.pool.pause(deployment, wait_s, f"deployment {deployment.name} is not reached")

    def _end_at_outage(self, now_s: float, failed: AudioBatchError) -> None:
        usable = [deployment for deployment in self._shared if deployment.usable(now_s)]
        down_s = [deployment.circuit.down_s(now_s) for deployment in usable]
        if not self.waits and usable and min(down_s) > PARKED_AFTER_S:
            minutes = PARKED_AFTER_S / 60
            self.stop.ask(
                StopReason.OUTAGE, f"no deployment answered for {minutes:.0f} minutes: {failed.message}"
            )
