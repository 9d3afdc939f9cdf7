"""Who may call now, and where: the deployments of a job behind one line of waiting callers.

Callers are served in the order they came, each by the first deployment in order of priority that has room. A
caller may be bound to one deployment (a follow-up lives where its audio id lives); then it alone waits for
that one. Whenever something changes (a call ends, a pause ends, a deployment drops out) the line is walked once.

A deployment that was never called gets one call, a scout, until a call of it has ended well: a wrong key then
costs one call, not as many as there are workers.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.errors import DeploymentFatal
    from pipeline.limits.limiter import Limiter


class NoDeployment(Exception):
    """No deployment is left that could serve this call. `cause` is why the last one dropped out."""

    def __init__(self, cause: DeploymentFatal | None, parked_s: float | None) -> None:
        super().__init__(str(cause) if cause else "every deployment asked for a long wait")
        self.cause = cause
        self.parked_s = parked_s


class Stopping(Exception):
    """The run is stopping: no further call is made."""


@dataclass(slots=True, eq=False)
class Deployment:
    """One place where calls can go, with its limits and its condition.

    Attributes:
        priority: lower goes first.
        out: why it can serve no call in this run.
        proven: a call of it has ended without a fatal error.
    """

    name: str
    limiter: Limiter
    priority: int = 0
    out: DeploymentFatal | None = None
    parked_until_s: float = -math.inf
    proven: bool = False

    def room_in_s(self, now_s: float) -> float:
        if not self.proven and self.limiter.in_flight:
            return math.inf
        return self.limiter.room_in_s(now_s)

    def usable(self, now_s: float) -> bool:
        return self.out is None and self.parked_until_s <= now_s


@dataclass(slots=True, eq=False)
class Lease:
    """The right to make one call, now, to `deployment`. Released exactly once."""

    pool: Pool
    deployment: Deployment
    tokens: float
    _released: bool = False

    def release(self, *, actual_tokens: float | None = None, proven: bool = False) -> None:
        """The call has ended and its outcome is recorded.

        Args:
            actual_tokens: what it took, where known.
            proven: it reached the service and was let in.
        """
        if not self._released:
            self._released = True
            self.deployment.limiter.give_back(self.tokens, actual_tokens)
            self.deployment.proven = self.deployment.proven or proven
            self.pool.serve()


@dataclass(slots=True, eq=False)
class _Caller:
    tokens: float
    only: str | None
    turn: asyncio.Future[Lease]


@dataclass(eq=False)
class Pool:
    """All deployments of a job, shared by everything in this process that calls."""

    deployments: Sequence[Deployment]
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] = field(
        default_factory=lambda: asyncio.get_running_loop().call_later
    )
    _line: deque[_Caller] = field(default_factory=deque)
    _timer: asyncio.TimerHandle | None = None
    _stopping: bool = False

    def __post_init__(self) -> None:
        self.deployments = sorted(self.deployments, key=lambda one: one.priority)

    async def acquire(self, tokens: float, *, only: str | None = None) -> Lease:
        """Wait for the right to make one call.

        Args:
            tokens: estimate of what the call takes, input and output.
            only: the one deployment that can serve it, if it is bound.

        Raises:
            NoDeployment: none is left that could.
            Stopping: the run is stopping.
        """
        caller = _Caller(tokens, only, asyncio.get_running_loop().create_future())
        self._line.append(caller)
        self.serve()
        try:
            return await caller.turn
        except asyncio.CancelledError:
            if caller.turn.done() and not caller.turn.cancelled() and caller.turn.exception() is None:
                caller.turn.result().release()
            raise

    def pause(self, deployment: Deployment, seconds: float, reason: str) -> None:
        """A deployment asked for a wait: everybody waits."""
        deployment.limiter.pause(seconds, self.clock(), reason)
        self.serve()

    def park(self, deployment: Deployment, seconds: float) -> None:
        """A deployment asked for a wait so long that it is left aside."""
        deployment.parked_until_s = max(deployment.parked_until_s, self.clock() + seconds)
        self.serve()

    def drop(self, deployment: Deployment, error: DeploymentFatal) -> None:
        """A deployment can serve no call any more in this run."""
        deployment.out = deployment.out or error
        self.serve()

    def stop(self) -> None:
        """Let nobody call any more; all who wait are told."""
        self._stopping = True
        self.serve()

    @property
    def in_flight(self) -> int:
        return sum(one.limiter.in_flight for one in self.deployments)

    def binding(self) -> str:
        """What the next caller in line waits for, in words; empty when nobody waits."""
        if not self._line:
            return ""
        now_s = self.clock()
        usable = [one for one in self.deployments if one.usable(now_s)]
        if not usable:
            return ""
        nearest = min(usable, key=lambda one: one.room_in_s(now_s))
        if not nearest.proven and nearest.limiter.in_flight:
            return f"the first call to {nearest.name}"
        return nearest.limiter.binding(now_s)

    def serve(self) -> None:
        """Walk the line once: give a lease to whom there is room for, and set a timer for the next room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self.clock()
        waiting: deque[_Caller] = deque()
        nearest_s = math.inf
        full = False
        while self._line:
            caller = self._line.popleft()
            if caller.turn.done():
                continue
            if self._stopping:
                caller.turn.set_exception(Stopping())
                continue
            if full and caller.only is None:
                waiting.append(caller)
                continue
            able = [one for one in self.deployments if caller.only in {None, one.name}]
            usable = [one for one in able if one.usable(now_s)]
            if not usable:
                caller.turn.set_exception(self._nobody(able, now_s))
                continue
            chosen = next((one for one in usable if one.room_in_s(now_s) <= 0), None)
            if chosen is None:
                nearest_s = min(nearest_s, *(one.room_in_s(now_s) for one in usable))
                full = full or caller.only is None
                waiting.append(caller)
                continue
            chosen.limiter.take(caller.tokens, now_s)
            caller.turn.set_result(Lease(self, chosen, caller.tokens))
        self._line = waiting
        if waiting and math.isfinite(nearest_s):
            self._timer = self.call_later(nearest_s, self.serve)

    def _nobody(self, able: Sequence[Deployment], now_s: float) -> NoDeployment:
        parked = [one.parked_until_s - now_s for one in able if one.out is None]
        causes = [one.out for one in able if one.out is not None]
        return NoDeployment(causes[-1] if causes else None, min(parked) if parked else None)
