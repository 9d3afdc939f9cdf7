"""A run's items, worked through: a bounded number at once, and at the end those that were left for later."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pipeline.limits.pool import Stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.model import Status
    from pipeline.send import Sender
    from pipeline.store.ledger import Recorded

log = logging.getLogger(__name__)


async def work_through(sender: Sender, queue: Iterator[Recorded], *, at_once: int) -> list[Status | None]:
    """Everything on the queue, until a stop is asked for; what became of each item."""
    ends: list[Status | None] = []

    async def work() -> None:
        for one in queue:
            if sender.stop.asked:
                return
            async with sender.gate.entered():
                if sender.stop.asked:
                    return
                ends.append(await sender.run(one))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return ends


async def send_deferred(sender: Sender) -> None:
    """The end of the queue: items that the budget of retries left for later, as fast as it fills again."""
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
