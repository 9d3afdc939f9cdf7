"""Retries and money: what may still be spent, by count and by dollars."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.errors import (
    Disconnected,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from audiobatch.limits.pool import Spending
from audiobatch.limits.retry import CAPACITY, MAX_TRIES, AskAgain, RetryBudget, Tries

CENTS = st.decimals(min_value="0.0001", max_value="0.5", places=4)


def test_an_outage_uses_the_budget_up_and_then_costs_a_trickle() -> None:
    now_s = 0.0
    budget = RetryBudget(clock=lambda: now_s)
    allowed = sum(budget.allows() for _ in range(1000))
    assert allowed == CAPACITY
    now_s = 60.0
    assert sum(budget.allows() for _ in range(1000)) == 30
    assert budget.room_in_s() == pytest.approx(2.0)


def test_ten_successes_pay_for_one_retry() -> None:
    budget = RetryBudget(clock=lambda: 0.0, tokens=0.0)
    for _ in range(10):
        assert not budget.allows()
        budget.succeeded()
    assert budget.allows()


def test_an_item_that_the_budget_refuses_is_deferred_not_failed() -> None:
    tries = Tries(retry_unknown=True, budget=RetryBudget(clock=lambda: 0.0, tokens=1.0))
    assert tries.again(Unavailable("503"))
    assert not tries.again(Unavailable("503"))
    assert tries.deferred


def test_an_item_fails_by_its_own_tries_not_by_the_budget() -> None:
    tries = Tries(retry_unknown=True, budget=RetryBudget(clock=lambda: 0.0))
    again = [tries.again(Unavailable("503")) for _ in range(MAX_TRIES)]
    assert again == [True] * (MAX_TRIES - 1) + [False]
    assert not tries.deferred


def test_refusals_for_rate_and_lost_connections_are_no_retries_of_the_budget() -> None:
    budget = RetryBudget(clock=lambda: 0.0)
    tries = Tries(retry_unknown=True, budget=budget)
    assert all(tries.again(error) for error in (RateLimited("429"), Disconnected("dns"), AskAgain("other")))
    assert not tries.again(RequestRejected("400"))
    assert budget.tokens == CAPACITY


def test_a_call_with_an_unknown_end_is_made_twice_more_whatever_the_budget() -> None:
    tries = Tries(retry_unknown=True, budget=RetryBudget(clock=lambda: 0.0, tokens=0.0))
    assert [tries.again(OutcomeUnknown("reset")) for _ in range(3)] == [True, True, False]
    assert not tries.deferred


@given(
    cap=st.decimals(min_value="0.01", max_value=5, places=2),
    calls=st.lists(
        st.tuples(CENTS, st.decimals(min_value=0, max_value=1, places=3), st.booleans()), max_size=80
    ),
    at_once=st.integers(1, 64),
)
def test_the_cap_is_never_passed_whatever_calls_cost_and_however_many_are_in_flight(
    cap: Decimal, calls: list[tuple[Decimal, Decimal, bool]], at_once: int
) -> None:
    spending = Spending(run_cap=cap, total_cap=cap * 2, spent_before=cap / 2)
    flying: list[tuple[Decimal, Decimal]] = []
    for worst, share, is_known in calls:
        if len(flying) >= at_once:
            spending.settle(*flying.pop(0))
        if spending.fits(worst):
            spending.reserve(worst)
            flying.append((worst, worst * share if is_known else worst))
        assert spending.spent + spending.reserved <= cap
    for reservation in flying:
        spending.settle(*reservation)
    assert spending.reserved == 0
    assert spending.spent <= cap


def test_the_folder_s_cap_counts_what_earlier_runs_cost() -> None:
    spending = Spending(total_cap=Decimal(10), spent_before=Decimal("9.80"))
    assert spending.fits(Decimal("0.20"))
    assert not spending.fits(Decimal("0.21"))
    assert "--max-total-cost 10" in spending.refusal(Decimal("0.21"))


def test_without_a_cap_everything_fits() -> None:
    assert Spending().fits(Decimal(1_000_000))
    assert not Spending().is_capped
