"""Why a run stopped: of several reasons the most severe, by the exit codes' own order."""

import itertools

import pytest

from audiobatch.errors import BY_SEVERITY, ExitCode
from audiobatch.stop import EXIT_CODES, HURRIED, Stop, StopReason

BY_ITSELF = [reason for reason in StopReason if reason not in HURRIED]


def stopped(*reasons: StopReason) -> Stop:
    stop = Stop()
    for reason in reasons:
        stop.ask(reason, f"because of {reason}")
    return stop


def test_the_order_is_the_documented_one() -> None:
    assert [int(code) for code in BY_SEVERITY[:6]] == [1, 2, 4, 6, 5, 3]
    assert set(BY_SEVERITY) == set(ExitCode)
    assert set(EXIT_CODES) == set(StopReason)


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(BY_ITSELF, 2)])
def test_whichever_comes_first_the_more_severe_reason_decides(one: StopReason, other: StopReason) -> None:
    order = [1, 2, 4, 6, 5]
    decides = min(one, other, key=lambda reason: order.index(EXIT_CODES[reason]))
    stop = stopped(one, other)
    assert stop.reason is decides
    assert stop.detail.startswith(f"because of {decides}; because of ")


@pytest.mark.parametrize("by_hand", sorted(HURRIED))
def test_who_stops_a_run_by_hand_stopped_it_unless_it_was_stopping_already(by_hand: StopReason) -> None:
    assert stopped(by_hand, StopReason.MAX_FAILURES, StopReason.STORAGE).reason is by_hand
    assert stopped(StopReason.PARKED, by_hand).reason is StopReason.PARKED
    assert stopped(StopReason.PARKED, by_hand, StopReason.STORAGE).reason is StopReason.STORAGE


def test_the_first_sentence_of_a_reason_stays() -> None:
    stop = Stop()
    assert (stop.reason, stop.detail, stop.asked) == (None, "", False)
    stop.ask(StopReason.STORAGE, "no space")
    stop.ask(StopReason.STORAGE, "still none")
    assert stop.detail == "no space"
