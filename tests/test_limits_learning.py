"""How a limiter finds a quota that nobody told it, in simulated time against the emulator's own meter."""

import itertools
from typing import Any

import pytest

from audiobatch.limits.limiter import CallTokens, Limiter
from tests.quota_simulation import Simulation


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_hidden_quota_is_used_whole_and_hardly_ever_refused(rpm: int, hears: bool) -> None:
    simulation = Simulation(Limiter(), rpm=rpm, hears=hears)
    simulation.run(300)
    assert simulation.share(60, 300, rpm) >= 0.98
    assert simulation.refused_share() < 0.005


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
def test_refusals_that_name_no_wait_cost_little_more(hears: bool) -> None:
    simulation = Simulation(Limiter(), rpm=600, hears=hears, names_waits=False)
    simulation.run(300)
    assert simulation.share(60, 300, 600) >= 0.98
    assert simulation.refused_share() < 0.0075


def test_a_network_that_jitters_costs_little_more() -> None:
    simulation = Simulation(Limiter(), rpm=600, hears=False, jitter_s=0.04)
    simulation.run(300)
    assert simulation.share(60, 300, 600) >= 0.97
    assert simulation.refused_share() < 0.005


def test_a_token_quota_is_learned_as_the_service_counts_not_as_replies_turn_out() -> None:
    simulation = Simulation(
        Limiter(), rpm=6000, tpm=300_000, counter_takes=1005, call=CallTokens(expected=60, input=20)
    )
    simulation.run(300)
    assert simulation.share(60, 300, 300_000 / 1005) >= 0.98
    assert simulation.refused_share() < 0.005
    assert simulation.limiter.charge.factor == pytest.approx(1005 / 1020, rel=0.02)


def test_without_headers_a_token_quota_is_learned_from_the_minute_s_refusals() -> None:
    simulation = Simulation(Limiter(), rpm=6000, tpm=300_000, counter_takes=1005, hears=False)
    simulation.run(300)
    assert simulation.share(60, 300, 300_000 / 1005) >= 0.98
    assert simulation.refused_share(from_s=60) < 0.01


@pytest.mark.parametrize("hears", [True, False], ids=["headers", "no headers"])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_halved_quota_is_found_within_a_minute_and_in_few_episodes(rpm: int, hears: bool) -> None:
    simulation = Simulation(Limiter(), rpm=rpm, hears=hears)
    simulation.run(90)
    simulation.change(rpm=rpm // 2)
    simulation.run(240)
    assert simulation.share(150, 240, rpm / 2) >= 0.9
    episodes = [episode_s for episode_s in simulation.episodes() if episode_s > 90]
    assert all(later - sooner >= 15 for sooner, later in itertools.pairwise(episodes))


@pytest.mark.parametrize("part", [0.5, 0.75])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_quota_that_was_cut_is_not_taken_for_random_rejections(rpm: int, part: float) -> None:
    for seed in range(4):
        simulation = Simulation(Limiter(), rpm=rpm, hears=False, seed=seed)
        simulation.run(50 + 3 * seed)
        simulation.change(rpm=int(part * rpm))
        simulation.run(170 + 3 * seed)
        assert simulation.limiter.rate.random_rejections.share == 0
        assert sum(refused_s > 50 + 3 * seed for refused_s in simulation.refused_s) <= 30
        assert simulation.share(110 + 3 * seed, 170 + 3 * seed, part * rpm) >= 0.9


@pytest.mark.parametrize(("hears", "within_s"), [(True, 60), (False, 120)], ids=["headers", "no headers"])
@pytest.mark.parametrize("rpm", [600, 3000])
def test_a_doubled_quota_is_found(rpm: int, hears: bool, within_s: int) -> None:
    simulation = Simulation(Limiter(), rpm=rpm, hears=hears)
    simulation.run(90)
    simulation.change(rpm=rpm * 2)
    simulation.run(90 + within_s + 20)
    assert simulation.share(90 + within_s, 90 + within_s + 20, rpm * 2) >= 0.9


def test_what_the_user_gave_is_kept_from_the_first_call_and_never_passed() -> None:
    simulation = Simulation(Limiter(rpm=300), rpm=6000)
    simulation.run(120)
    assert simulation.share(0, 120, 300) <= 1.01
    assert simulation.share(60, 120, 300) >= 0.98


def test_a_given_concurrency_is_used_at_once_and_is_the_ceiling() -> None:
    simulation = Simulation(Limiter(max_concurrency=16), rpm=60_000, latency_s=5)
    simulation.run(1)
    assert simulation.limiter.in_flight == 16
    simulation.run(60)
    assert simulation.most_in_flight == 16


def test_concurrency_that_nobody_gave_grows_to_what_a_slow_service_needs() -> None:
    simulation = Simulation(Limiter(), rpm=600, latency_s=20)
    simulation.run(300)
    assert simulation.share(200, 300, 600) >= 0.95, "10 calls a second of 20 s each: 200 in flight"
    assert 200 <= simulation.limiter.max_concurrency <= 300


def test_nothing_is_sent_in_a_burst() -> None:
    simulation = Simulation(Limiter(), rpm=600)
    simulation.run(120)
    sent = simulation.accepted_s
    assert max(sum(start <= sent_s < start + 1 for sent_s in sent) for start in range(5, 119)) <= 11


def test_a_pause_is_made_good_a_little_at_a_time() -> None:
    simulation = Simulation(Limiter(rpm=600), rpm=60_000)
    simulation.run(30)
    simulation.limiter.pause(2.0, simulation.now_s, "a test")
    simulation.run(150)
    assert len(simulation.accepted_s) == pytest.approx(10 * 150, rel=0.01)
    assert simulation.refused_s == []


def test_a_refusal_of_the_very_first_calls_teaches_no_rate() -> None:
    limiter = Limiter()
    taken = limiter.take(CallTokens(expected=10), 0.0)
    assert limiter.refused(taken, 0.1, 2.0).all_s == 2.0
    assert limiter.rate.per_minute is None


def test_a_day_s_wait_teaches_no_rate() -> None:
    limiter = Limiter()
    for second in range(30):
        taken = limiter.take(CallTokens(expected=10), float(second))
    limiter.refused(taken, 30.0, 86_400.0)
    assert limiter.rate.per_minute is None


@pytest.mark.parametrize(("set_up", "words"), [
    ({"max_concurrency": 1}, "1 calls at once"),
    ({"rpm": 60}, "60 requests a minute"),
    ({"tpm": 600, "rpm": 60_000}, "600 tokens a minute"),
])  # fmt: skip
def test_it_says_which_limit_binds(set_up: dict[str, Any], words: str) -> None:
    limiter = Limiter(**set_up)
    limiter.take(CallTokens(expected=100), 0.0)
    assert limiter.binding(0.0) == words
