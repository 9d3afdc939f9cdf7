"""Refusals that no quota is behind, and quotas that strangers use too: in simulated time."""

from typing import Any

import pytest

from audiobatch.errors import RateLimited
from audiobatch.limits.limiter import CallTokens, Limiter
from audiobatch.limits.rate import RandomRejections
from audiobatch.limits.retry import Tries, retrying
from tests.quota_simulation import Simulation

CALL = CallTokens(expected=100.0, input=20.0)


def speed(from_s: float, to_s: float, **service: Any) -> float:
    simulation = Simulation(Limiter(max_concurrency=48), **service)
    simulation.run(to_s)
    return simulation.share(from_s, to_s, 1)


@pytest.mark.parametrize("wait_s", [None, 0.02, 1.0], ids=["no wait named", "20 ms", "1 s"])
@pytest.mark.parametrize(("random_share", "least"), [(0.01, 0.8), (0.03, 0.85), (0.1, 0.7)])
def test_random_rejections_hardly_slow_a_job_down(
    random_share: float, least: float, wait_s: float | None
) -> None:
    unhindered = speed(0, 120)
    found = [
        speed(0, 120, random_share=random_share, random_wait_s=wait_s, seed=seed) / unhindered
        for seed in range(8)
    ]
    assert sum(found) / 8 >= least, found
    assert (
        speed(90, 120, random_share=random_share, random_wait_s=wait_s)
        >= 0.97 * (1 - random_share) * unhindered
    )


@pytest.mark.parametrize("wait_s", [None, 1.0], ids=["no wait named", "1 s"])
def test_a_rate_that_the_user_gave_is_used_through_random_rejections(wait_s: float | None) -> None:
    simulation = Simulation(Limiter(rpm=600), random_share=0.03, random_wait_s=wait_s)
    simulation.run(180)
    assert simulation.share(60, 180, 600) >= 0.9
    assert simulation.share(60, 180, 600) <= 1.0


def test_what_a_job_had_learned_is_kept_when_random_rejections_begin() -> None:
    simulation = Simulation(Limiter(), rpm=3000, hears=False)
    simulation.run(90)
    simulation.random_share = 0.03
    simulation.run(180)
    assert simulation.share(120, 180, 3000) >= 0.88


def test_when_random_rejections_end_a_quota_is_found_as_before() -> None:
    simulation = Simulation(Limiter(max_concurrency=48), random_share=0.05)
    simulation.run(60)
    assert simulation.limiter.rate.random_rejections.share > 0
    simulation.random_share = 0.0
    simulation.run(120)
    assert simulation.limiter.rate.random_rejections.share == 0
    simulation.change(rpm=600)
    simulation.run(240)
    assert simulation.share(180, 240, 600) >= 0.95
    assert simulation.refused_share(from_s=180) < 0.02


@pytest.mark.parametrize("names_waits", [True, False], ids=["waits named", "no wait named"])
@pytest.mark.parametrize(("rpm", "late"), [(60, 0.01), (600, 0.005), (3000, 0.005)])
def test_a_real_quota_is_never_taken_for_random_rejections(rpm: int, late: float, names_waits: bool) -> None:
    simulation = Simulation(Limiter(), rpm=rpm, hears=False, names_waits=names_waits)
    simulation.run(420)
    assert simulation.limiter.rate.random_rejections.share == 0
    assert simulation.share(120, 420, rpm) >= 0.95
    assert simulation.refused_share(from_s=120) <= late


@pytest.mark.parametrize("wait_s", [None, 0.02, 1.0, 5.0])
@pytest.mark.parametrize("rpm", [None, 3000], ids=["ample quota", "hidden quota"])
def test_a_burst_of_refusals_is_waited_out_and_forgotten(rpm: int | None, wait_s: float | None) -> None:
    simulation = Simulation(Limiter(max_concurrency=48), rpm=rpm, hears=False)
    simulation.burst(60, 63, wait_s)
    simulation.run(100)
    before = simulation.share(40, 60, 1)
    assert simulation.share(80, 100, 1) >= 0.9 * before
    assert sum(60 <= refused_s < 64 for refused_s in simulation.refused_s) <= 60, (
        "no storm, however short the wait named"
    )


@pytest.mark.parametrize("rpm", [600, 3000])
def test_others_that_take_half_of_the_quota_for_a_while(rpm: int) -> None:
    simulation = Simulation(Limiter(), rpm=rpm, hears=False)
    simulation.strangers(90, 180, rpm / 2)
    simulation.run(330)
    assert simulation.share(120, 180, rpm / 2) >= 0.9
    assert simulation.share(270, 330, rpm) >= 0.9, "back within a minute and a half"


def test_a_refusal_by_chance_makes_only_its_own_request_wait() -> None:
    simulation = Simulation(Limiter(max_concurrency=48), random_share=0.05)
    simulation.run(60)
    limiter, now_s = simulation.limiter, simulation.now_s
    rest = limiter.refused(limiter.take(CALL, now_s), now_s + 0.1, 2.5)
    assert (rest.all_s, rest.this_call_s) == (0.0, 2.5)


async def test_a_request_that_waits_alone_is_made_again_after_its_own_wait() -> None:
    waited, calls = [], []

    tries = Tries(retry_unknown=False)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            tries.pause_s = 2.5
            raise RateLimited("429", retry_after_s=2.5)
        tries.pause_s = 0.0
        if len(calls) == 2:
            raise RateLimited("429", retry_after_s=7.0)  # the deployment's pause; none of its own
        return "done"

    assert await retrying(tries, sleep=sleep)(call) == "done"
    assert [waited_s for waited_s in waited if waited_s] == [2.5]


def test_a_greater_share_than_the_known_one_speaks_of_the_rate() -> None:
    known = RandomRejections()
    assert known.refused(), "where none is known each does"
    known.found(30, 1000)

    def spoken(every: int) -> int:
        spoke = 0
        for call in range(300):
            known.sent()
            if call % every == 0:
                spoke += known.refused()
        return spoke

    assert spoken(33) == 0
    assert spoken(2) > 0
