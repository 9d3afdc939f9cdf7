"""A run's items, claimed ahead of what is sent and handed out one by one.

    next(first, last)   those of a shard, in order of position: what others have claimed is not among them
    next_of_rest()      what is left anywhere: set free by a run that ended, or held by one that fell silent

Claims come in batches, the next one while the last is still being sent, so that the ledger is asked once for many
items and no more are held than can be sent soon.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.execution.recovery import recover
from audiobatch.ledger.spool_replay import replay
from audiobatch.model import Status
from audiobatch.planning.plan import Decision, plan_again

if TYPE_CHECKING:
    from collections.abc import Sequence

    from audiobatch.calls.item import ItemRunner
    from audiobatch.ledger.ledger import Recorded
    from audiobatch.ledger.queue import Claim
    from audiobatch.planning.plan import Retry

log = logging.getLogger(__name__)

#: Items that a run alone claims at once; one among several takes fewer, so that none is idle at the end.
_ALONE = 250
_FEWEST, _MOST = 4, 50


class Claims:
    """One a run."""

    def __init__(self, runner: ItemRunner, retry: Retry | None) -> None:
        self.runner = runner
        self._retry = retry
        self._ledger = runner.context.ledger
        self._waiting: list[tuple[int, Recorded]] = []
        self._rest: deque[Recorded] = deque()
        self._frontier = 0.0
        self._claiming = asyncio.Lock()
        self._ahead: asyncio.Task[None] | None = None

    @property
    def _size(self) -> int:
        if not self._ledger.is_shared:
            return _ALONE
        return max(_FEWEST, min(_MOST, self.runner.context.gate.open))

    async def next(self, first: int, last: int) -> Recorded | None:
        """The next item between these positions, both included; None: no more of them are this run's.

        Raises:
            StorageError: the ledger is gone.
        """
        while True:
            at = bisect.bisect_left(self._waiting, first, key=lambda one: one[0])
            if at < len(self._waiting) and self._waiting[at][0] <= last:
                found = self._waiting.pop(at)[1]
                self._look_ahead()
                return found
            if self._frontier >= last:
                return None
            await self._claim_behind(self._frontier)

    def _look_ahead(self) -> None:
        idle = self._ahead is None or self._ahead.done()
        if idle and math.isfinite(self._frontier) and len(self._waiting) < self._size // 2:
            self._ahead = asyncio.create_task(self._claim_behind(self._frontier))
            self._ahead.add_done_callback(_heard)

    async def _claim_behind(self, frontier: float) -> None:
        async with self._claiming:
            if self._frontier != frontier or self.runner.context.stop.asked:
                if self.runner.context.stop.asked:
                    self._frontier = math.inf
                return
            size = self._size
            claims = await self._ledger.queue.claim(size, after=int(frontier))
            for one in await self._read(claims):
                bisect.insort(self._waiting, (one.source.position, one), key=lambda pair: pair[0])
            self._frontier = claims[-1].position if len(claims) == size else math.inf

    async def next_of_rest(self) -> Recorded | None:
        """The next item of all that is left; None: nobody has set anything free.

        Raises:
            StorageError: the ledger is gone, or the output cannot be written.
        """
        async with self._claiming:
            while not self._rest and not self.runner.context.stop.asked:
                claims = await self._ledger.queue.claim(self._size)
                if not claims:
                    break
                overdue = [one.item_id for one in claims if one.overdue]
                usual = [one for one in claims if not one.overdue]
                self._rest.extend(await self._read(usual))
                if overdue:
                    self._rest.extend(await self._taken_over(overdue))
            return self._rest.popleft() if self._rest else None

    async def _read(self, claims: Sequence[Claim]) -> list[Recorded]:
        ids = [one.item_id for one in claims]
        return await asyncio.to_thread(self._ledger.recorded_of, ids) if ids else []

    async def _taken_over(self, item_ids: Sequence[str]) -> list[Recorded]:
        """Items of a run that fell silent: its open calls have an unknown end; then they are planned again."""
        runner, ledger = self.runner, self._ledger
        if brought := await asyncio.to_thread(self._search_spool, item_ids):
            log.warning("%d replies that a run of this machine could not write were brought home", brought)
        lost = await asyncio.to_thread(recover, ledger, runner.context.storage, item_ids)
        log.warning(
            "%d items of a run that fell silent are taken over; %d calls of it were perhaps billed",
            *(len(item_ids), lost),
        )
        found = await asyncio.to_thread(ledger.recorded_of, item_ids)
        decided = await asyncio.to_thread(plan_again, ledger, runner.context.spec, self._retry, found)
        runner.context.unknown_before.update(await asyncio.to_thread(ledger.unknown_counts))
        for item_id, decision in decided.items():
            if decision is Decision.SEND:
                continue
            if decision is Decision.UNKNOWN:
                runner.context.stats.item_ended(Status.UNKNOWN)
            ledger.queue.ended(item_id)
        return [one for one in found if decided[one.source.item_id] is Decision.SEND]

    def _search_spool(self, item_ids: Sequence[str]) -> int:
        """Bring home what a run of this machine has paid for and could not write; how many replies."""
        with self._ledger.one_at_a_time():
            return replay(
                self.runner.context.spool, self.runner.context.storage, self._ledger, only=frozenset(item_ids)
            )

    async def close(self) -> None:
        """What was claimed and not handed out is anybody's."""
        if self._ahead is not None:
            await asyncio.wait([self._ahead])
        left = [one.source.item_id for _, one in self._waiting] + [one.source.item_id for one in self._rest]
        self._waiting.clear()
        self._rest.clear()
        with contextlib.suppress(StorageError):
            self._ledger.queue.release(left)


def _heard(task: asyncio.Task[None]) -> None:
    """A claim ahead that failed fails again where it is waited for."""
    if not task.cancelled() and (failed := task.exception()) is not None:
        log.warning("items could not be claimed ahead: %s", failed)
