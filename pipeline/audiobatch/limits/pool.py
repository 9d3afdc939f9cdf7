"""Who may call now, and where: the deployments of a job behind one line of waiting callers.

Callers are served in the order they came, each by the first deployment in order of priority that has room. A
caller may be bound to one deployment (a follow-up lives where its audio id lives); then it alone waits for
that one, in a line of its own that goes first: it ends an item that was begun. Whenever something changes (a
call ends, a pause ends, a deployment drops out) the lines are walked once.

A deployment that was never called gets one call, a scout, until a call of it has ended well: a wrong key then
costs one call, not as many as there are workers. One that was in trouble, or parked, comes back the same way.

A `Deployment` knows its limits, its condition, and when a call of it may be made.

`Spending` sets each call's worst case aside before the call is sent, so that no cap is ever passed.

What a call really cost replaces its reservation when that is known. A call with an unknown end, or a reply that
was bought and could not be read, keeps its worst case: it was perhaps billed. Amounts are `Decimal`, in USD.
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
    """One run's account.

    Attributes:
        run_cap: the most that this run may cost; None: no cap.
        total_cap: the most that the folder's runs together may cost.
        spent_before: by earlier runs, perhaps-billed calls included.
        spent: by this run, the same way.
        reserved: the worst case of calls that are in flight.
    """

    run_cap: Decimal | None = None
    total_cap: Decimal | None = None
    spent_before: Decimal = NOTHING
    spent: Decimal = NOTHING
    reserved: Decimal = field(default=NOTHING)

    @property
    def is_capped(self) -> bool:
        return self.run_cap is not None or self.total_cap is not None

    @property
    def left(self) -> Decimal | None:
        """What may still be reserved; None: no cap."""
        taken = self.spent + self.reserved
        rooms = []
        if self.run_cap is not None:
            rooms.append(self.run_cap - taken)
        if self.total_cap is not None:
            rooms.append(self.total_cap - self.spent_before - taken)
        return min(rooms) if rooms else None

    def fits(self, worst: Decimal) -> bool:
        """Whether a call may be made that costs at most this."""
        left = self.left
        return left is None or worst <= left

    def reserve(self, worst: Decimal) -> None:
        """Set aside the worst case of a call that fits."""
        self.reserved += worst

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """A call has ended: what it cost takes the place of its reservation."""
        self.reserved -= worst
        self.spent += actual

    def words(self, worst: Decimal) -> str:
        """Why a call of this worst case is not made."""
        which = []
        if self.run_cap is not None and self.spent + self.reserved + worst > self.run_cap:
            which.append(f"--max-cost {self.run_cap}")
        total = self.spent_before + self.spent
        if self.total_cap is not None and total + self.reserved + worst > self.total_cap:
            which.append(f"--max-total-cost {self.total_cap} (this folder has cost up to ${total:.4f})")
        return (
            f"the next call could cost up to ${worst:.4f} and pass {' and '.join(which) or 'the limit'}; "
            f"this run has cost up to ${self.spent:.4f}"
        )


@dataclass(slots=True, eq=False)
class Deployment:
    """One place where calls can go, with its limits and its condition.

    Attributes:
        priority: lower goes first.
        out: why it can serve no call in this run.
        proven: a call of it has ended without a fatal error.
        served: calls that it has taken.
        named_only: takes only callers that are bound to it: it does something else, or was asked for by name.
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
        """Whether it serves callers that are bound to this deployment, or, with None, to none."""
        return not self.named_only if only is None else only == self.name

    def room_in_s(self, now_s: float) -> float:
        if not (self.proven and not self.circuit.half_open) and self.limiter.in_flight:
            return math.inf
        return max(self.circuit.wait_s(now_s), self.limiter.room_in_s(now_s))

    def usable(self, now_s: float) -> bool:
        return self.out is None and self.parked_until_s <= now_s

    def may_be_called(self, now_s: float) -> bool:
        """Whether a call that was let through may still be made."""
        return self.usable(now_s) and not self.circuit.wait_s(now_s)


__all__ = ["Deployment", "NoDeployment", "Permit", "Pool", "Stopping"]
#: Waits shorter than this are lost in a clock's rounding; the pace makes good what they take too much.
_SOONEST_S = 5e-4
_NOTHING: Mapping[str, Decimal] = {}


