"""The pool in simulated time: who is served, where, and what happens when nobody can."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from audiobatch.errors import AuthenticationFailed, BudgetReached, DeploymentGone
from audiobatch.limits.circuit_breaker import OPENS_AFTER
from audiobatch.limits.concurrency import Gate
from audiobatch.limits.limiter import (
    CATCH_UP_RATE,
    DEPARTS_AFTER_S,
    LATE_S,
    LONGEST_HELD_S,
    CallTokens,
    Limiter,
)
from audiobatch.limits.pool import Deployment, NoDeployment, Permit, Pool, Spending, Stopping

CALL = CallTokens(expected=100.0)


class Time:
    """A clock that stands until it is moved, and the timers set on it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()

    def call_later(self, delay_s: float, act: Callable[[], None]) -> _Timer:
        timer = _Timer(act)
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._order), timer))
        return timer

    async def pass_(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._timers and self._timers[0][0] <= end_s:
            self.now_s, _, timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                timer.act()
            await asyncio.sleep(0)
        self.now_s = end_s
        await asyncio.sleep(0)


class _Timer(asyncio.TimerHandle):
    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def make(time: Time) -> Callable[..., Pool]:
    def pool(*deployments: Deployment, **settings: Any) -> Pool:
        return Pool(list(deployments), clock=lambda: time.now_s, call_later=time.call_later, **settings)

    return pool


def place(name: str = "a", *, priority: int = 0, proven: bool = True, concurrency: int = 2) -> Deployment:
    limiter = Limiter(max_concurrency=concurrency, rpm=1e12)
    return Deployment(name=name, limiter=limiter, priority=priority, proven=proven)


async def served(pool: Pool, **how: Any) -> Permit:
    return await asyncio.wait_for(pool.acquire(CALL, **how), 1)


async def waiting(pool: Pool, **how: Any) -> asyncio.Task[Permit]:
    caller = asyncio.create_task(pool.acquire(CALL, **how))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not caller.done()
    return caller


async def test_lower_priority_numbers_go_first_and_the_others_take_the_overflow(
    make: Callable[..., Pool],
) -> None:
    pool = make(place("paygo", priority=1), place("provisioned", concurrency=1))
    assert [(await served(pool)).deployment.name for _ in range(3)] == ["provisioned", "paygo", "paygo"]


async def test_the_first_call_of_a_deployment_goes_alone(make: Callable[..., Pool]) -> None:
    pool = make(place(proven=False, concurrency=64))
    first = await served(pool)
    callers = [await waiting(pool) for _ in range(5)]
    assert pool.binding() == "the first call to a"
    first.release(proven=True)
    assert len(await asyncio.gather(*callers)) == 5


async def test_a_wrong_key_costs_one_call_of_a_thousand_that_wait(make: Callable[..., Pool]) -> None:
    pool = make(place(proven=False, concurrency=1000))
    first = await served(pool)
    callers = [await waiting(pool) for _ in range(1000)]
    pool.drop(first.deployment, AuthenticationFailed("no"))
    first.release()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, NoDeployment) and end.cause is not None for end in ends)


async def test_who_is_bound_waits_for_its_deployment_and_goes_before_new_items(
    make: Callable[..., Pool],
) -> None:
    a, b = place("a", concurrency=1), place("b", concurrency=1)
    pool = make(a, b)
    first, _second = await served(pool), await served(pool)
    new = await waiting(pool)
    bound = await waiting(pool, only="a")
    first.release()
    assert (await bound).deployment.name == "a"
    assert not new.done()
    new.cancel()


async def test_a_paused_deployment_is_left_and_comes_back(make: Callable[..., Pool], time: Time) -> None:
    a, b = place("a"), place("b", priority=1, concurrency=1)
    pool = make(a, b)
    pool.pause(a, 10, "deployment a asked for 10 s")
    assert (await served(pool)).deployment.name == "b"
    caller = await waiting(pool)
    assert "a asked for 10 s" in pool.binding()
    await time.pass_(9.9)
    assert not caller.done()
    await time.pass_(0.2)
    assert (await caller).deployment.name == "a"


async def test_a_parked_deployment_is_left_and_tried_again_by_a_single_call(
    make: Callable[..., Pool], time: Time
) -> None:
    a, b = place("a"), place("b", priority=1, concurrency=1)
    pool = make(a, b)
    pool.park(a, 3600)
    assert (await served(pool)).deployment.name == "b"
    caller = await waiting(pool)
    await time.pass_(3601)
    assert (await caller).deployment.name == "a"
    another = await waiting(pool)
    a.circuit.succeeded()
    pool.serve()
    assert (await another).deployment.name == "a"


async def test_all_parked_ends_the_run_or_is_waited_for(make: Callable[..., Pool], time: Time) -> None:
    pool = make(place("a"))
    pool.park(pool.deployments[0], 7200)
    with pytest.raises(NoDeployment) as ended:
        await served(pool)
    assert (ended.value.cause, ended.value.parked_s) == (None, 7200)
    patient = make(place("a"), waits_for_parked=True)
    patient.park(patient.deployments[0], 7200)
    caller = await waiting(patient)
    assert "120 min left" in patient.binding()
    await time.pass_(7201)
    assert (await caller).deployment.name == "a"


