"""A run's items, worked through: a bounded number at once, and at the end those that were left for later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.limits.pool import Stopping
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from audiobatch.calls.item import Sender
    from audiobatch.execution.claims import Feed
    from audiobatch.execution.job import Job
    from audiobatch.ledger.ledger import Recorded
    from audiobatch.model import Status

    Feeding = Callable[[], Awaitable[Recorded | None]]

log = logging.getLogger(__name__)

#: How often a run that has nothing left looks whether others have set something free.
_LOOK_S = 1.0


async def work_through(sender: Sender, queue: Feeding, *, at_once: int) -> list[Status | None]:
    """Everything that the queue gives, until a stop is asked for; what became of each item.

    Args:
        sender: what all workers share.
        queue: the next item each time; None: there is none left.
        at_once: workers.
    """
    ends: list[Status | None] = []

    async def work() -> None:
        while True:
            # The place first, then the item: what waits for a place is anybody's yet.
            async with sender.gate.entered():
                if sender.stop.asked:
                    return
                try:
                    one = await queue()
                except StorageError as failed:
                    sender.stop.ask(StopReason.STORAGE, failed.message)
                    return
                if one is None:
                    return
                ends.append(await sender.run(one))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return ends


async def wait_for_others(job: Job, feed: Feed) -> None:
    """The end of a shared queue: what others set free or let lie is sent, until nobody holds anything."""
    sender, told = feed.sender, ""
    while not job.stop.asked:
        await work_through(sender, feed.next_of_rest, at_once=job.spec.concurrency_ceiling)
        await send_deferred(sender)
        try:
            state = await asyncio.to_thread(job.ledger.queue.state)
        except StorageError as failed:
            job.stop.ask(StopReason.STORAGE, failed.message)
            break
        if not state.left or job.stop.asked:
            break
        who = ", ".join(job.together.names.get(one, one) for one in state.holders) if job.together else ""
        if state.held and who != told:
            job.warn(f"waiting for {state.held:,} items that other runs hold: {who}")
            told = who
        job.waiting = f"{state.held:,} items that other runs hold"
        if not state.held:
            job.waiting = f"{state.overdue:,} items of runs that fell silent: their replies may yet come"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.stop.soft.wait(), _LOOK_S)
    job.waiting = ""


async def send_deferred(sender: Sender) -> None:
    """After the queue, send the items that were deferred, as fast as the budget of retries fills again."""
    if not sender.later:
        return
    log.info("%d items were deferred; they go now", len(sender.later))
    sender.is_last_pass = True

    async def work() -> None:
        while sender.later and not sender.stop.asked:
            one = sender.later.popleft()
            async with sender.gate.entered():
                try:
                    await sender.back_off(sender.aftermath.budget.room_in_s())
                except Stopping:
                    return
                await sender.run(one)

    workers = min(len(sender.later), sender.spec.concurrency_ceiling)
    await asyncio.gather(*(work() for _ in range(workers)))
