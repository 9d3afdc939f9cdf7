"""Several processes on one quota, each with its share, in simulated time against the emulator's own meter."""

from bisect import bisect_left
from typing import Any

import pytest

from audiobatch.limits.limiter import CallTokens, Limiter, TimeSlots
from audiobatch.limits.pool import Deployment, Pool
from tests.narrowing import present
from tests.quota_simulation import Simulation

CALL = CallTokens(expected=100.0)


def several(count: int, *, in_turn: bool = False, **given: Any) -> list[Limiter]:
    limiters = [Limiter(**given) for _ in range(count)]
    for position, limiter in enumerate(limiters):
        # Each process's idea of the common clock is a little off.
        slots = TimeSlots(position=position, count=count, clock_ahead_s=1000.0 + 0.003 * position)
        limiter.share(1 / count, 0.0, slots if in_turn else None)
    return limiters


@pytest.mark.parametrize(("count", "rpm"), [(2, 600), (2, 1200), (3, 1200), (4, 1200), (3, 3000), (8, 3000)])
def test_a_quota_that_is_given_is_used_whole_and_hardly_ever_refused(count: int, rpm: int) -> None:
    first, *others = several(count, in_turn=True, rpm=rpm)
    simulation = Simulation(first, others=tuple(others), rpm=rpm)
    simulation.run(300)
    assert simulation.share(30, 300, rpm) >= 0.97
    assert simulation.refused_share() < 0.005
    windows = [
        sum(begin <= accepted_s < begin + 10 for accepted_s in simulation.accepted_s) for begin in range(290)
    ]
    assert max(windows) <= rpm / 6, "no ten seconds see more than the quota"


@pytest.mark.parametrize(("count", "rpm"), [(2, 60), (4, 300), (4, 600), (8, 600), (8, 1200)])
def test_a_quota_of_a_few_calls_a_second_is_shared_by_turns(count: int, rpm: int) -> None:
    """Without turns, calls of several that fall into one second are refused: some percent of them."""
    first, *others = several(count, in_turn=True, rpm=rpm)
    simulation = Simulation(first, others=tuple(others), rpm=rpm)
    simulation.run(300)
    assert simulation.share(30, 300, rpm) >= 0.97
    assert simulation.refused_share() < 0.005


def test_a_token_quota_is_learned_although_others_move_its_counter_too() -> None:
    first, second = several(2)
    simulation = Simulation(
        first,
        others=(second,),
        rpm=6000,
        tpm=300_000,
        counter_takes=1005,
        call=CallTokens(expected=60, input=20),
    )
    simulation.run(300)
    assert simulation.share(60, 300, 300_000 / 1005) >= 0.97
    assert simulation.refused_share() < 0.005


def test_whoever_comes_takes_a_share_and_whoever_goes_leaves_it() -> None:
    limiter = Limiter(rpm=600, tpm=60_000)
    assert (limiter.requests.per_minute, limiter.tokens.per_minute) == (600, 60_000)
    limiter.share(1 / 3, 0.0)
    assert (limiter.requests.per_minute, limiter.tokens.per_minute) == (200, 20_000)
    limiter.share(1.0, 1.0)
    assert (limiter.requests.per_minute, limiter.tokens.per_minute) == (600, 60_000)


def test_a_limit_that_headers_tell_is_the_whole_one() -> None:
    limiter = Limiter()
    limiter.share(0.5, 0.0)
    taken = limiter.take(CALL, 0.0)
    limiter.told(taken, 1.0, rpm=600, tpm=90_000, tokens_left=None)
    assert (limiter.rate.per_minute, limiter.tokens.per_minute) == (300, 45_000)


def test_what_refusals_taught_of_the_whole_is_shared_too() -> None:
    limiter = Limiter()
    simulation = Simulation(limiter, rpm=600, hears=False)
    simulation.run(120)
    learned = present(limiter.rate.per_minute)
    limiter.share(0.5, simulation.now_s)
    assert limiter.rate.per_minute == pytest.approx(learned / 2)
    limiter.share(1.0, simulation.now_s)
    assert limiter.rate.per_minute == pytest.approx(learned)


@pytest.mark.parametrize("given", [True, False], ids=["given", "told by headers"])
def test_two_that_share_never_pass_the_quota_together_over_any_ten_seconds(given: bool) -> None:
    first, second = several(2, rpm=600 if given else None)
    simulation = Simulation(first, others=(second,), rpm=600)
    simulation.run(180)
    moments = [accepted_s for accepted_s in simulation.accepted_s if given or accepted_s > 15]
    most = max(bisect_left(moments, start + 10.0) - n for n, start in enumerate(moments))
    assert most <= 102, "the quota's hundred, and one of each that came a little late"
    assert given is False or simulation.refused_s == []


def test_a_pool_gives_each_deployment_its_share() -> None:
    limiters = [Limiter(rpm=600, tpm=10_000), Limiter(rpm=60)]
    pool = Pool(
        [Deployment(name=str(n), limiter=limiter, proven=True) for n, limiter in enumerate(limiters)],
        clock=lambda: 0.0,
        call_later=lambda *_: pytest.fail("nobody waits"),
    )
    pool.share(1 / 3)
    assert [limiter.requests.per_minute for limiter in limiters] == [pytest.approx(200), pytest.approx(20)]
    assert limiters[0].tokens.per_minute == pytest.approx(10_000 / 3)