async def test_one_parked_and_one_out_is_parked_not_over(make: Callable[..., Pool]) -> None:
    a, b = place("a"), place("b")
    pool = make(a, b)
    pool.park(a, 7200)
    pool.drop(b, AuthenticationFailed("no"))
    with pytest.raises(NoDeployment) as ended:
        await served(pool)
    assert ended.value.cause is None


async def test_a_deployment_in_trouble_is_left_alone_then_asked_by_one(
    make: Callable[..., Pool], time: Time
) -> None:
    a = place("a", concurrency=8)
    a.circuit.draw = lambda *_: 1.0
    pool = make(a)
    permits = [await served(pool) for _ in range(5)]
    for permit in permits:
        a.circuit.failed(permit.taken.sent_s, time.now_s)
        permit.release(proven=True)
    callers = [await waiting(pool) for _ in range(3)]
    assert "a is in trouble" in pool.binding()
    await time.pass_(2.1)
    assert [caller.done() for caller in callers] == [True, False, False]
    a.circuit.failed(callers[0].result().taken.sent_s, time.now_s)
    callers[0].result().release()
    await time.pass_(3.9)
    assert not callers[1].done(), "the second wait is twice as long"
    await time.pass_(0.2)
    a.circuit.succeeded()
    callers[1].result().release(proven=True)
    await time.pass_(0)
    assert callers[2].done()


async def test_calls_that_were_in_flight_when_it_opened_do_not_open_it_further(
    make: Callable[..., Pool], time: Time
) -> None:
    a = place("a", concurrency=64)
    a.circuit.draw = lambda *_: 1.0
    pool = make(a)
    for permit in [await served(pool) for _ in range(64)]:
        a.circuit.failed(permit.taken.sent_s, time.now_s)
        permit.release()
    assert a.circuit.wait_s(time.now_s) == pytest.approx(2.0)


async def test_a_stop_tells_all_who_wait(make: Callable[..., Pool]) -> None:
    pool = make(place("a", concurrency=1))
    await served(pool)
    callers = [await waiting(pool), await waiting(pool, only="a")]
    pool.stop()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, Stopping) for end in ends)


async def test_the_ceiling_of_the_job_holds_over_all_deployments(make: Callable[..., Pool]) -> None:
    pool = make(place("a", concurrency=8), place("b", concurrency=8), max_concurrency=3)
    permits = [await served(pool) for _ in range(3)]
    caller = await waiting(pool)
    assert pool.binding() == "3 calls at once"
    permits[0].release()
    assert await caller


async def test_a_caller_that_gives_up_returns_its_permit(make: Callable[..., Pool]) -> None:
    pool = make(place("a", concurrency=1), spending=Spending(run_cap=Decimal(1)))
    first = await served(pool, worst_usd={"a": Decimal("0.5")})
    caller = await waiting(pool, worst_usd={"a": Decimal("0.5")})
    first.release(cost_usd=Decimal(0))
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert (pool.in_flight, pool.spending.reserved, pool.spending.spent) == (0, Decimal(0), Decimal(0))


async def test_no_cap_is_passed_while_replies_cost_all_they_may(make: Callable[..., Pool]) -> None:
    spending = Spending(run_cap=Decimal("1.00"))
    pool = make(place("a", concurrency=64), spending=spending)
    worst = {"a": Decimal("0.26")}
    ended = []

    async def caller() -> None:
        permit = await pool.acquire(CALL, worst_usd=worst)
        await asyncio.sleep(0)
        permit.release(cost_usd=Decimal("0.26"))
        ended.append(permit)

    ends = await asyncio.gather(*(caller() for _ in range(64)), return_exceptions=True)
    assert spending.spent == Decimal("0.78")
    assert sum(isinstance(end, BudgetReached) for end in ends) == 61


async def test_what_calls_did_not_cost_is_free_for_others(make: Callable[..., Pool]) -> None:
    spending = Spending(run_cap=Decimal("1.00"))
    pool = make(place("a", concurrency=64), spending=spending)
    worst = {"a": Decimal("0.26")}
    permits = [await served(pool, worst_usd=worst) for _ in range(3)]
    caller = await waiting(pool, worst_usd=worst)
    assert pool.binding() == "the budget: $0.78 set aside for calls in flight"
    permits[0].release(cost_usd=Decimal("0.01"))
    assert await caller


async def test_who_finds_too_little_money_while_more_is_asked_for_waits_for_the_answer(
    make: Callable[..., Pool],
) -> None:
    spending = Spending(total_cap=Decimal("1.00"), spent_before=Decimal("1.00"))
    pool = make(place("a", concurrency=2), spending=spending)
    pool.awaits_budget = True
    callers = [await waiting(pool, worst_usd={"a": Decimal("0.26")}) for _ in range(2)]
    assert pool.binding() == "the budget: what other runs have left of it is asked for"
    spending.spent_before, pool.awaits_budget = Decimal("0.70"), False
    pool.serve()
    (await callers[0]).release(cost_usd=Decimal("0.26"))
    with pytest.raises(BudgetReached):
        await callers[1]


