"""One run on one output folder: opened, prepared, its shards run, finished.

Inputs, plan, calls and reports are brought together here. It knows nothing of Prefect: `run` below does a whole
job with plain asyncio, and the flows call the same steps.

    async with Job.open(spec) as job:       lock, ledger, what a killed run left
        plan = await job.prepare()          find inputs, probe them, plan; then open the deployments
        for shard in plan.shards:
            await job.run_shard(shard)      may be at once: one pool serves them all
        summary = await job.finish()        manifest, this run's own list, the summary

Below the class are the steps in the order in which a run takes them: its summary, its inputs, what goes on beside
its calls (the watch for a stop, the manifest kept fresh), and its items, worked through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch import descriptors
from audiobatch.calls.stats import RunStats, RunSummary, Snapshot
from audiobatch.config import settings
from audiobatch.config.jobspec import KNOWN_VOICES
from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, price_of
from audiobatch.config.targets import check_prices, targets_of
from audiobatch.errors import ExitCode, StorageError
from audiobatch.execution.adoption import adopt, check_places, set_strange_files_aside
from audiobatch.execution.claims import Claims
from audiobatch.execution.finishing import finish_kept
from audiobatch.execution.membership import Membership, this_worker
from audiobatch.execution.opening import opened_folder
from audiobatch.execution.wiring import RunContext, import_ahead, open_runner
from audiobatch.inputs.discover import Discovery
from audiobatch.ledger.job_file import write_job_file
from audiobatch.ledger.spool_replay import replay
from audiobatch.ledger.trust import trust
from audiobatch.limits.pool import Stopping
from audiobatch.model import Status
from audiobatch.planning.disk_space import check_room, give_back, reserve, reserve_for_calls
from audiobatch.planning.items import job_settings
from audiobatch.planning.plan import EMPTY_PLAN, deployments_noted, make_plan, settings_key
from audiobatch.planning.review_rules import marked
from audiobatch.reports.totals import Reason, reasons
from audiobatch.reports.views import Views
from audiobatch.stop import EXIT_CODES, Stop, StopReason
from audiobatch.storage.versions import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
    from pathlib import Path

    from audiobatch.address import Place
    from audiobatch.calls.item import ItemRunner
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger, Recorded
    from audiobatch.planning.plan import Plan, Retry, Shard
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

    Feeding = Callable[[], Awaitable[Recorded | None]]

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
    membership: Membership | None = None
    waiting: str = ""
    left: int | None = None
    phase: str = "discovering"
    warnings: list[str] = field(default_factory=list)
    stats: RunStats = field(default_factory=RunStats)
    found: int = 0
    plan: Plan | None = None
    _runner: ItemRunner | None = None
    _feed: Claims | None = None
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
                    job.membership = Membership(
                        ledger=job.ledger, stop=job.stop, lease_s=spec.lease_s, sends=sends
                    )
                    job._begin_background(job.membership.keep())
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
            self._runner = await open_runner(self._context(), plan.deployments, self._stack)
        self._begin_background(watch_stop(self, self._runner), keep_manifest_fresh(self))
        if self._runner is not None:
            self._begin_background(keep_room(self, self._runner))
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
        self.stats.finished += finished
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
        if self._runner is None:
            return
        self.stats = self._runner.context.stats
        self._feed = Claims(self._runner, self.retry)
        if self.membership is not None:
            await self.membership.begin(self._runner)

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
        if self.stop.asked or self._runner is None or self._feed is None:
            return ShardResult(number=shard.number, sent=0, succeeded=0, failed=0, unknown=0)
        items = partial(self._feed.next, shard.first_position, shard.last_position)
        workers = min(shard.size, self.spec.concurrency_ceiling)
        ends = await work_through(self._runner, items, at_once=workers)
        return ShardResult(
            number=shard.number,
            sent=len(ends),
            succeeded=ends.count(Status.SUCCEEDED),
            failed=ends.count(Status.FAILED),
            unknown=ends.count(Status.UNKNOWN),
        )

    def _context(self) -> RunContext:
        return RunContext(
            spec=self.spec,
            run_id=self.run_id,
            queue_id=self.queue_id,
            output=self.output,
            ledger=self.ledger,
            storage=self.storage,
            spool=self.spool,
            stop=self.stop,
            retry=self.retry,
            finished=self.stats.finished,
            warn=self.warn,
        )

    async def drain(self) -> RunSummary:
        """Send what is left on a shared queue, beside others, until nobody holds anything; no reports."""
        deployments = await asyncio.to_thread(deployments_noted, self.ledger)
        self.plan = replace(EMPTY_PLAN, deployments=deployments)
        self.phase = "sending"
        self._runner = await open_runner(self._context(), deployments, self._stack)
        self._begin_background(watch_stop(self, self._runner), keep_room(self, self._runner))
        await self._begin_sending()
        await self._end_sending()
        await self._end_background()
        return await self._close_books("")

    async def _end_sending(self) -> None:
        """Send deferred items and, on a shared ledger, what other runs leave; then give back all that is held."""
        if self._runner is None or self._feed is None:
            if not (self.sends or self.stop.asked):
                await asyncio.to_thread(self._tidy_up)
            return
        await send_deferred(self._runner)
        if self.membership is not None:
            await wait_for_others(self, self._feed)
            if not self.stop.asked:
                await asyncio.to_thread(self._tidy_up)
        await self._feed.close()
        if self.membership is not None and StopReason.STORAGE not in self.stop.reasons:
            with contextlib.suppress(StorageError):
                self.left = (await asyncio.to_thread(self.ledger.queue.state)).left

    def _tidy_up(self) -> None:
        """Nothing is held by anybody: replies that came too late are kept, and what killed runs left is swept."""
        try:
            with self.ledger.one_at_a_time():
                brought = replay(self.spool, self.storage, self.ledger)
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
        stats, plan = self.stats, self.plan
        rate = stats.rate_per_min()
        left = plan.to_send - stats.ended if plan else 0
        pool = self._runner.context.pool if self._runner else None
        phase = "draining" if self.stop.asked and self.phase == "sending" else self.phase
        return Snapshot(
            phase=phase,
            total=plan.to_send if plan else self.found,
            done=stats.succeeded,
            failed=stats.failed,
            refused=plan.refused if plan else 0,
            unknown=stats.unknown,
            in_flight=pool.in_flight if pool else self.in_flight_elsewhere,
            rate_per_min=rate,
            eta_s=left / rate * 60 if rate and left else None,
            cost_usd=stats.cost_usd if stats.cost_is_known else None,
            waiting=self.ledger.trouble or self.waiting or (pool.binding() if pool else ""),
            projected_usd=stats.projected_usd(plan.to_send) if plan else None,
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


def summary_of(job: Job, trouble: str) -> RunSummary:
    """The summary of a run whose plan was made; `trouble`: what went wrong at its very end."""
    plan, stats = job.plan, job.stats
    assert plan is not None
    left = plan.to_send - stats.ended if job.left is None else job.left
    trouble = "" if trouble in job.stop.detail else trouble
    return RunSummary(
        run_id=job.run_id,
        output=job.output,
        manifest=job.output / job.views.manifest.name,
        exit_code=_exit_code(job, plan),
        items=plan.items,
        sent=stats.sent,
        succeeded=stats.succeeded,
        failed=stats.failed,
        refused=plan.refused,
        unknown=stats.unknown,
        pending=left + plan.held_back + plan.unfinished + (stats.unfinished if job.left is not None else 0),
        finished=stats.finished,
        skipped_done=plan.done,
        cost_usd=stats.cost_usd if stats.cost_is_known else None,
        input_audio_s=stats.input_audio_s,
        output_audio_s=stats.output_audio_s,
        elapsed_s=(datetime.now(UTC) - job.started).total_seconds(),
        stopped_by=job.stop.reason.value if job.stop.reason else None,
        input_tokens=stats.input_text_tokens + stats.input_audio_tokens,
        output_tokens=stats.output_text_tokens + stats.output_audio_tokens,
        by_deployment=dict(stats.by_deployment),
        message=" ".join(part for part in (job.stop.detail, trouble, _what_is_left(job, plan)) if part),
    )


def _exit_code(job: Job, plan: Plan) -> ExitCode:
    if job.stop.reason is not None:
        return EXIT_CODES[job.stop.reason]
    bad = job.stats.failed + job.stats.unknown + plan.refused
    return ExitCode.PARTIAL if bad else ExitCode.DONE


def _what_is_left(job: Job, plan: Plan) -> str:
    parts = []
    if job.stats.estimated:
        parts.append(
            f"{job.stats.estimated} replies came without token counts: their cost is estimated, and cost limits "
            "count their worst case."
        )
    if plan.final:
        parts.append(f"{plan.final} items failed for good earlier; `audiobatch retry` sends them again.")
    if plan.unfinished and not job.stop.reasons:
        parts.append(f"{plan.unfinished} replies are paid for and not finished; the next run tries again.")
    if plan.unknown:
        parts.append(f"{plan.unknown} items have an unknown end; `audiobatch retry` sends them again.")
    if plan.approved:
        parts.append(
            f"{plan.approved} approved results were left as they are; --redo --force makes them again."
        )
    if plan.rejected:
        parts.append(f"{plan.rejected} items are marked reject and were not sent.")
    if plan.held_back:
        parts.append(f"{plan.held_back} items were held back by --limit; run again for them.")
    if unheard := job.stats.unheard:
        parts.append(f"The words of {unheard} results could not be written down; run again for them.")
    if left_out_s := job.stats.trimmed_s:
        parts.append(f"{left_out_s:,.0f} s of silence were not sent{worth(job.spec, left_out_s)}.")
    return " ".join(parts)


def worth(spec: JobSpec, audio_s: float) -> str:
    """What sending so much sound would have cost, in words; empty where the price is not known."""
    price = price_of(spec.model, spec.provider, prices=spec.prices)
    if price is None:
        return ""
    return f", ${price.audio_in * round(audio_s * AUDIO_IN_TOKENS_PER_S) / 1_000_000:.4f} of input"


#: Inputs that are written to the ledger together.
_SOURCES_AT_ONCE = 500


def find_inputs(job: Job) -> None:
    """Every input of the job into its ledger, until a stop is asked for. Blocks.

    Raises:
        ConfigError: there is nothing to work on.
    """
    if job.retry is not None and "-" in job.spec.inputs:
        # Standard input came once; what it brought is in the ledger.
        job.ledger.see_all(job.queue_id)
        return
    if not job.ledger.count_outcomes():
        import_ahead()  # a first run will send
    stdin = sys.stdin.buffer if "-" in job.spec.inputs else None
    discovery = Discovery(job.spec, job.ledger.known_files(), stdin, job.is_arriving)
    batch = []
    noted = 0
    for source in discovery.sources():
        batch.append(source)
        if source.media is not None and source.media.notes:
            noted += 1
            log.info("%s: %s", source.item_id, "; ".join(source.media.notes))
        job.found += 1
        if len(batch) >= _SOURCES_AT_ONCE:
            job.ledger.put_sources(batch, job.queue_id)
            batch = []
        if job.stop.asked:
            break
    job.ledger.put_sources(batch, job.queue_id)
    if not job.stop.asked:
        job.ledger.forget_missing_inputs(job.queue_id)
    if noted:
        job.warn(
            f"{noted} recordings are not what they seem (such as a wrong ending); the run's log says how"
        )
    if discovery.stats.left_out:
        log.info("%d files were left out by --include and --exclude", discovery.stats.left_out)
    if discovery.stats.other_files:
        log.info("%d files with other endings were left aside", discovery.stats.other_files)
    if discovery.stats.skipped_links:
        job.warn(f"{discovery.stats.skipped_links} symbolic links were not followed")


ROOM_EVERY_S = 1.0


async def watch_stop(job: Job, runner: ItemRunner | None) -> None:
    """When a stop is asked for: let nobody call any more, then give calls in flight their time."""
    stop_time = job.spec.stop_time(datetime.now().astimezone())
    if stop_time is None:
        await job.stop.soft.wait()
    else:
        left_s = (stop_time - datetime.now().astimezone()).total_seconds()
        try:
            await asyncio.wait_for(job.stop.soft.wait(), left_s)
        except TimeoutError:
            job.stop.ask(StopReason.STOP_AT, f"--stop-at {job.spec.stop_at}")
    if runner is None:
        return
    runner.context.pool.stop()
    await job.stop.hurried.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(job.stop.hard.wait(), job.spec.drain_timeout_s)
    runner.context.give_up()
    job.ledger.hurry()


async def keep_room(job: Job, runner: ItemRunner) -> None:
    """See that the room set aside covers the calls in flight, however many they become."""
    while True:
        await asyncio.sleep(ROOM_EVERY_S)
        calls, reply_s = runner.context.pool.in_flight, runner.context.sizes.audio_s
        try:
            await asyncio.to_thread(reserve_for_calls, job.spec, job.spool, calls=calls, reply_s=reply_s)
        except StorageError as failed:
            job.warn(f"not all replies in flight have room set aside: {failed.message}")
            return


async def keep_manifest_fresh(job: Job) -> None:
    """Rewrite the manifest while the run goes on, spending at most a twentieth of the time on it."""
    loop = asyncio.get_running_loop()
    pause_s = Views.FRESH_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        began_s = loop.time()
        try:
            for note in await asyncio.to_thread(job.views.write_manifest):
                if note not in job.warnings:
                    job.warn(note)
        except StorageError as failed:
            log.warning("manifest not refreshed: %s", failed.message)
        pause_s = max(Views.FRESH_EVERY_S, 20 * (loop.time() - began_s))


#: How often a run that has nothing left looks whether others have set something free.
_LOOK_S = 1.0


async def work_through(runner: ItemRunner, queue: Feeding, *, at_once: int) -> list[Status | None]:
    """Everything that the queue gives, until a stop is asked for; what became of each item.

    Args:
        runner: what all workers share.
        queue: the next item each time; None: there is none left.
        at_once: workers.
    """
    ends: list[Status | None] = []

    async def work() -> None:
        while True:
            # The place first, then the item: what waits for a place is anybody's yet.
            async with runner.context.gate.entered():
                if runner.context.stop.asked:
                    return
                try:
                    one = await queue()
                except StorageError as failed:
                    runner.context.stop.ask(StopReason.STORAGE, failed.message)
                    return
                if one is None:
                    return
                ends.append(await runner.run(one))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return ends


async def wait_for_others(job: Job, feed: Claims) -> None:
    """The end of a shared queue: what others set free or let lie is sent, until nobody holds anything."""
    runner, told = feed.runner, ""
    while not job.stop.asked:
        await work_through(runner, feed.next_of_rest, at_once=job.spec.concurrency_ceiling)
        await send_deferred(runner)
        try:
            state = await asyncio.to_thread(job.ledger.queue.state)
        except StorageError as failed:
            job.stop.ask(StopReason.STORAGE, failed.message)
            break
        if not state.left or job.stop.asked:
            break
        who = ", ".join(job.membership.names.get(one, one) for one in state.holders) if job.membership else ""
        if state.held and who != told:
            job.warn(f"waiting for {state.held:,} items that other runs hold: {who}")
            told = who
        job.waiting = f"{state.held:,} items that other runs hold"
        if not state.held:
            job.waiting = f"{state.overdue:,} items of runs that fell silent: their replies may yet come"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.stop.soft.wait(), _LOOK_S)
    job.waiting = ""


async def send_deferred(runner: ItemRunner) -> None:
    """Send the items that were deferred, after the queue, as fast as the budget of retries refills."""
    if not runner.deferred:
        return
    log.info("%d items were deferred; they go now", len(runner.deferred))
    runner.is_last_pass = True

    async def work() -> None:
        while runner.deferred and not runner.context.stop.asked:
            recorded = runner.deferred.popleft()
            async with runner.context.gate.entered():
                try:
                    await runner.context.back_off(runner.context.feedback.budget.room_in_s())
                except Stopping:
                    return
                await runner.run(recorded)

    workers = min(len(runner.deferred), runner.context.spec.concurrency_ceiling)
    await asyncio.gather(*(work() for _ in range(workers)))
