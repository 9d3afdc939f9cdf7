"""What ends of calls mean for the run, in simulated time: an outage is when nobody answers."""

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from audiobatch.calls.feedback import CallFeedback
from audiobatch.errors import AudioBatchError, BadReply, RateLimited, Unavailable
from audiobatch.limits.limiter import CallTokens, Limiter
from audiobatch.limits.pool import Deployment, Pool
from audiobatch.limits.retry import RetryBudget
from audiobatch.stop import Stop, StopReason
from tests.narrowing import present

CALL = CallTokens(expected=10)


class Run:
    """Calls one after the other, to the one deployment that there is."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stop = Stop()
        self.pool = Pool(
            [Deployment(name="a", limiter=Limiter(max_concurrency=1), proven=True)],
            clock=lambda: self.now_s,
            call_later=lambda _delay_s, _act: Mock(spec=asyncio.TimerHandle),
        )
        budget = RetryBudget(clock=self.pool.clock)
        self.feedback = CallFeedback(pool=self.pool, stop=self.stop, budget=budget)

    async def call(self, failed: AudioBatchError | None) -> None:
        permit = await self.pool.acquire(CALL)
        permit.deployment.limiter.departs_in_s(permit.taken, self.now_s)
        self.now_s += 1
        self.feedback.went_wrong(permit, present(failed))
        permit.release(proven=True)

    async def calls(self, failure: Callable[[], AudioBatchError], *, for_s: float) -> None:
        end_s = self.now_s + for_s
        while self.now_s < end_s and not self.stop.asked:
            self.now_s += 150
            self.pool.serve()
            await self.call(failure())


def refused() -> AudioBatchError:
    return RateLimited("429", retry_after_s=55)


def useless() -> AudioBatchError:
    return BadReply("a page, no reply")


def away() -> AudioBatchError:
    return Unavailable("503", status=503)


@pytest.mark.parametrize("answer", [refused, useless])
async def test_a_service_that_answers_is_there_whatever_it_answers(
    answer: Callable[[], AudioBatchError],
) -> None:
    run = Run()
    await run.call(away())
    await run.calls(answer, for_s=3600)
    assert run.stop.reason is None


@pytest.mark.parametrize("answer", [refused, useless])
async def test_fifteen_minutes_without_an_answer_are_an_outage_counted_from_the_last_answer(
    answer: Callable[[], AudioBatchError],
) -> None:
    run = Run()
    await run.calls(away, for_s=600)
    await run.calls(answer, for_s=100)
    assert run.stop.reason is None
    answered_s = run.now_s
    await run.calls(away, for_s=3600)
    assert run.stop.reason is StopReason.OUTAGE
    assert run.now_s - answered_s > 900
