"""A run's items, claimed in the ledger ahead of sending, and returned one by one.

    next(first, last)   the items of a shard, in order of position, without those that other runs have claimed
    next_of_rest()      items that are left anywhere: released by a run that ended, or held by one that fell silent

Claims come in batches, the next one while the last is still being sent: one query claims many items, and a run
holds no more than it can send soon.
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
from audiobatch.planning.plan import Decision, replan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from audiobatch.calls.item import ItemRunner
    from audiobatch.ledger.queue import Claim
    from audiobatch.ledger.reader import Recorded
    from audiobatch.planning.plan import Retry

log = logging.getLogger(__name__)

#: Items that a run alone claims at once; one among several claims fewer, so that no run is idle at the end.
_ALONE = 250
_FEWEST, _MOST = 4, 50


class Claims:
    """The claims of one run.

    Attributes:
        runner: runs the items.
    """

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
        """Return the next item between these positions, both included; None: no more of them are this run's.

        Raises:
            StorageError: the ledger is gone.
        """
        while True:
            at = bisect.bisect_left(self._waiting, first, key=lambda pair: pair[0])
            if at < len(self._waiting) and self._waiting[at][0] <= last:
                recorded = self._waiting.pop(at)[1]
                self._claim_ahead()
                return recorded
            if self._frontier >= last:
                return None
            await self._claim_behind(self._frontier)

    def _claim_ahead(self) -> None:
        idle = self._ahead is None or self._ahead.done()
        if idle and math.isfinite(self._frontier) and len(self._waiting) < self._size // 2:
            self._ahead = asyncio.create_task(self._claim_behind(self._frontier))
            self._ahead.add_done_callback(_log_failure)

    async def _claim_behind(self, frontier: float) -> None:
        async with self._claiming:
            if self._frontier != frontier or self.runner.context.stop.asked:
                if self.runner.context.stop.asked:
                    self._frontier = math.inf
                return
            size = self._size
            claims = await self._ledger.queue.claim(size, after=int(frontier))
            for recorded in await self._read(claims):
                bisect.insort(self._waiting, (recorded.source.position, recorded), key=lambda pair: pair[0])
            self._frontier = claims[-1].position if len(claims) == size else math.inf

    async def next_of_rest(self) -> Recorded | None:
        """Return the next item of all that is left; None: no run has released any.

        Raises:
            StorageError: the ledger is gone, or the output cannot be written.
        """
        async with self._claiming:
            while not self._rest and not self.runner.context.stop.asked:
                claims = await self._ledger.queue.claim(self._size)
                if not claims:
                    break
                overdue = [claim.item_id for claim in claims if claim.overdue]
                self._rest.extend(await self._read([claim for claim in claims if not claim.overdue]))
                if overdue:
                    self._rest.extend(await self._take_over(overdue))
            return self._rest.popleft() if self._rest else None

    async def _read(self, claims: Sequence[Claim]) -> list[Recorded]:
        ids = [claim.item_id for claim in claims]
        return await asyncio.to_thread(self._ledger.reader.recorded_of, ids) if ids else []

    async def _take_over(self, item_ids: Sequence[str]) -> list[Recorded]:
        """Close the open calls of a run that fell silent, and plan its items again; return those to send."""
        runner, ledger = self.runner, self._ledger
        if replayed := await asyncio.to_thread(self._replay, item_ids):
            log.warning("%d replies that a run of this machine could not write were written now", replayed)
        lost = await asyncio.to_thread(recover, ledger, runner.context.storage, item_ids)
        log.warning(
            "%d items of a run that fell silent are taken over; %d calls of it were perhaps billed",
            *(len(item_ids), lost),
        )
        recorded = await asyncio.to_thread(ledger.reader.recorded_of, item_ids)
        decided = await asyncio.to_thread(replan, ledger, runner.context.spec, self._retry, recorded)
        runner.context.unknown_before.update(await asyncio.to_thread(ledger.reader.unknown_counts))
        for item_id, decision in decided.items():
            if decision is Decision.SEND:
                continue
            if decision is Decision.UNKNOWN:
                runner.context.stats.item_ended(Status.UNKNOWN)
            ledger.queue.finish(item_id)
        return [each for each in recorded if decided[each.source.item_id] is Decision.SEND]

    def _replay(self, item_ids: Sequence[str]) -> int:
        """Write the replies of these items that are in this machine's spool; return how many."""
        with self._ledger.exclusive():
            return replay(
                self.runner.context.spool, self.runner.context.storage, self._ledger, only=frozenset(item_ids)
            )

    async def close(self) -> None:
        """Release the claims of items that were not returned."""
        if self._ahead is not None:
            await asyncio.wait([self._ahead])
        left = [recorded.source.item_id for recorded in (*(pair[1] for pair in self._waiting), *self._rest)]
        self._waiting.clear()
        self._rest.clear()
        with contextlib.suppress(StorageError):
            self._ledger.queue.release(left)


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log that claiming ahead failed; it fails again where an item is waited for."""
    if not task.cancelled() and (failed := task.exception()) is not None:
        log.warning("items could not be claimed ahead: %s", failed)
