"""One run on one output folder: opened, prepared, its shards run, finished.

Inputs, plan, senders and reports are brought together here. It knows nothing of Prefect: `run` below does a whole
job with plain asyncio, and the flows call the same steps.

    async with Job.open(spec) as job:       lock, ledger, what a killed run left
        plan = await job.prepare()          discover, probe, plan; then the deployments
        for shard in plan.shards:
            await job.run_shard(shard)      may be at once: one pool serves them all
        summary = await job.finish()        manifest, this run's own list, the summary
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch import descriptors
from audiobatch.calls.stats import RunSummary, Snapshot, Tally
from audiobatch.config import settings
from audiobatch.config.jobspec import KNOWN_VOICES
from audiobatch.config.targets import check_prices, targets_of
from audiobatch.errors import StorageError
from audiobatch.execution.adoption import adopt, check_places, set_strange_files_aside
from audiobatch.execution.claims import Feed
from audiobatch.execution.ending import summary_of, worth
from audiobatch.execution.finding import find_inputs
from audiobatch.execution.finishing import finish_kept
from audiobatch.execution.membership import Together, this_worker
from audiobatch.execution.opening import opened_folder
from audiobatch.execution.watching import keep_manifest_fresh, keep_room, watch_stop
from audiobatch.execution.wiring import open_sender
from audiobatch.execution.working import send_deferred, wait_for_others, work_through
from audiobatch.ledger.job_file import write_job_file
from audiobatch.ledger.spool_replay import bring_home
from audiobatch.ledger.trust import trust
from audiobatch.model import Status
from audiobatch.planning.disk_space import check_room, give_back, reserve
from audiobatch.planning.items import job_settings
from audiobatch.planning.plan import EMPTY_PLAN, deployments_noted, make_plan, settings_key
from audiobatch.planning.review_rules import marked
from audiobatch.reports.totals import Reason, reasons
from audiobatch.reports.views import Views
from audiobatch.stop import Stop, StopReason
from audiobatch.storage.versions import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
    from pathlib import Path

    from audiobatch.address import Place
    from audiobatch.calls.item import Sender
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.planning.plan import Plan, Retry, Shard
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

__all__ = ["Job", "RunSummary", "ShardResult", "Snapshot", "run", "run_shards"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What became of a shard's items."""

    number: int
    sent: int
    succeeded: int
    failed: int
    unknown: int


