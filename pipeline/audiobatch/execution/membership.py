"""Runs that work together on one ledger: heartbeats, leases, and the sharing of quotas and budget.

A new run waits until every other divides the quotas among one more; one that ends or falls silent leaves its share
to the rest. All of this is one task beside the run's calls, every few seconds; a run alone on its folder has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.errors import LeaseLost, StorageError
from audiobatch.ledger.membership import ASKING, SENDS_NOTHING, this_process
from audiobatch.limits.limiter import TimeSlots
from audiobatch.planning.items import digest
from audiobatch.planning.worst_case import worst_unknown_usd
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from audiobatch.calls.item import ItemRunner
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.ledger.membership import Worker
    from audiobatch.limits.pool import Pool
    from audiobatch.planning.plan import Retry
    from audiobatch.stop import Stop

log = logging.getLogger(__name__)

#: A heartbeat is due this often, and at a third of a lease.
_BEAT_S = 3.0
#: Between heartbeats while other runs reduce their rates.
_SOON_S = 0.25
#: Settings beside those of the replies that runs must share to work together.
_ALIKE = ("on_unknown", "redo", "keep", "force", "rpm", "tpm", "max_total_cost", "prices")


def this_worker(
    spec: JobSpec,
    settings_key: str,
    run_id: str,
    retry: Retry | None,
    *,
    drains: bool = False,
    sends: bool = True,
) -> Worker:
    """Describe this run, for the other runs on a shared ledger.

    Args:
        spec: the job.
        settings_key: of the settings that a reply depends on.
        run_id: of this run.
        retry: what it selects, if it does.
        drains: it only works on a queue that another run has filled.
        sends: it makes calls.
    """
    alike = {name: str(getattr(spec, name)) for name in _ALIKE}
    alike["deployments"] = str([deployment.model_dump(mode="json") for deployment in spec.deployments])
    asks = digest([settings_key, _selection(retry), alike])
    return this_process(run_id, asks=asks, lease_s=spec.lease_s, drains=drains, sends=sends)


def _selection(retry: Retry | None) -> list[object]:
    if retry is None:
        return []
    errors = retry.error_types
    return [
        sorted(retry.statuses),
        None if errors is None else sorted(errors),
        sorted(retry.reviews),
        retry.with_notes,
    ]


@dataclass(slots=True, kw_only=True)
class Membership:
    """This run among the others of a shared ledger.

    Attributes:
        sends: this run makes calls; otherwise its workers do.
        live: runs that send or are about to, this one included.
        names: of the others, by run id.
    """

    ledger: Ledger
    stop: Stop
    lease_s: float
    sends: bool = True
    live: int = 1
    names: dict[str, str] = field(default_factory=dict)
    _runner: ItemRunner | None = None
    _sharing: int = 0
    _has_room: asyncio.Event = field(default_factory=asyncio.Event)
    _one_beat: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        if not self.sends:
            self._sharing = SENDS_NOTHING

    async def keep(self) -> None:
        """Send heartbeats and renew leases until cancelled; a ledger that is gone stops the run."""
        while True:
            try:
                await self._beat()
            except LeaseLost as lost:
                self.stop.ask(StopReason.STORAGE, lost.message)
                return
            except StorageError as failed:
                self.stop.ask(StopReason.STORAGE, failed.message)
            waits = self._runner is not None and not self._has_room.is_set()
            await asyncio.sleep(_SOON_S if waits else min(_BEAT_S, self.lease_s / 3))

    async def _beat(self) -> None:
        async with self._one_beat:
            await self._exchange()

    async def _exchange(self) -> None:
        beat = await self.ledger.workers.beat(self._sharing)
        self.live, self.names = beat.live, beat.names
        if self._runner is not None:
            # Also where their number stays: clocks drift, and one may have come as another went.
            slots = TimeSlots(position=beat.position, count=beat.live, clock_ahead_s=beat.clock_ahead_s)
            self._runner.context.pool.share(1 / beat.live, slots)
        if self._runner is not None and self._sharing != beat.live:
            # Slow down before the others are told; a share grows only when another run leaves.
            self._sharing = beat.live
            beat = await self.ledger.workers.beat(self._sharing)
            log.info("%d runs at work: each takes its share of the quotas", beat.live)
        if self._runner is not None and beat.have_room and self._sharing == beat.live:
            self._has_room.set()
        if lost := await self.ledger.queue.renew():
            log.warning("%d items were taken over by other runs: this one was silent too long", len(lost))
        await self._request_budget()

    async def begin(self, runner: ItemRunner) -> None:
        """Wait until the others have reduced their rates for this run's calls, or a stop is requested."""
        self._runner, self._sharing = runner, ASKING
        with contextlib.suppress(LeaseLost):
            await self._beat()
        while not self._has_room.is_set() and not self.stop.asked:
            room = asyncio.create_task(self._has_room.wait())
            stop = asyncio.create_task(self.stop.soft.wait())
            await asyncio.wait({room, stop}, return_when=asyncio.FIRST_COMPLETED)
            room.cancel()
            stop.cancel()

    async def _request_budget(self) -> None:
        """Request a share of the cost limit of all runs together, to spend until the next heartbeat."""
        if self._runner is None or (cap := self._runner.context.spec.max_total_cost) is None:
            return
        pool: Pool = self._runner.context.pool
        context = self._runner.context
        unrecorded_usd = worst_unknown_usd(tuple(context.targets.values()), context.spec)
        used = pool.spending.spent + pool.spending.reserved
        # Nothing is reserved during the request: others may get what this run does not use.
        pool.spending.spent_before = cap - used
        pool.awaits_budget = True
        allowed = await self.ledger.workers.allowance(cap, used, unrecorded_usd)
        # What others have spent or may spend counts as spent before.
        pool.spending.spent_before = cap - allowed
        pool.awaits_budget = False
        pool.serve()
