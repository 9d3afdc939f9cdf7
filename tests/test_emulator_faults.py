"""Which rule hits which request."""

import pytest
from pydantic import ValidationError

from audiobatch_emulator.faults import RULES, Ask, Do, Faults, Latency, Rule


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rules(*given: dict[str, object]) -> list[Rule]:
    return RULES.validate_python(list(given))


def ask(index: int = 0, *, deployment: str = "d", text: str = "", attempt: int = 0) -> Ask:
    return Ask(deployment=deployment, text=text, attempt=attempt, identity=f"item {index}")


def statuses(faults: Faults, asks: list[Ask]) -> list[int | None]:
    hits = [faults.match(request) for request in asks]
    return [None if hit is None else hit.do.status for hit in hits]


def test_without_conditions_every_request_is_hit() -> None:
    faults = Faults(rules({"do": {"status": 500}}))
    assert statuses(faults, [ask(), ask()]) == [500, 500]


def test_the_nth_and_every_nth_are_counted_from_one() -> None:
    faults = Faults(
        rules({"when": {"nth": 2}, "do": {"status": 500}}, {"when": {"every": 3}, "do": {"status": 503}})
    )
    assert statuses(faults, [ask() for _ in range(6)]) == [None, 500, 503, None, None, 503]


def test_a_rule_counts_only_the_requests_it_is_about() -> None:
    faults = Faults(rules({"when": {"deployment": "a", "nth": 2}, "do": {"status": 500}}))
    asked = [ask(deployment=name) for name in "abba"]
    assert statuses(faults, asked) == [None, None, None, 500]


def test_the_first_rule_wins_and_the_others_still_count() -> None:
    faults = Faults(
        rules({"when": {"nth": 1}, "do": {"status": 500}}, {"when": {"nth": 2}, "do": {"status": 503}})
    )
    assert statuses(faults, [ask(), ask()]) == [500, 503]


def test_attempts_count_from_zero() -> None:
    faults = Faults(rules({"when": {"attempt_below": 2}, "do": {"status": 500}}))
    assert statuses(faults, [ask(attempt=attempt) for attempt in range(4)]) == [500, 500, None, None]


def test_texts_and_times_are_conditions() -> None:
    clock = Clock()
    faults = Faults(
        rules({"when": {"text": "dog", "after_s": 1, "before_s": 2}, "do": {"status": 500}}), now=clock
    )
    dog, cat = ask(text="a dog\nbarks"), ask(text="a cat")
    seen = []
    for moment in (0.5, 1.0, 1.9, 2.0):
        clock.now = moment
        seen.append(statuses(faults, [dog, cat]))
    assert seen == [[None, None], [500, None], [500, None], [None, None]]


def test_a_share_is_of_the_requests_whatever_their_order() -> None:
    asked = [ask(index) for index in range(2000)]
    rule = rules({"when": {"share": 0.25}, "do": {"status": 500}})
    hit = {question.identity for question in asked if Faults(rule, seed=1).match(question)}
    backwards = Faults(rule, seed=1)
    assert {question.identity for question in reversed(asked) if backwards.match(question)} == hit
    assert 430 < len(hit) < 570
    other_seed = Faults(rule, seed=2)
    assert {question.identity for question in asked if other_seed.match(question)} != hit


def test_a_retry_draws_again() -> None:
    faults = Faults(rules({"when": {"share": 0.5}, "do": {"status": 500}}))
    hits = statuses(faults, [ask(attempt=attempt) for attempt in range(200)])
    assert 60 < hits.count(500) < 140


def test_setting_rules_starts_counts_and_times_anew() -> None:
    clock = Clock()
    faults = Faults(now=clock)
    clock.now = 100
    faults.set(rules({"when": {"nth": 1, "before_s": 5}, "do": {"status": 500}}))
    assert statuses(faults, [ask(), ask()]) == [500, None]
    faults.reset()
    assert faults.rules == []


def test_latency_is_a_number_or_a_distribution() -> None:
    assert Do(latency_s=1.5).wait_s(draw=0.9, audio_s=10) == 1.5
    log_normal = Do(latency_s=Latency(median=2, sigma=0.5))
    assert log_normal.wait_s(draw=0.5, audio_s=0) == pytest.approx(2)
    assert log_normal.wait_s(draw=0.841345, audio_s=0) == pytest.approx(2 * 2.718281828**0.5, rel=1e-3)
    assert Do(latency_s=Latency(fixed=1, per_audio_s=0.1)).wait_s(draw=0.0, audio_s=20) == pytest.approx(3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"do": {"status": 99}},
        {"do": {"statuses": 500}},
        {"do": {"corrupt": "everything"}},
        {"do": {"reset": "during"}},
        {"do": {"headers": {"a b": "c"}}},
        {"do": {"headers": {"a": "c\r\nd: e"}}},
        {"do": {"latency_s": -1}},
        {"do": {"close_code": 99}},
        {"when": {"nth": 0}},
        {"when": {"share": 2}},
        {"when": {"moon": "full"}},
        {"what": {}},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        rules(wrong)


def test_the_journal_s_words_name_every_effect() -> None:
    do = Do(
        status=503, latency_s=1, reset="in", stall_s=2, corrupt="json", close_code=1011, expire_tokens=True
    )
    assert do.describe() == "status 503, latency, reset in, stall, corrupt json, close 1011, expire_tokens"
