"""The deployments of a job behind one queue: each call waits here for a permit.

Callers are served in the order in which they arrive. Each gets the first deployment, in order of priority, that
has room. A caller may be bound to one deployment (a follow-up turn goes where its audio id is valid). Such a caller
waits in a queue of that deployment, which is served first because its item is already under way. Whenever something
changes (a call ends, a pause ends, a deployment drops out) the queues are served once more.

A deployment that was never called gets a single first call until one of its calls has ended well. A wrong key then
costs one call instead of one for each worker. A deployment that failed or was parked comes back the same way.

`Deployment` holds the limits and the condition of one deployment and says when it can take a call.

`Spending` reserves the worst case of each call before the call is sent, so that no cost limit is ever exceeded.
When the true cost is known, it replaces the reservation. A call whose end is unknown, or a paid reply that could
not be read, keeps its worst case, because it was perhaps billed. Amounts are `Decimal`, in USD.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from audiobatch.errors import BudgetReached
from audiobatch.limits.circuit_breaker import Circuit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from audiobatch.errors import DeploymentFatal
    from audiobatch.limits.limiter import CallTokens, Limiter, Taken, TimeSlots

NOTHING = Decimal(0)


@dataclass(slots=True)
class Spending:
    """What one run has spent and reserved, and how much it may spend.

    Attributes:
        run_cap: the most that this run may cost; None: no limit.
        total_cap: the most that all runs of the folder may cost together; None: no limit.
        spent_before: cost of earlier runs, including calls that were perhaps billed.
        spent: cost of this run, counted the same way.
        reserved: worst case of the calls in flight.
    """

    run_cap: Decimal | None = None
    total_cap: Decimal | None = None
    spent_before: Decimal = NOTHING
    spent: Decimal = NOTHING
    reserved: Decimal = field(default=NOTHING)

    @property
    def is_capped(self) -> bool:
        """Whether any cost limit applies."""
        return self.run_cap is not None or self.total_cap is not None

    @property
    def left(self) -> Decimal | None:
        """The amount that can still be reserved; None: no limit."""
        committed = self.spent + self.reserved
        amounts = []
        if self.run_cap is not None:
            amounts.append(self.run_cap - committed)
        if self.total_cap is not None:
            amounts.append(self.total_cap - self.spent_before - committed)
        return min(amounts) if amounts else None

    def fits(self, worst: Decimal) -> bool:
        """Return whether a call with this worst case stays within the limits."""
        left = self.left
        return left is None or worst <= left

    def reserve(self, worst: Decimal) -> None:
        """Reserve the worst case of a call that fits."""
        self.reserved += worst

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """Replace the reservation of a call that has ended by its cost."""
        self.reserved -= worst
        self.spent += actual

    def refusal(self, worst: Decimal) -> str:
        """Return the message that says why a call with this worst case is not made."""
        exceeded = []
        if self.run_cap is not None and self.spent + self.reserved + worst > self.run_cap:
            exceeded.append(f"--max-cost {self.run_cap}")
        total = self.spent_before + self.spent
        if self.total_cap is not None and total + self.reserved + worst > self.total_cap:
            exceeded.append(f"--max-total-cost {self.total_cap} (this folder has cost up to ${total:.4f})")
        return (
            f"the next call could cost up to ${worst:.4f} and pass {' and '.join(exceeded) or 'the limit'}; "
            f"this run has cost up to ${self.spent:.4f}"
        )


@dataclass(slots=True, eq=False)
class Deployment:
    """One deployment that calls can go to, with its limits and its condition.

    Attributes:
        priority: lower is tried first.
        out: why it can serve no more calls in this run; None: it can.
        parked_until_s: until this time it gets no calls, because it asked for a long wait.
        proven: one of its calls has ended without a fatal error.
        served: number of calls that it was given.
        named_only: it takes only callers that are bound to it: it runs another model, or items request it by name.
    """

    name: str
    limiter: Limiter
    priority: int = 0
    out: DeploymentFatal | None = None
    parked_until_s: float = -math.inf
    proven: bool = False
    served: int = 0
    circuit: Circuit = field(default_factory=Circuit)
    named_only: bool = False

    def takes(self, only: str | None) -> bool:
        """Return whether it serves callers bound to the deployment `only`; None: callers bound to none."""
        return not self.named_only if only is None else only == self.name

    def room_in_s(self, now_s: float) -> float:
        """Return the seconds until it can take a call; infinite: not before one of its calls has ended."""
        if not (self.proven and not self.circuit.half_open) and self.limiter.in_flight:
            return math.inf
        return max(self.circuit.wait_s(now_s), self.limiter.room_in_s(now_s))

    def usable(self, now_s: float) -> bool:
        """Return whether it is neither out of use nor parked."""
        return self.out is None and self.parked_until_s <= now_s

    def may_be_called(self, now_s: float) -> bool:
        """Return whether a call that already has its permit may still be sent."""
        return self.usable(now_s) and not self.circuit.wait_s(now_s)


#: Shorter waits than this disappear in the rounding of clocks. The pace makes up for the difference.
_SHORTEST_WAIT_S = 5e-4
_NOTHING: Mapping[str, Decimal] = {}


class NoDeployment(Exception):
    """No deployment can serve this call.

    Attributes:
        cause: why the last deployment dropped out; None: some are only parked.
        parked_s: seconds until the first parked deployment comes back; None: none is parked.
    """

    def __init__(self, cause: DeploymentFatal | None, parked_s: float | None) -> None:
        super().__init__(str(cause) if cause else "every deployment asked for a long wait")
        self.cause = cause
        self.parked_s = parked_s


class Stopping(Exception):
    """The run is stopping; no further call is made."""


@dataclass(slots=True, eq=False)
class Permit:
    """The right to make one call to `deployment`, now. It is released exactly once."""

    pool: Pool
    deployment: Deployment
    taken: Taken
    worst_usd: Decimal
    _released: bool = False

    async def depart(self) -> bool:
        """Wait until it is time to send the call, whose intent is recorded.

        Returns:
            Whether to send it. False: the run is stopping, or the deployment is paused or out of use by now.
        """
        while not self.pool.stopping and self.deployment.may_be_called(now_s := self.pool.clock()):
            wait_s = self.deployment.limiter.departs_in_s(self.taken, now_s)
            if not 0 < wait_s < math.inf:
                return wait_s <= 0
            await asyncio.sleep(wait_s)
        return False

    def release(
        self, *, actual_tokens: float | None = None, proven: bool = False, cost_usd: Decimal | None = None
    ) -> None:
        """Return the permit: the call has ended and its outcome is recorded.

        Args:
            actual_tokens: tokens that the call used; None: not known.
            proven: the service accepted the call.
            cost_usd: cost of the call; None: not known, so its worst case counts as spent.
        """
        if not self._released:
            self._released = True
            self.deployment.limiter.give_back(self.taken, actual_tokens)
            self.deployment.proven = self.deployment.proven or proven
            self.pool.spending.settle(self.worst_usd, self.worst_usd if cost_usd is None else cost_usd)
            self.pool.serve()


@dataclass(slots=True, eq=False)
class _Caller:
    """A call that waits for its permit."""

    tokens: CallTokens
    only: str | None
    worst_usd: Mapping[str, Decimal]
    permit: asyncio.Future[Permit]


@dataclass(eq=False)
class Pool:
    """All deployments of a job, shared by all callers in this process.

    Attributes:
        spending: checked before each call.
        waits_for_parked: callers wait for a parked deployment, however long, instead of ending the run.
        max_concurrency: calls in flight on all deployments together; None: as many as each has room for.
        stopping: no further call is permitted.
        awaits_budget: the budget is being shared out anew; a caller that finds too little waits for the result.
    """

    deployments: Sequence[Deployment]
    spending: Spending = field(default_factory=Spending)
    waits_for_parked: bool = False
    max_concurrency: int | None = None
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] = field(
        default_factory=lambda: asyncio.get_running_loop().call_later
    )
    _queue: deque[_Caller] = field(default_factory=deque)
    _bound_queues: dict[str, deque[_Caller]] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    stopping: bool = False
    awaits_budget: bool = False
    _short_of_budget: bool = False

    def __post_init__(self) -> None:
        self.deployments = sorted(self.deployments, key=lambda deployment: deployment.priority)

    async def acquire(
        self, tokens: CallTokens, *, only: str | None = None, worst_usd: Mapping[str, Decimal] = _NOTHING
    ) -> Permit:
        """Wait for the right to make one call.

        Args:
            tokens: estimate of the tokens that the call uses.
            only: the one deployment that can serve it; None: any.
            worst_usd: the most that it can cost, by deployment; required where spending is limited.

        Raises:
            NoDeployment: no deployment can serve it.
            BudgetReached: it could exceed a cost limit, and neither a call in flight nor a new share of the
                budget can change that.
            Stopping: the run is stopping.
        """
        caller = _Caller(tokens, only, worst_usd, asyncio.get_running_loop().create_future())
        queue = self._queue if only is None else self._bound_queues.setdefault(only, deque())
        queue.append(caller)
        self.serve()
        try:
            return await caller.permit
        except asyncio.CancelledError:
            if caller.permit.done() and not caller.permit.cancelled() and caller.permit.exception() is None:
                caller.permit.result().release(cost_usd=Decimal(0))
            raise

    def pause(self, deployment: Deployment, seconds: float, reason: str) -> None:
        """Pause a deployment: nobody calls it for this long."""
        deployment.limiter.pause(seconds, self.clock(), reason)
        self.serve()

    def park(self, deployment: Deployment, seconds: float) -> None:
        """Stop using a deployment that asked for a long wait; afterwards it gets a single call first."""
        deployment.parked_until_s = max(deployment.parked_until_s, self.clock() + seconds)
        deployment.circuit.half_open = True
        self.serve()

    def share(self, part: float, slots: TimeSlots | None = None) -> None:
        """Use only this part of the quota of every deployment; other processes use the rest."""
        for deployment in self.deployments:
            deployment.limiter.share(part, self.clock(), slots)
        self.serve()

    def drop(self, deployment: Deployment, error: DeploymentFatal) -> None:
        """Take a deployment out of use for the rest of the run."""
        deployment.out = deployment.out or error
        self.serve()

    def stop(self) -> None:
        """Permit no further call; waiting callers get `Stopping`."""
        self.stopping = True
        self.serve()

    @property
    def in_flight(self) -> int:
        """Calls in flight on all deployments."""
        return sum(deployment.limiter.in_flight for deployment in self.deployments)

    @property
    def room(self) -> int:
        """The most calls that may be in flight, on all deployments still in use."""
        room = sum(
            deployment.limiter.max_concurrency for deployment in self.deployments if deployment.out is None
        )
        return room if self.max_concurrency is None else min(room, self.max_concurrency)

    def binding(self) -> str:
        """Return what the next caller waits for, as text for the progress line; empty: nobody waits."""
        if not self._queue and not any(self._bound_queues.values()):
            return ""
        if self._short_of_budget:
            if not self.in_flight:
                return "the budget: what other runs have left of it is asked for"
            return f"the budget: ${self.spending.reserved:.2f} set aside for calls in flight"
        now_s = self.clock()
        usable = [deployment for deployment in self.deployments if deployment.usable(now_s)]
        if not usable:
            parked_s = [
                deployment.parked_until_s - now_s for deployment in self.deployments if deployment.out is None
            ]
            back_s = min(parked_s, default=0)
            return f"every deployment is parked, {back_s / 60:.0f} min left" if back_s > 0 else ""
        nearest = min(usable, key=lambda deployment: deployment.room_in_s(now_s))
        if nearest.circuit.half_open:
            wait_s = nearest.circuit.wait_s(now_s)
            tried = f"tried again in {wait_s:.0f} s" if wait_s else "being tried"
            return f"the service: {nearest.name} is in trouble, {tried}"
        if self.max_concurrency is not None and self.in_flight >= self.max_concurrency:
            return f"{self.max_concurrency} calls at once"
        if not nearest.proven and nearest.limiter.in_flight:
            return f"the first call to {nearest.name}"
        return nearest.limiter.binding(now_s)

    def serve(self) -> None:
        """Give a permit to every caller that there is room for, and set a timer for the next time there is room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self.clock()
        self._short_of_budget = False
        nearest_s = math.inf
        for queue in (*self._bound_queues.values(), self._queue):
            nearest_s = min(nearest_s, self._serve_queue(queue, now_s))
        if math.isfinite(nearest_s):
            self._timer = self.call_later(max(nearest_s, _SHORTEST_WAIT_S), self.serve)

    def _serve_queue(self, queue: deque[_Caller], now_s: float) -> float:
        """Serve a queue from its front while there is room. Returns the seconds until there may be more."""
        while queue:
            caller = queue[0]
            if not caller.permit.done():
                if self.stopping:
                    caller.permit.set_exception(Stopping())
                elif (wait_s := self._try(caller, now_s)) > 0:
                    return wait_s
            queue.popleft()
        return math.inf

    def _try(self, caller: _Caller, now_s: float) -> float:
        """Give the caller its permit, or the error that ends its wait.

        Returns:
            0 where the caller has its answer, else the seconds until it is worth trying again.
        """
        able = [deployment for deployment in self._able(caller) if deployment.out is None]
        usable = [deployment for deployment in able if deployment.parked_until_s <= now_s]
        comes_back_s = min(
            (deployment.parked_until_s - now_s for deployment in able if deployment not in usable),
            default=math.inf,
        )
        if not usable:
            if able and self.waits_for_parked:
                return comes_back_s
            caller.permit.set_exception(self._no_deployment(caller, now_s))
            return 0.0
        chosen = next((deployment for deployment in usable if deployment.room_in_s(now_s) <= 0), None)
        if chosen is None:
            return min(comes_back_s, *(deployment.room_in_s(now_s) for deployment in usable))
        if self.max_concurrency is not None and self.in_flight >= self.max_concurrency:
            return math.inf
        worst = caller.worst_usd.get(chosen.name, Decimal(0))
        if not self.spending.fits(worst):
            if self.in_flight or self.awaits_budget:
                self._short_of_budget = True
                return math.inf
            caller.permit.set_exception(BudgetReached(self.spending.refusal(worst)))
            return 0.0
        self.spending.reserve(worst)
        chosen.served += 1
        caller.permit.set_result(Permit(self, chosen, chosen.limiter.take(caller.tokens, now_s), worst))
        return 0.0

    def _able(self, caller: _Caller) -> list[Deployment]:
        return [deployment for deployment in self.deployments if deployment.takes(caller.only)]

    def _no_deployment(self, caller: _Caller, now_s: float) -> NoDeployment:
        able = self._able(caller)
        parked_s = [deployment.parked_until_s - now_s for deployment in able if deployment.out is None]
        causes = [deployment.out for deployment in able if deployment.out is not None]
        return NoDeployment(
            causes[-1] if causes and not parked_s else None, min(parked_s) if parked_s else None
        )