async def test_the_gate_lets_in_as_many_as_there_is_room_for_and_a_few() -> None:
    room = 4
    gate = Gate(lambda: room)
    inside = asyncio.Event()
    entered = 0

    async def item() -> None:
        nonlocal entered
        async with gate.entered():
            entered += 1
            await inside.wait()

    items = [asyncio.create_task(item()) for _ in range(50)]
    await asyncio.sleep(0.01)
    assert entered == 7
    room = 20
    gate.let_in()
    await asyncio.sleep(0.01)
    assert entered == 27
    inside.set()
    await asyncio.gather(*items)
    assert (entered, gate.open) == (50, 0)


async def test_calls_leave_as_evenly_as_permits_are_given_however_long_their_intents_took() -> None:
    """Two permits 0.1 s apart whose intents share a flush: in real time, since it is about when they leave."""
    loop = asyncio.get_running_loop()
    limiter = Limiter(max_concurrency=9, rpm=600)
    pool = Pool([Deployment(name="a", limiter=limiter, priority=0, proven=True)])
    flush, left = asyncio.Barrier(3), []

    async def call() -> None:
        permit = await pool.acquire(CALL)
        given_s = loop.time()
        await flush.wait()
        assert await permit.depart()
        left.append((permit.taken.is_paced, given_s, permit.taken.sent_s))

    await asyncio.gather(*(call() for _ in range(3)))
    assert [is_paced for is_paced, _, _ in left] == [False, True, True], "the first waited for nothing"
    (_, _, at_once), (_, _, second_s), (_, given_s, third_s) = left
    assert at_once < second_s < third_s
    assert third_s >= given_s + DEPARTS_AFTER_S - 0.001


def test_calls_that_a_stall_made_late_do_not_leave_together() -> None:
    limiter = Limiter(max_concurrency=9, rpm=600)
    limiter.take(CALL, 0.0)
    late = [limiter.take(CALL, 0.1 * number) for number in (1, 2, 3)]
    now_s = 2.0
    left = []
    for taken in late:
        while (wait_s := limiter.departs_in_s(taken, now_s)) > 0:
            now_s += wait_s
        left.append(now_s)
    assert left == pytest.approx([2.0, 2.1, 2.2], abs=LATE_S + 0.005)


def test_no_call_is_let_through_that_would_only_be_given_back() -> None:
    """At a low rate, after one whose intent took long to reach the disk."""
    limiter = Limiter(max_concurrency=9, rpm=20)
    late = limiter.take(CALL, 0.0)
    assert limiter.departs_in_s(late, 2.5) == 0
    assert limiter.room_in_s(3.0) == pytest.approx(2.5 - LATE_S + 3 / CATCH_UP_RATE - DEPARTS_AFTER_S - 3.0)
    now_s = 3.0 + limiter.room_in_s(3.0)
    assert limiter.departs_in_s(limiter.take(CALL, now_s), now_s) == pytest.approx(DEPARTS_AFTER_S)


async def test_calls_that_no_rate_holds_back_leave_at_once(make: Callable[..., Pool]) -> None:
    permit = await served(make(place()))
    assert not permit.taken.is_paced
    await asyncio.wait_for(permit.depart(), 0.05)


@pytest.mark.parametrize("rests", [
    lambda pool, _: pool.stop(),
    lambda pool, deployment: pool.park(deployment, 3600),
    lambda pool, deployment: pool.pause(deployment, 30, "asked"),
    lambda pool, deployment: pool.drop(deployment, DeploymentGone("gone")),
    lambda pool, deployment: [deployment.circuit.failed(0.0, pool.clock()) for _ in range(OPENS_AFTER)],
], ids=["a stop", "parked", "a long pause", "out", "in trouble"])  # fmt: skip
async def test_a_call_that_was_let_through_is_not_made_when_its_deployment_rests(
    make: Callable[..., Pool], rests: Callable[..., object]
) -> None:
    pool = make(place("a", concurrency=2))
    another, permit = await served(pool), await served(pool)
    assert await another.depart()
    rests(pool, pool.deployments[0])
    assert not await permit.depart()
    permit.release(cost_usd=Decimal(0))
    assert pool.in_flight == 1


def test_no_call_is_held_longer_than_a_second_however_many_wait_in_front_of_it() -> None:
    limiter = Limiter(max_concurrency=30)
    waiting = [limiter.take(CALL, 0.0) for _ in range(20)]
    limiter.rate.state(60)
    now_s, left, given_back = 0.0, 0, 0
    while waiting:
        for taken in tuple(waiting):
            wait_s = limiter.departs_in_s(taken, now_s)
            left, given_back = left + (wait_s <= 0), given_back + (wait_s == math.inf)
            if not 0 < wait_s < math.inf:
                waiting.remove(taken)
        now_s += 0.01
    assert now_s <= DEPARTS_AFTER_S + LONGEST_HELD_S + 0.1
    assert (left, given_back) == (3, 17)