class NoDeployment(Exception):
    """No deployment is left that could serve this call. `cause` is why the last one dropped out."""

    def __init__(self, cause: DeploymentFatal | None, parked_s: float | None) -> None:
        super().__init__(str(cause) if cause else "every deployment asked for a long wait")
        self.cause = cause
        self.parked_s = parked_s


class Stopping(Exception):
    """The run is stopping: no further call is made."""


@dataclass(slots=True, eq=False)
class Permit:
    """The right to make one call, now, to `deployment`. Released exactly once."""

    pool: Pool
    deployment: Deployment
    taken: Taken
    worst_usd: Decimal
    _released: bool = False

    async def depart(self) -> bool:
        """Wait until the call is to leave; its intent is written.

        Returns:
            Whether it leaves. Else the run stops, or the deployment rests by now, or is out of use.
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
        """The call has ended and its outcome is recorded.

        Args:
            actual_tokens: what it took, where known.
            proven: it reached the service and was let in.
            cost_usd: what it cost; None: not known, so its worst case stays spent.
        """
        if not self._released:
            self._released = True
            self.deployment.limiter.give_back(self.taken, actual_tokens)
            self.deployment.proven = self.deployment.proven or proven
            self.pool.spending.settle(self.worst_usd, self.worst_usd if cost_usd is None else cost_usd)
            self.pool.serve()


@dataclass(slots=True, eq=False)
class _Caller:
    tokens: CallTokens
    only: str | None
    worst_usd: Mapping[str, Decimal]
    turn: asyncio.Future[Permit]


@dataclass(eq=False)
class Pool:
    """All deployments of a job, shared by everything in this process that calls.

    Attributes:
        spending: the run's account, asked before each call.
        waits_for_parked: callers wait for a parked deployment, however long, rather than end the run.
        max_concurrency: calls in flight on all deployments together; None: as many as each has room for.
        stopping: nobody may call any more.
        asks_for_money: how much may be spent is not known just now: who finds too little waits for the answer.
    """

    deployments: Sequence[Deployment]
    spending: Spending = field(default_factory=Spending)
    waits_for_parked: bool = False
    max_concurrency: int | None = None
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] = field(
        default_factory=lambda: asyncio.get_running_loop().call_later
    )
    _line: deque[_Caller] = field(default_factory=deque)
    _bound: dict[str, deque[_Caller]] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    stopping: bool = False
    asks_for_money: bool = False
    _short_of_money: bool = False

    def __post_init__(self) -> None:
        self.deployments = sorted(self.deployments, key=lambda one: one.priority)

    async def acquire(
        self, tokens: CallTokens, *, only: str | None = None, worst_usd: Mapping[str, Decimal] = _NOTHING
    ) -> Permit:
        """Wait for the right to make one call.

        Args:
            tokens: estimate of what the call takes.
            only: the one deployment that can serve it, if it is bound.
            worst_usd: the most it can cost, by deployment; needed where spending has a cap.

        Raises:
            NoDeployment: none is left that could.
            BudgetReached: no call is in flight, no more money is asked for, and this one could pass the cap.
            Stopping: the run is stopping.
        """
        caller = _Caller(tokens, only, worst_usd, asyncio.get_running_loop().create_future())
        line = self._line if only is None else self._bound.setdefault(only, deque())
        line.append(caller)
        self.serve()
        try:
            return await caller.turn
        except asyncio.CancelledError:
            if caller.turn.done() and not caller.turn.cancelled() and caller.turn.exception() is None:
                caller.turn.result().release(cost_usd=Decimal(0))
            raise

    def pause(self, deployment: Deployment, seconds: float, reason: str) -> None:
        """A deployment asked for a wait: everybody waits."""
        deployment.limiter.pause(seconds, self.clock(), reason)
        self.serve()

    def park(self, deployment: Deployment, seconds: float) -> None:
        """A deployment asked for a wait so long that it is left aside; it comes back by a scout."""
        deployment.parked_until_s = max(deployment.parked_until_s, self.clock() + seconds)
        deployment.circuit.half_open = True
        self.serve()

    def share(self, part: float, slots: TimeSlots | None = None) -> None:
        """Use this part of every deployment's quotas; other processes use the rest of the same quotas."""
        for one in self.deployments:
            one.limiter.share(part, self.clock(), slots)
        self.serve()

    def drop(self, deployment: Deployment, error: DeploymentFatal) -> None:
        """A deployment can serve no call any more in this run."""
        deployment.out = deployment.out or error
        self.serve()

    def stop(self) -> None:
        """Let nobody call any more; all who wait are told."""
        self.stopping = True
        self.serve()

    @property
    def in_flight(self) -> int:
        return sum(one.limiter.in_flight for one in self.deployments)

    @property
    def room(self) -> int:
        """Calls that may be in flight at most, on all deployments that are left."""
        room = sum(one.limiter.max_concurrency for one in self.deployments if one.out is None)
        return room if self.max_concurrency is None else min(room, self.max_concurrency)

    def binding(self) -> str:
        """What the next caller in line waits for, in words; empty when nobody waits."""
        if not self._line and not any(self._bound.values()):
            return ""
        if self._short_of_money:
            if not self.in_flight:
                return "the budget: what other runs have left of it is asked for"
            return f"the budget: ${self.spending.reserved:.2f} set aside for calls in flight"
        now_s = self.clock()
        usable = [one for one in self.deployments if one.usable(now_s)]
        if not usable:
            back_s = min(
                (one.parked_until_s - now_s for one in self.deployments if one.out is None), default=0
            )
            return f"every deployment is parked, {back_s / 60:.0f} min left" if back_s > 0 else ""
        nearest = min(usable, key=lambda one: one.room_in_s(now_s))
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
        """Walk the lines once: give a permit to whom there is room for, and set a timer for the next room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self.clock()
        self._short_of_money = False
        nearest_s = math.inf
        for line in (*self._bound.values(), self._line):
            nearest_s = min(nearest_s, self._serve_line(line, now_s))
        if math.isfinite(nearest_s):
            self._timer = self.call_later(max(nearest_s, _SOONEST_S), self.serve)

    def _serve_line(self, line: deque[_Caller], now_s: float) -> float:
        """Serve from the front as long as there is room; seconds until there may be more."""
        while line:
            caller = line[0]
            if not caller.turn.done():
                if self.stopping:
                    caller.turn.set_exception(Stopping())
                elif (wait_s := self._try(caller, now_s)) > 0:
                    return wait_s
            line.popleft()
        return math.inf

    def _try(self, caller: _Caller, now_s: float) -> float:
        """Give the caller its permit or its end, and 0; or the seconds until it is worth trying again."""
        able = [one for one in self.deployments if one.takes(caller.only) and one.out is None]
        usable = [one for one in able if one.parked_until_s <= now_s]
        comes_back_s = min(
            (one.parked_until_s - now_s for one in able if one not in usable), default=math.inf
        )
        if not usable:
            if able and self.waits_for_parked:
                return comes_back_s
            caller.turn.set_exception(self._nobody(caller, now_s))
            return 0.0
        chosen = next((one for one in usable if one.room_in_s(now_s) <= 0), None)
        if chosen is None:
            return min(comes_back_s, *(one.room_in_s(now_s) for one in usable))
        if self.max_concurrency is not None and self.in_flight >= self.max_concurrency:
            return math.inf
        worst = caller.worst_usd.get(chosen.name, Decimal(0))
        if not self.spending.fits(worst):
            if self.in_flight or self.asks_for_money:
                self._short_of_money = True
                return math.inf
            caller.turn.set_exception(BudgetReached(self.spending.words(worst)))
            return 0.0
        self.spending.reserve(worst)
        chosen.served += 1
        caller.turn.set_result(Permit(self, chosen, chosen.limiter.take(caller.tokens, now_s), worst))
        return 0.0

    def _nobody(self, caller: _Caller, now_s: float) -> NoDeployment:
        able = [one for one in self.deployments if one.takes(caller.only)]
        parked = [one.parked_until_s - now_s for one in able if one.out is None]
        causes = [one.out for one in able if one.out is not None]
        return NoDeployment(causes[-1] if causes and not parked else None, min(parked) if parked else None)