@dataclass(eq=False)
class Job:
    """One run. Made by `Job.open`.

    Attributes:
        home: the folder of this machine that is locked and holds the log: the output, if that is local.
        is_arriving: says of an input file that it is still being written; set before `prepare`.
        sends: calls are made here; else others make them, from the queue that this run fills.
        in_flight_elsewhere: calls of those others.
    """

    spec: JobSpec
    run_id: str
    output: Place
    home: Path
    stop: Stop
    ledger: Ledger
    storage: Storage
    views: Views
    targets: tuple[Target, ...]
    spool: Spool
    retry: Retry | None = None
    is_arriving: Callable[[Path], bool] | None = None
    queue_id: str = ""
    sends: bool = True
    in_flight_elsewhere: int = 0
    together: Together | None = None
    waiting: str = ""
    left: int | None = None
    phase: str = "discovering"
    warnings: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    found: int = 0
    plan: Plan | None = None
    _sender: Sender | None = None
    _feed: Feed | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _background: list[asyncio.Task[None]] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        spec: JobSpec,
        *,
        run_id: str | None = None,
        retry: Retry | None = None,
        worker: bool = False,
        sends: bool = True,
    ) -> AsyncIterator[Job]:
        """Take the output folder, and put right what a killed run left there.

        Args:
            spec: the job.
            run_id: made from the time and chance by default.
            retry: send only what this selects.
            worker: find and plan nothing: only `drain` a shared queue that another run has filled.
            sends: False: find and plan, and leave the calls to others.

        Raises:
            ConfigError: settings that cannot work; a folder that is in use, or cannot be written.
        """
        settings.check_service(spec)
        targets = targets_of(spec)
        check_prices(spec, targets)
        descriptors.raise_limit()
        run_id = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        me = this_worker(spec, run_id, retry, drains=worker, sends=sends)
        with opened_folder(spec, me) as found:
            job = cls(
                spec=spec,
                run_id=run_id,
                output=found.output,
                home=found.home,
                stop=Stop(),
                ledger=found.ledger,
                storage=found.storage,
                views=Views(found.storage, found.ledger, spec, run_id),
                targets=targets,
                spool=found.spool,
                retry=retry,
                queue_id=found.signed_on.queue_id,
                sends=sends,
            )
            job._warn_early(found.signed_on.brought, found.signed_on.lost)
            job.ledger.begin_run(
                run_id,
                spec=spec.model_dump_json(),
                settings_key=settings_key(spec),
                settings_value=orjson.dumps(job_settings(spec)).decode(),
            )
            async with job._stack:
                if job.ledger.is_shared:
                    job.together = Together(
                        ledger=job.ledger, stop=job.stop, lease_s=spec.lease_s, sends=sends
                    )
                    job._begin_background(job.together.keep())
                yield job

    def _warn_early(self, brought: int, lost: int) -> None:
        if brought:
            self.warn(f"{brought} replies that an earlier run could not write here were brought home")
        if lost:
            self.warn(f"{lost} calls of an earlier run have an unknown end; they were perhaps billed")
        if self.spec.voice not in KNOWN_VOICES:
            self.warn(f"voice {self.spec.voice!r} is not among those documented: {', '.join(KNOWN_VOICES)}")
        for model in sorted({one.model for one in self.targets if one.price is None}):
            self.warn(f"no price is known for model {model!r}; costs will be unknown")

    def warn(self, message: str) -> None:
        """Something a person should know now; shown above the progress line and kept in the run's log."""
        self.warnings.append(message)
        log.warning(message)

    async def prepare(self) -> Plan:
        """Find and probe the inputs, decide what to send, and make ready to send it.

        Raises:
            ConfigError: nothing to work on, or settings that do not fit what is there.
        """
        await asyncio.to_thread(find_inputs, self)
        await asyncio.to_thread(self._match_with_folder)
        await asyncio.to_thread(self.views.check)
        await asyncio.to_thread(self._finish_kept)
        self.plan = plan = await asyncio.to_thread(
            make_plan, self.ledger, self.spec, self.queue_id, retry=self.retry
        )
        log.info(
            "%d inputs: %d to send, %d done, %d refused, %d failed for good, %d unknown, %d held back",
            *(plan.items, plan.to_send, plan.done, plan.refused, plan.final, plan.unknown, plan.held_back),
        )
        if plan.trimmed_s:
            log.info("%.0f s of silence will be left out%s", plan.trimmed_s, worth(self.spec, plan.trimmed_s))
        if self.retry and self.retry.reviews:
            await asyncio.to_thread(self._warn_of_marks_left, plan, self.retry.reviews)
        # Only now: settings that the plan refuses are not the folder's.
        await asyncio.to_thread(self._write_job)
        self.phase = "sending"
        if plan.to_send and self.sends:
            await asyncio.to_thread(self._make_room, plan)
            self._sender = await open_sender(self, plan.deployments, self._stack)
        self._begin_background(watch_stop(self, self._sender), keep_manifest_fresh(self))
        if self._sender is not None:
            self._begin_background(keep_room(self, self._sender))
        await self._begin_sending()
        return plan

    def _match_with_folder(self) -> None:
        """What the folder holds, the ledger knows; or it is adopted. Raises: ConfigError: it does not."""
        if not self.spec.adopt:
            check_places(self.storage, self.ledger, self.spec)
            return
        found = adopt(self.storage, self.ledger, self.spec, settings_key(self.spec))
        aside = set_strange_files_aside(self.storage, self.ledger, self.spec)
        self.warn(
            f"{found.taken} results were adopted; {len(found.left)} rows could not be, and are made again"
        )
        for reason in found.left:
            self.warn(f"not adopted: {reason}")
        if aside:
            self.warn(f"{aside} files that no list vouches for were moved to {UNRECORDED}/")

    def _finish_kept(self) -> None:
        """Replies of earlier runs that are paid for and not finished; one that still cannot be stops this run."""
        if not any(self.ledger.unfinished()):
            return
        with self.ledger.one_at_a_time() if self.ledger.is_shared else contextlib.nullcontext():
            finished, failed = finish_kept(self.ledger, self.storage, self.spec, self.targets)
        self.tally.finished += finished
        if finished:
            self.warn(f"{finished} replies that were paid for earlier were finished from their bodies")
        if failed is not None and not self.spec.redo:
            reason = StopReason.STORAGE if failed.is_disk_trouble else StopReason.UNFINISHED
            self.stop.ask(reason, failed.message)

    def _write_job(self) -> None:
        write_job_file(self.storage, self.spec)
        try:
            trust(self.storage, self.spec)
        except StorageError as failed:  # later commands on this folder ask once
            log.warning("not noted as a folder of this user's own: %s", failed.message)

    async def _begin_sending(self) -> None:
        """Once the others on a shared ledger have made room for this run's calls."""
        if self._sender is None:
            return
        self.tally = self._sender.tally
        self._feed = Feed(self._sender, self.retry)
        if self.together is not None:
            await self.together.begin(self._sender)

    def _make_room(self, plan: Plan) -> None:
        check_room(self.spec, self.output, items=plan.to_send, free_bytes=self.storage.free_bytes())
        if trouble := reserve(self.spec, self.spool, items=plan.to_send):
            self.warn(trouble)
        self._stack.callback(give_back, self.spool)

    def _warn_of_marks_left(self, plan: Plan, reviews: frozenset[str]) -> None:
        left = marked(self.ledger.recorded(), reviews) - plan.to_send - plan.held_back
        if left > 0:
            self.warn(
                f"{left} marked items are not sent: they are refused, approved, or no longer among the inputs"
            )

    async def run_shard(self, shard: Shard) -> ShardResult:
        """Send a shard's items. Never raises for an item: its failure is a recorded outcome."""
        if self.stop.asked or self._sender is None or self._feed is None:
            return ShardResult(number=shard.number, sent=0, succeeded=0, failed=0, unknown=0)
        items = partial(self._feed.next, shard.first_position, shard.last_position)
        workers = min(shard.size, self.spec.concurrency_ceiling)
        ends = await work_through(self._sender, items, at_once=workers)
        return ShardResult(
            number=shard.number,
            sent=len(ends),
            succeeded=ends.count(Status.SUCCEEDED),
            failed=ends.count(Status.FAILED),
            unknown=ends.count(Status.UNKNOWN),
        )

    async def drain(self) -> RunSummary:
        """Send what is left on a shared queue, beside others, until nobody holds anything; no reports."""
        deployments = await asyncio.to_thread(deployments_noted, self.ledger)
        self.plan = replace(EMPTY_PLAN, deployments=deployments)
        self.phase = "sending"
        self._sender = await open_sender(self, deployments, self._stack)
        self._begin_background(watch_stop(self, self._sender), keep_room(self, self._sender))
        await self._begin_sending()
        await self._end_sending()
        await self._end_background()
        return await self._close_books("")

    async def _end_sending(self) -> None:
        """Send deferred items and, on a shared ledger, what other runs leave; then give back all that is held."""
        if self._sender is None or self._feed is None:
            if not (self.sends or self.stop.asked):
                await asyncio.to_thread(self._tidy_up)
            return
        await send_deferred(self._sender)
        if self.together is not None:
            await wait_for_others(self, self._feed)
            if not self.stop.asked:
                await asyncio.to_thread(self._tidy_up)
        await self._feed.close()
        if self.together is not None and StopReason.STORAGE not in self.stop.reasons:
            with contextlib.suppress(StorageError):
                self.left = (await asyncio.to_thread(self.ledger.queue.state)).left

    def _tidy_up(self) -> None:
        """Nothing is held by anybody: replies that came too late are kept, and what killed runs left is swept."""
        try:
            with self.ledger.one_at_a_time():
                brought = bring_home(self.spool, self.storage, self.ledger)
                # A run that died had two thirds of its lease left at least, so its files are older than half of
                # one; younger ones may be a live run's.
                self.storage.sweep_temporary(older_than_s=self.spec.lease_s / 2)
        except StorageError as failed:
            self.warn(failed.message)
            return
        if brought:
            self.warn(f"{brought} replies that came too late were kept among the versions of their results")

    async def finish(self) -> RunSummary:
        """Write the reports and close the run's books."""
        await self._end_sending()
        self.phase = "reporting"
        await self._end_background()
        trouble = ""
        try:
            notes = await asyncio.to_thread(self.views.write_all, drawing_s=Views.DRAWING_S)
            for note in notes:
                self.warn(note)
        except StorageError as failed:
            why = "" if StopReason.STORAGE in self.stop.reasons else f": {failed.message.rstrip('.')}"
            trouble = f"The reports could not be written{why}. `audiobatch report` writes them again."
            self.stop.ask(StopReason.STORAGE, trouble)
        return await self._close_books(trouble)

    async def _close_books(self, trouble: str) -> RunSummary:
        summary = summary_of(self, trouble)
        log.info("ended: %s", orjson.dumps(summary.as_json()).decode())
        try:
            await asyncio.to_thread(
                self.ledger.end_run,
                self.run_id,
                orjson.dumps({**summary.as_json(), "message": summary.message}).decode(),
            )
        except StorageError as failed:
            self.stop.ask(StopReason.STORAGE, failed.message)
            summary = summary_of(self, trouble)
        return summary

    def snapshot(self) -> Snapshot:
        """The run at this moment, for whoever shows it."""
        tally, plan = self.tally, self.plan
        rate = tally.rate_per_min()
        left = plan.to_send - tally.ended if plan else 0
        pool = self._sender.pool if self._sender else None
        phase = "draining" if self.stop.asked and self.phase == "sending" else self.phase
        return Snapshot(
            phase=phase,
            total=plan.to_send if plan else self.found,
            done=tally.succeeded,
            failed=tally.failed,
            refused=plan.refused if plan else 0,
            unknown=tally.unknown,
            in_flight=pool.in_flight if pool else self.in_flight_elsewhere,
            rate_per_min=rate,
            eta_s=left / rate * 60 if rate and left else None,
            cost_usd=tally.cost_usd if tally.cost_is_known else None,
            waiting=self.ledger.trouble or self.waiting or (pool.binding() if pool else ""),
            projected_usd=tally.projected_usd(plan.to_send) if plan else None,
        )

    def table_rows(self, limit: int = 200) -> list[dict[str, str]]:
        """The run's first rows, few columns, for a table in Prefect."""
        return self.views.table_rows(limit)

    def reasons(self) -> list[Reason]:
        """Why rows of this run have no result, the most usual reason first. Blocks."""
        return reasons(self.ledger, self.spec, self.run_id)

    def _begin_background(self, *work: Coroutine[Any, Any, None]) -> None:
        if not self._background:
            self._stack.push_async_callback(self._end_background)
        self._background += [asyncio.create_task(one) for one in work]

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background = []


async def run(spec: JobSpec, *, on_open: Callable[[Job], None] | None = None) -> RunSummary:
    """A whole job, without Prefect.

    Args:
        spec: the job.
        on_open: is given the job as soon as it is open, to show progress or to stop it.

    Raises:
        ConfigError: nothing was sent, because settings or inputs cannot work.
    """
    async with Job.open(spec) as job:
        if on_open is not None:
            on_open(job)
        plan = await job.prepare()
        await run_shards(job, plan.shards, plan.shards_at_once)
        return await job.finish()


async def run_shards(job: Job, shards: Iterable[Shard], at_once: int) -> None:
    """All shards, so many at a time that calls in flight never run short at a shard's end."""
    queue = iter(shards)

    async def work() -> None:
        for shard in queue:
            await job.run_shard(shard)

    await asyncio.gather(*(work() for _ in range(at_once)))
