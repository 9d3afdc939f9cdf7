"""Stalls of the machine, the network or the service at the quota's edge: in simulated time."""

import math
from collections.abc import Iterable
from typing import Any

import pytest

from audiobatch.limits.limiter import DEPARTS_AFTER_S, CallTokens, Limiter, Taken
from audiobatch.limits.rate import AFTER_UNEXPLAINED_S, STALLS, STALLS_A_MINUTE, Stalls
from tests.quota_simulation import Simulation, stall_spans

MINUTES = 5
CALL = CallTokens(expected=100.0)


def run(rpm: int, hears: bool, seed: int = 1, **moments: Any) -> Simulation:
    simulation = Simulation(Limiter(), rpm=rpm, hears=hears, seed=seed, **moments)
    simulation.run(60 * MINUTES)
    return simulation


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_service_that_stands_still_now_and_then_costs_a_refusal_or_two_each_time(
    rpm: int, hears: bool
) -> None:
    stalls = stall_spans(4, 0.03, 0.2, until_s=60 * MINUTES)
    simulation = run(rpm, hears, stalls=stalls)
    assert simulation.share(60, 60 * MINUTES, rpm) >= 0.98
    assert simulation.refused_share() < 0.007
    assert len(simulation.episodes()) <= 1.5 * len(stalls) + 8


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_machine_that_stands_still_now_and_then_is_hardly_ever_refused(rpm: int, hears: bool) -> None:
    simulation = run(rpm, hears, halts=stall_spans(6, 0.05, 0.2, until_s=60 * MINUTES))
    assert simulation.share(60, 60 * MINUTES, rpm) >= 0.98
    assert simulation.refused_share() < 0.005


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
def test_long_stalls_cost_their_own_time_and_little_more(hears: bool) -> None:
    halts = stall_spans(6, 0.2, 1.0, until_s=60 * MINUTES)
    lost = sum(to_s - from_s for from_s, to_s in halts) / (60 * MINUTES)
    assert run(3000, hears, halts=halts).share(60, 60 * MINUTES, 3000) >= 0.99 - lost


def refusals(known: Any, moments: Iterable[float], wait_s: float = 0.02) -> list[bool]:
    return [known.explains(moment - 0.02, moment, wait_s, 600) for moment in moments]


def test_a_refusal_now_and_then_is_explained_and_many_are_not() -> None:
    assert all(refusals(Stalls(), range(0, 1000, 10)))
    in_a_row = refusals(Stalls(), range(STALLS + 1))
    assert in_a_row == [True] * (STALLS - 1) + [False] * 2
    every_seven = refusals(Stalls(), range(0, 7 * STALLS_A_MINUTE, 7))
    assert every_seven == [True] * (STALLS_A_MINUTE - 1) + [False]


def test_refusals_of_calls_that_left_before_the_wait_are_one_with_the_first() -> None:
    known = Stalls()
    assert all(known.explains(1.0 + 0.01 * number, 1.02 + 0.01 * number, 0.5, 600) for number in range(30))


def test_a_long_wait_is_no_stall_s_nor_is_what_follows_it() -> None:
    known = Stalls()
    assert not known.explains(1.0, 1.02, 5.0, 600)
    assert not known.explains(10.0, 10.02, 0.02, 600)
    assert known.explains(6.1 + AFTER_UNEXPLAINED_S, 6.12 + AFTER_UNEXPLAINED_S, 0.02, 600)


@pytest.fixture
def let_through() -> tuple[Limiter, Taken]:
    """A limiter that keeps a rate, and a call that it let through at 1 s."""
    limiter = Limiter(rpm=600)
    limiter.take(CALL, 0.9)
    return limiter, limiter.take(CALL, 1.0)


def test_a_call_that_was_let_through_keeps_to_a_short_wait(let_through: tuple[Limiter, Taken]) -> None:
    limiter, call = let_through
    limiter.pause(0.4, 1.05, "asked")
    assert limiter.departs_in_s(call, 1.05) == pytest.approx(0.4)
    assert limiter.departs_in_s(call, 1.46) == 0
    assert call.sent_s == 1.46


def test_a_call_that_was_let_through_is_given_back_for_a_long_wait(
    let_through: tuple[Limiter, Taken],
) -> None:
    limiter, call = let_through
    limiter.pause(30.0, 1.05, "asked")
    assert limiter.departs_in_s(call, 1.0 + DEPARTS_AFTER_S) == math.inf
    limiter.give_back(call, 0.0)
    assert limiter.in_flight == 1
