"""A run whose calls are made by workers: it starts them, follows the ledger, and ends when they do.

The ledger is the truth here too: it counts items, calls and costs, whichever worker sent them, so that nothing is
lost with a worker that is killed. The backend that starts workers only says which of them live.

    all items ended             the run ends as any other
    every worker ended, items   the run ends for the reason of the workers; without one: internal error
    are left
    a stop was requested        workers let calls in flight end; workers that have not begun never will
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from audiobatch.errors import ConfigError, ExitCode, StorageError
from audiobatch.execution.worker import WorkerParams, request_stop
from audiobatch.ledger.queue_totals import Counts
from audiobatch.model import Status
from audiobatch.stop import StopReason, most_severe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from audiobatch.execution.job import Job
    from audiobatch.ledger.queue_totals import QueueTotals

log = logging.getLogger(__name__)

LOOK_S = 1.0
#: The ledger is asked for at most this part of the time.
_PART = 20
#: No worker has begun for so long: a person may have to do something.
_HINT_AFTER_S = 20.0
#: What a worker may take to end once there is nothing left to do.
ENDING_S = 60.0
#: … beyond the time that its calls in flight may take, once a stop was requested.
STOPPING_S = 45.0
#: Ends of a worker that a person has to know of, and not only the run's.
TELLING = frozenset({ExitCode.INTERNAL, ExitCode.USAGE, ExitCode.NO_DEPLOYMENT})


class Phase(StrEnum):
    """A worker's life."""

    WAITING = "waiting"
    WORKING = "working"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker, as its backend sees it.

    Attributes:
        trouble: why it ended, where that was not its own doing: it could not begin, or was killed.
    """

    name: str
    phase: Phase
    trouble: str = ""


class WorkerBackend(Protocol):
    """Starts workers: on this machine, in a work pool, on a cluster."""

    @property
    def hint(self) -> str:
        """What a person may have to do where no worker begins."""

    async def start(self, params: WorkerParams, count: int) -> None:
        """Start `count` workers, now or when there is room for them.

        Raises:
            ConfigError: they cannot be started.
        """

    async def look(self) -> Sequence[WorkerStatus]:
        """Return the workers as they are now."""

    async def dismiss(self, *, by_force: bool) -> None:
        """Cancel the workers that have not begun; by force: end those that work, too."""

    async def close(self) -> None:
        """Release whatever was opened."""


@dataclass(slots=True, eq=False)
class Coordinator:
    """One run's workers, from their start to their end."""

    job: Job
    backend: WorkerBackend
    count: int
    _before: Counts = field(default_factory=Counts)
    _told: str = ""

    async def work(self) -> None:
        """Start the workers and follow them until nothing is left, none works, or the run's stop is done.

        Raises:
            ConfigError: no worker could be started, or none could begin.
        """
        job, backend = self.job, self.backend
        queue = job.context.ledger.queue
        account = queue.totals(job.context.queue_id)
        self._before = await asyncio.to_thread(account.counts)
        sums_before = await asyncio.to_thread(account.sums)
        job.stats.cost_is_known = all(target.price is not None for target in job.context.targets)
        try:
            await backend.start(WorkerParams(job=job.spec, for_run=job.run_id), self.count)
            await self._follow(account)
        finally:
            await _logging_failure("the workers could not be closed", backend.close())
        with contextlib.suppress(StorageError):
            self._show(await asyncio.to_thread(account.counts))
            sums = await asyncio.to_thread(account.sums)
            stats = job.stats
            stats.sent = await asyncio.to_thread(account.sent_for, job.run_id)
            stats.input_audio_s = sums.input_audio_s - sums_before.input_audio_s
            stats.output_audio_s = sums.output_audio_s - sums_before.output_audio_s
            stats.trimmed_s = sums.trimmed_s - sums_before.trimmed_s
            stats.input_text_tokens = sums.input_tokens - sums_before.input_tokens
            stats.estimated = sums.estimated - sums_before.estimated
            stats.cost_usd += sums.estimated_usd - sums_before.estimated_usd
            stats.output_text_tokens = sums.output_tokens - sums_before.output_tokens
            job.left = (await asyncio.to_thread(queue.state)).left
        job.workers.in_flight, job.workers.waiting = 0, ""

    async def _follow(self, account: QueueTotals) -> None:
        job, loop = self.job, asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            look_s = loop.time()
            try:
                left = (await asyncio.to_thread(job.context.ledger.queue.state)).left
                self._show(await asyncio.to_thread(account.counts))
            except StorageError as failed:
                job.stop.ask(StopReason.STORAGE, failed.message)
                left = 0
            asked_s = loop.time() - look_s
            workers = await self._workers()
            if job.stop.asked:
                await self._stop()
                return
            if not left:
                await self._wait_for_end(ENDING_S)
                return
            if all(worker.phase is Phase.ENDED for worker in workers) and not self._other_runs():
                await self._give_up(account, workers)
                return
            self._explain(workers, loop.time() - began_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.stop.soft.wait(), max(LOOK_S, _PART * asked_s))

    async def _workers(self) -> Sequence[WorkerStatus]:
        try:
            workers = await self.backend.look()
        except ConfigError:
            raise
        except Exception as failed:  # noqa: BLE001 - the backend is another program, and may be away
            log.warning("the workers cannot be seen: %r", failed)
            return [WorkerStatus(name="?", phase=Phase.WORKING)]
        for worker in workers:
            if worker.trouble and (text := f"{worker.name}: {worker.trouble}") not in self.job.warnings:
                self.job.warn(text)
        return workers

    def _other_runs(self) -> bool:
        """Return whether runs are at work here that this one did not start."""
        membership = self.job.membership
        mine = f"{self.job.run_id}."
        return membership is not None and any(not name.startswith(mine) for name in membership.names)

    def _show(self, now: Counts) -> None:
        """Bring the run's counts up to date."""
        job, before = self.job, self._before
        stats = job.stats
        for status, count in (
            (Status.SUCCEEDED, now.succeeded - before.succeeded - stats.succeeded),
            (Status.FAILED, now.failed - before.failed - stats.failed),
            (Status.UNKNOWN, now.unknown - before.unknown - stats.unknown),
        ):
            for _ in range(count):
                stats.item_ended(status)
        stats.cost_usd = now.cost_usd - before.cost_usd
        job.workers.in_flight = now.in_flight

    def _explain(self, workers: Sequence[WorkerStatus], waited_s: float) -> None:
        begun = [worker for worker in workers if worker.phase is not Phase.WAITING]
        if len(begun) == len(workers):
            self.job.workers.waiting = ""
            return
        self.job.workers.waiting = f"{len(workers) - len(begun)} of {len(workers)} workers to begin"
        if not begun and waited_s > _HINT_AFTER_S and not self._told:
            self._told = self.backend.hint
            self.job.warn(f"no worker has begun in {waited_s:.0f} s. {self._told}")

    async def _wait_for_end(self, patience_s: float, *, until_hard: bool = False) -> bool:
        """Wait until no worker works any more, and cancel those that have not begun."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + patience_s
        await _logging_failure("the workers could not be told to stop", self.backend.dismiss(by_force=False))
        while any(worker.phase is Phase.WORKING for worker in await self._workers()):
            if loop.time() > end_s or (until_hard and self.job.stop.hard.is_set()):
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def _stop(self) -> None:
        job = self.job
        with contextlib.suppress(StorageError):
            await asyncio.to_thread(request_stop, job.context.ledger, job.run_id)
        if await self._wait_for_end(job.spec.drain_timeout_s + STOPPING_S, until_hard=True):
            return
        with contextlib.suppress(StorageError):
            await asyncio.to_thread(request_stop, job.context.ledger, job.run_id, now=True)
        if await self._wait_for_end(STOPPING_S):
            return
        await _logging_failure("the workers could not be stopped", self.backend.dismiss(by_force=True))
        if not await self._wait_for_end(STOPPING_S):
            job.warn(
                "some workers do not end; they send nothing more than they hold, and the ledger knows it"
            )

    async def _give_up(self, account: QueueTotals, workers: Sequence[WorkerStatus]) -> None:
        """Stop the run for the reason that its workers ended for: every one has ended, and items are left."""
        ends = await asyncio.to_thread(account.summaries_of, self.job.run_id)
        trouble = next((worker.trouble for worker in workers if worker.trouble), "")
        if not ends:
            raise ConfigError(f"no worker could begin: {trouble or 'they ended without a word'}")
        reason, detail = _why(ends)
        self.job.stop.ask(
            reason,
            detail
            or f"every worker ended before the work did ({trouble or 'killed'}); the same command goes on",
        )


def _why(ends: Sequence[dict[str, Any] | None]) -> tuple[StopReason, str]:
    stopped = {
        StopReason(end["stopped_by"]): str(end.get("message", ""))
        for end in ends
        if end and end["stopped_by"]
    }
    reason = most_severe(stopped)
    return (StopReason.INTERNAL, "") if reason is None else (reason, stopped[reason])


async def _logging_failure(what: str, work: Awaitable[None]) -> None:
    """Await work whose failure must not end the run, and log the failure."""
    try:
        await work
    except Exception:
        log.warning(what, exc_info=True)
