"""Quotas on a clock that stands still until it is moved."""

import pytest

from audiobatch_emulator.config import Quota
from audiobatch_emulator.quota import Quotas


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(quotas: Quotas, count: int, tokens: int = 0) -> int:
    """How many of `count` requests at this instant pass."""
    verdicts = [quotas.take("d", tokens) for _ in range(count)]
    return sum(verdict is not None and verdict.refused_for is None for verdict in verdicts)


def test_a_minute_s_share_sent_at_once_is_refused(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(rpm=600)}, now=clock)
    assert taken(quotas, 100) == 10  # one second's share


def test_ten_seconds_have_their_share_too(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(rpm=90)}, now=clock)  # 1.5 a second: two in a second, fifteen in ten
    passed = 0
    for _ in range(9):
        passed += taken(quotas, 3)
        clock.now += 1
    assert passed == 15


def test_a_client_that_keeps_the_rate_is_never_refused(clock: Clock) -> None:
    for rpm in (7, 60, 90, 150, 600, 3000):
        quotas = Quotas({"d": Quota(rpm=rpm)}, now=clock)
        for index in range(2 * rpm):
            verdict = quotas.take("d", 0)
            assert verdict is not None
            assert verdict.refused_for is None, f"{rpm} a minute: request {index} was refused"
            clock.now += 60 / rpm + (0.01 if index % 2 else -0.01)  # with some jitter


def test_the_wait_that_is_named_is_enough_and_not_too_long(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(rpm=60)}, now=clock)
    assert taken(quotas, 1) == 1
    refused = quotas.take("d", 0)
    assert refused is not None
    assert refused.refused_for == "requests"
    clock.now += refused.retry_after_s - 0.01
    assert taken(quotas, 1) == 0
    clock.now += 0.02
    assert taken(quotas, 1) == 1


def test_tokens_are_reset_each_minute(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(tpm=1000)}, now=clock)
    assert taken(quotas, 5, tokens=300) == 3
    refused = quotas.take("d", 300)
    assert refused is not None
    assert refused.refused_for == "tokens"
    assert refused.retry_after_s == pytest.approx(60)
    assert refused.rate.remaining_tokens == 100
    assert taken(quotas, 1, tokens=100) == 1
    clock.now += 60
    assert taken(quotas, 5, tokens=300) == 3


def test_a_refused_request_is_not_counted(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(rpm=60)}, now=clock)
    passed = 0
    for _ in range(100):
        passed += taken(quotas, 1)
        clock.now += 0.1
    assert passed == 10


def test_deployments_without_a_quota_have_no_limit(clock: Clock) -> None:
    assert Quotas({"d": Quota(rpm=1)}, now=clock).take("other", 10**9) is None


def test_a_change_keeps_what_was_counted(clock: Clock) -> None:
    quotas = Quotas({"d": Quota(tpm=1000)}, now=clock)
    assert taken(quotas, 1, tokens=900) == 1
    quotas.change({"d": Quota(tpm=2000)})
    assert taken(quotas, 2, tokens=1000) == 1
    quotas.change({"d": Quota()})
    assert taken(quotas, 5, tokens=10**6) == 5
    quotas.reset()
    assert quotas.current() == {"d": Quota(tpm=1000)}


@pytest.mark.parametrize("wrong", [{"rpm": 0}, {"tpm": -1}])
def test_a_quota_of_nothing_is_a_mistake(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Quota(**wrong)
