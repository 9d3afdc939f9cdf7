"""One run on one output folder: opened, prepared, its shards run, finished.

Inputs, plan, calls and reports meet here. `run` below does a whole job with plain asyncio; flows call the same
steps.

    async with Job.open(spec) as job:       lock, ledger, what a killed run left
        plan = await job.prepare()          find inputs, probe them, plan; then open the deployments
        for shard in plan.shards:
            await job.run_shard(shard)      may be at once: one pool serves them all
        summary = await job.finish()        manifest, this run's own list, the summary

`Job` is a run's state and its steps, in the order in which a run takes them. Its summary is made below the class.
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
from audiobatch.config.targets import check_prices, targets_of, transcription_targets
from audiobatch.errors import ExitCode, StorageError
from audiobatch.execution.adoption import adopt, check_result_paths, move_strange_files
from audiobatch.execution.claims import Claims
from audiobatch.execution.finishing import finish_unfinished
from audiobatch.execution.membership import Membership, this_worker
from audiobatch.execution.opening import opened_folder
from audiobatch.execution.run_context import RunContext
from audiobatch.execution.wiring import import_ahead, open_runner
from audiobatch.inputs.discover import Discovery
from audiobatch.ledger.job_file import write_job_file
from audiobatch.ledger.spool_replay import replay
from audiobatch.ledger.trust import trust
from audiobatch.model import Status
from audiobatch.planning.disk_space import check_free_space, release_reserve, reserve, reserve_for_calls
from audiobatch.planning.items import job_settings
from audiobatch.planning.plan import EMPTY_PLAN, deployments_noted, make_plan, settings_key
from audiobatch.planning.review_rules import count_marked
from audiobatch.reports.totals import Reason, reasons
from audiobatch.reports.views import Views
from audiobatch.stop import EXIT_CODES, Stop, StopReason
from audiobatch.storage.versions import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
    from pathlib import Path

    from audiobatch.address import Location
    from audiobatch.calls.item import ItemRunner
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.recording_files import DiscoveryStats
    from audiobatch.planning.plan import Plan, Retry, Shard

__all__ = ["Job", "RunSummary", "ShardResult", "Snapshot", "run", "run_shards"]
log = logging.getLogger(__name__)

#: Inputs that are written to the ledger together.
_SOURCES_AT_ONCE = 500
#: How often the disk space that is reserved for calls in flight is checked.
_ROOM_EVERY_S = 1.0
#: How often a run that has nothing left looks whether others have released something.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """How a shard's items ended."""

    number: int
    sent: int
    succeeded: int
    failed: int
    unknown: int


@dataclass(slots=True)
class WorkersProgress:
    """What is known of the workers that make a run's calls in its place; their coordinator keeps it up to date.

    Attributes:
        in_flight: their calls.
        waiting: why they do not call, in a sentence; empty while they do.
    """

    in_flight: int = 0
    waiting: str = ""


@dataclass(eq=False)
class Job:
    """One run. Made by `Job.open`.

    Attributes:
        context: what the run was given.
        is_arriving: says of an input file that it is still being written; set before `prepare`.
        membership: this run among the others of a shared ledger; None on a ledger of its own.
        workers: of a run that does not make its calls itself.
        waiting: why nothing is sent, in a sentence; empty while something is.
        left: items that were not sent; None while the counts say it.
        found: inputs that discovery saw so far.
    """

    context: RunContext
    views: Views
    is_arriving: Callable[[Path], bool] | None = None
    membership: Membership | None = None
    workers: WorkersProgress = field(default_factory=WorkersProgress)
    waiting: str = ""
    left: int | None = None
    phase: str = "discovering"
    warnings: list[str] = field(default_factory=list)
    stats: RunStats = field(default_factory=RunStats)
    found: int = 0
    plan: Plan | None = None
    _runner: ItemRunner | None = None
    _claims: Claims | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _background: list[asyncio.Task[None]] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def spec(self) -> JobSpec:
        """The job, as it was given."""
        return self.context.spec

    @property
    def run_id(self) -> str:
        """The run's name in the ledger and in `runs/`."""
        return self.context.run_id

    @property
    def output(self) -> Location:
        """The output folder, or the address of one in an object store."""
        return self.context.output

    @property
    def stop(self) -> Stop:
        """Ask it to end the run."""
        return self.context.stop

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
        """Lock the output folder, and repair what a killed run left there.

        Args:
            spec: the job.
            run_id: made of the time and a random number by default.
            retry: send only what this selects.
            worker: find and plan nothing: only `drain` a shared queue that another run has filled.
            sends: False: find and plan, and leave the calls to workers.

        Raises:
            ConfigError: settings that cannot work; a folder that is in use, or cannot be written.
        """
        settings.check_service(spec)
        targets = targets_of(spec)
        targets = (*targets, *transcription_targets(spec, targets[0]))
        check_prices(spec, targets)
        descriptors.raise_limit()
        key = settings_key(spec)
        run_id = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        me = this_worker(spec, key, run_id, retry, drains=worker, sends=sends)
        with opened_folder(spec, me) as opened:
            context = RunContext(
                spec=spec,
                run_id=run_id,
                settings_key=key,
                targets=targets,
                retry=retry,
                sends=sends,
                queue_id=opened.joined.queue_id,
                output=opened.output,
                home=opened.home,
                ledger=opened.ledger,
                storage=opened.storage,
                spool=opened.spool,
                stop=Stop(),
            )
            job = cls(context=context, views=Views(opened.storage, opened.ledger, spec, run_id))
            job._warn_early(opened.joined.replayed, opened.joined.lost)
            opened.ledger.writer.begin_run(
                run_id,
                spec=spec.model_dump_json(),
                settings_key=key,
                settings_value=orjson.dumps(job_settings(spec)).decode(),
            )
            async with job._stack:
                if opened.ledger.is_shared:
                    job.membership = Membership(
                        ledger=opened.ledger, stop=job.stop, lease_s=spec.lease_s, sends=sends
                    )
                    # Without heartbeats other runs would take its items.
                    job._begin_background(job.membership.keep(), needed=True)
                yield job

    def _warn_early(self, replayed: int, lost: int) -> None:
        if replayed:
            self.warn(f"{replayed} replies that an earlier run could not write here were written now")
        if lost:
            self.warn(f"{lost} calls of an earlier run have an unknown end; they were perhaps billed")
        if self.spec.voice not in KNOWN_VOICES:
            self.warn(f"voice {self.spec.voice!r} is not among those documented: {', '.join(KNOWN_VOICES)}")
        own = [target for target in self.context.targets if not target.transcribes]
        for model in sorted({target.model for target in own if target.price is None}):
            self.warn(f"no price is known for model {model!r}; costs will be unknown")

    def warn(self, message: str) -> None:
        """Tell people something now: above the progress line, and in the run's log."""
        self.warnings.append(message)
        log.warning(message)

    async def prepare(self) -> Plan:
        """Find and probe the inputs, decide what to send, and open the deployments.

        Raises:
            ConfigError: nothing to work on, or settings that do not fit the inputs.
        """
        run = self.context
        await asyncio.to_thread(self._find_inputs)
        await asyncio.to_thread(self._match_with_folder)
        await asyncio.to_thread(self.views.check)
        await asyncio.to_thread(self._finish_unfinished)
        self.plan = plan = await asyncio.to_thread(
            make_plan, run.ledger, run.spec, run.queue_id, retry=run.retry
        )
        log.info(
            "%d inputs: %d to send, %d done, %d refused, %d failed for good, %d unknown, %d held back",
            *(plan.items, plan.to_send, plan.done, plan.refused, plan.final, plan.unknown, plan.held_back),
        )
        if plan.trimmed_s:
            log.info("%.0f s of silence will be left out%s", plan.trimmed_s, worth(run.spec, plan.trimmed_s))
        if run.retry and run.retry.reviews:
            await asyncio.to_thread(self._warn_of_marks_left, plan, run.retry.reviews)
        # Only now: settings that the plan refuses are not the folder's.
        await asyncio.to_thread(self._write_job)
        self.phase = "sending"
        if plan.to_send and run.sends:
            await asyncio.to_thread(self._reserve_space, plan)
            await self._open_runner(plan)
        self._begin_background(self._watch_stop(), needed=True)
        self._begin_background(self._refresh_manifest())
        await self._begin_sending()
        return plan

    def _find_inputs(self) -> None:
        """Record every input of the job in its ledger, until a stop is requested. Blocks.

        Raises:
            ConfigError: there is nothing to work on.
        """
        ledger, queue_id = self.context.ledger, self.context.queue_id
        if self.context.retry is not None and "-" in self.spec.inputs:
            # Standard input came once; the ledger has what it held.
            ledger.writer.mark_all_seen(queue_id)
            return
        if not ledger.reader.count_outcomes():
            import_ahead()  # a first run will send
        stdin = sys.stdin.buffer if "-" in self.spec.inputs else None
        discovery = Discovery(self.spec, ledger.reader.known_files(), stdin, self.is_arriving)
        batch = []
        noted = 0
        for source in discovery.sources():
            batch.append(source)
            if source.media is not None and source.media.notes:
                noted += 1
                log.info("%s: %s", source.item_id, "; ".join(source.media.notes))
            self.found += 1
            if len(batch) >= _SOURCES_AT_ONCE:
                ledger.writer.put_sources(batch, queue_id)
                batch = []
            if self.stop.asked:
                break
        ledger.writer.put_sources(batch, queue_id)
        if not self.stop.asked:
            ledger.writer.forget_missing_inputs(queue_id)
        if noted:
            self.warn(
                f"{noted} recordings are not what they seem (such as a wrong ending); the run's log says how"
            )
        self._tell_skipped(discovery.stats)

    def _tell_skipped(self, skipped: DiscoveryStats) -> None:
        """Log how many files discovery skipped, and warn of links."""
        if skipped.left_out:
            log.info("%d files were left out by --include and --exclude", skipped.left_out)
        if skipped.other_files:
            log.info("%d files with other endings were left aside", skipped.other_files)
        if skipped.skipped_links:
            self.warn(f"{skipped.skipped_links} symbolic links were not followed")

    def _match_with_folder(self) -> None:
        """Check that the ledger knows every result in the folder, or adopt those that it does not know.

        Raises:
            ConfigError: it does not know one, and the job does not adopt.
        """
        run = self.context
        if not run.spec.adopt:
            check_result_paths(run.storage, run.ledger, run.spec)
            return
        adopted = adopt(run.storage, run.ledger, run.spec, run.settings_key)
        moved = move_strange_files(run.storage, run.ledger, run.spec)
        self.warn(
            f"{adopted.taken} results were adopted; {len(adopted.left)} rows could not be, and are made again"
        )
        for reason in adopted.left:
            self.warn(f"not adopted: {reason}")
        if moved:
            self.warn(f"{moved} files that no list names were moved to {UNRECORDED}/")

    def _finish_unfinished(self) -> None:
        """Finish replies of earlier runs from their stored bodies; stop the run where one still cannot be."""
        run = self.context
        if not any(run.ledger.reader.unfinished()):
            return
        with run.ledger.exclusive() if run.ledger.is_shared else contextlib.nullcontext():
            finished, failed = finish_unfinished(run.ledger, run.storage, run.spec, run.targets)
        self.stats.finished += finished
        if finished:
            self.warn(f"{finished} replies that were paid for earlier were finished from their bodies")
        if failed is not None and not run.spec.redo:
            reason = StopReason.STORAGE if failed.is_disk_trouble else StopReason.UNFINISHED
            run.stop.ask(reason, failed.message)

    def _write_job(self) -> None:
        write_job_file(self.context.storage, self.spec)
        try:
            trust(self.context.storage, self.spec)
        except StorageError as failed:  # later commands on this folder ask once
            log.warning("not noted as a folder of this user's own: %s", failed.message)

    def _reserve_space(self, plan: Plan) -> None:
        run = self.context
        check_free_space(run.spec, run.output, items=plan.to_send, free_bytes=run.storage.free_bytes())
        if trouble := reserve(run.spec, run.spool, items=plan.to_send):
            self.warn(trouble)
        self._stack.callback(release_reserve, run.spool)

    def _warn_of_marks_left(self, plan: Plan, reviews: frozenset[str]) -> None:
        left = count_marked(self.context.ledger.reader.recorded(), reviews) - plan.to_send - plan.held_back
        if left > 0:
            self.warn(
                f"{left} marked items are not sent: they are refused, approved, or no longer among the inputs"
            )

    async def _open_runner(self, plan: Plan) -> None:
        """Open the deployments of the plan; the rate of items counts from here."""
        self.stats = RunStats(finished=self.stats.finished)
        self._runner = runner = await open_runner(
            self.context, plan.deployments, self._stack, stats=self.stats, warn=self.warn
        )
        self._claims = Claims(runner, self.context.retry)
        self._begin_background(self._reserve_for_calls(runner))

    async def _begin_sending(self) -> None:
        """Wait until the others on a shared ledger have reduced their rates for this run's calls."""
        if self._runner is not None and self.membership is not None:
            await self.membership.begin(self._runner)

    async def run_shard(self, shard: Shard) -> ShardResult:
        """Send a shard's items. Never raises for an item: its failure is a recorded outcome."""
        if self.stop.asked or self._runner is None or self._claims is None:
            return ShardResult(number=shard.number, sent=0, succeeded=0, failed=0, unknown=0)
        claim_next = partial(self._claims.next, shard.first_position, shard.last_position)
        workers = min(shard.size, self.spec.concurrency_ceiling)
        ends = await self._runner.run_queue(claim_next, at_once=workers)
        return ShardResult(
            number=shard.number,
            sent=len(ends),
            succeeded=ends.count(Status.SUCCEEDED),
            failed=ends.count(Status.FAILED),
            unknown=ends.count(Status.UNKNOWN),
        )

    async def drain(self) -> RunSummary:
        """Send what is left on a shared queue, beside other runs, until none holds an item; write no reports."""
        deployments = await asyncio.to_thread(deployments_noted, self.context.ledger)
        self.plan = replace(EMPTY_PLAN, deployments=deployments)
        self.phase = "sending"
        await self._open_runner(self.plan)
        self._begin_background(self._watch_stop(), needed=True)
        await self._begin_sending()
        await self._end_sending()
        await self._end_background()
        return await self._record_end("")

    async def _end_sending(self) -> None:
        """Send deferred items and, on a shared ledger, what other runs leave; then release every claim."""
        if self._runner is None or self._claims is None:
            if not (self.context.sends or self.stop.asked):
                await asyncio.to_thread(self._clean_up)
            return
        await self._runner.run_deferred()
        if self.membership is not None:
            await self._send_the_rest(self._runner, self._claims, self.membership)
            if not self.stop.asked:
                await asyncio.to_thread(self._clean_up)
        await self._claims.close()
        if self.membership is not None and StopReason.STORAGE not in self.stop.reasons:
            with contextlib.suppress(StorageError):
                self.left = (await asyncio.to_thread(self.context.ledger.queue.state)).left

    async def _send_the_rest(self, runner: ItemRunner, claims: Claims, membership: Membership) -> None:
        """Send what other runs release or leave, until no run holds an item."""
        queue, warned_of = self.context.ledger.queue, ""
        while not self.stop.asked:
            await runner.run_queue(claims.next_of_rest, at_once=self.spec.concurrency_ceiling)
            await runner.run_deferred()
            try:
                state = await asyncio.to_thread(queue.state)
            except StorageError as failed:
                self.stop.ask(StopReason.STORAGE, failed.message)
                break
            if not state.left or self.stop.asked:
                break
            holders = ", ".join(membership.names.get(run_id, run_id) for run_id in state.holders)
            if state.held and holders != warned_of:
                self.warn(f"waiting for {state.held:,} items that other runs hold: {holders}")
                warned_of = holders
            self.waiting = f"{state.held:,} items that other runs hold"
            if not state.held:
                self.waiting = f"{state.overdue:,} items of runs that fell silent: their replies may yet come"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.soft.wait(), _LOOK_S)
        self.waiting = ""

    def _clean_up(self) -> None:
        """Write replies that came too late as versions, and delete what killed runs left; no run holds an item."""
        run = self.context
        try:
            with run.ledger.exclusive():
                replayed = replay(run.spool, run.storage, run.ledger)
                # A run that died had two thirds of its lease left at least, so its files are older than half of
                # one; younger ones may be a live run's.
                run.storage.sweep_temporary(older_than_s=run.spec.lease_s / 2)
        except StorageError as failed:
            self.warn(failed.message)
            return
        if replayed:
            self.warn(
                f"{replayed} replies that came too late were stored among the versions of their results"
            )

    async def finish(self) -> RunSummary:
        """Write the reports, and record the run's end."""
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
        return await self._record_end(trouble)

    async def _record_end(self, trouble: str) -> RunSummary:
        summary = summary_of(self, trouble)
        log.info("ended: %s", orjson.dumps(summary.as_json()).decode())
        try:
            await asyncio.to_thread(
                self.context.ledger.writer.end_run,
                self.run_id,
                orjson.dumps({**summary.as_json(), "message": summary.message}).decode(),
            )
        except StorageError as failed:
            self.stop.ask(StopReason.STORAGE, failed.message)
            summary = summary_of(self, trouble)
        return summary

    def snapshot(self) -> Snapshot:
        """Return the run's counts and state at this moment."""
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
            in_flight=pool.in_flight if pool else self.workers.in_flight,
            rate_per_min=rate,
            eta_s=left / rate * 60 if rate and left else None,
            cost_usd=stats.cost_usd if stats.cost_is_known else None,
            waiting=self.context.ledger.outage.waiting_for
            or self.waiting
            or self.workers.waiting
            or (pool.binding() if pool else ""),
            projected_usd=stats.projected_usd(plan.to_send) if plan else None,
        )

    def table_rows(self, limit: int = 200) -> list[dict[str, str]]:
        """Return the run's first rows with a few columns, as text, for a short table."""
        return self.views.table_rows(limit)

    def reasons(self) -> list[Reason]:
        """Return why rows of this run have no result, the most frequent reason first. Blocks."""
        return reasons(self.context.ledger, self.spec, self.run_id)

    async def _watch_stop(self) -> None:
        """Wait for a stop: then let no call begin, and give up those in flight when their time is over."""
        stop_time = self.spec.stop_time(datetime.now().astimezone())
        if stop_time is None:
            await self.stop.soft.wait()
        else:
            left_s = (stop_time - datetime.now().astimezone()).total_seconds()
            try:
                await asyncio.wait_for(self.stop.soft.wait(), left_s)
            except TimeoutError:
                self.stop.ask(StopReason.STOP_AT, f"--stop-at {self.spec.stop_at}")
        if self._runner is None:
            return
        self._runner.context.pool.stop()
        await self.stop.hurried.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.hard.wait(), self.spec.drain_timeout_s)
        self._runner.context.give_up()
        self.context.ledger.outage.give_up()

    async def _reserve_for_calls(self, runner: ItemRunner) -> None:
        """Reserve disk space for the calls in flight, however many they become."""
        while True:
            await asyncio.sleep(_ROOM_EVERY_S)
            calls, reply_s = runner.context.pool.in_flight, runner.context.sizes.audio_s
            try:
                await asyncio.to_thread(
                    reserve_for_calls, self.spec, self.context.spool, calls=calls, reply_s=reply_s
                )
            except StorageError as failed:
                self.warn(f"not all replies in flight have room set aside: {failed.message}")
                return

    async def _refresh_manifest(self) -> None:
        """Rewrite the manifest while the run goes on, for at most a twentieth of the time."""
        loop = asyncio.get_running_loop()
        pause_s = Views.REFRESH_EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            began_s = loop.time()
            try:
                for note in await asyncio.to_thread(self.views.write_manifest):
                    if note not in self.warnings:
                        self.warn(note)
            except StorageError as failed:
                log.warning("manifest not refreshed: %s", failed.message)
            pause_s = max(Views.REFRESH_EVERY_S, 20 * (loop.time() - began_s))

    def _begin_background(self, *work: Coroutine[Any, Any, None], needed: bool = False) -> None:
        """Start tasks beside the calls; a run that needs one stops where that fails."""
        if not self._background:
            self._stack.push_async_callback(self._end_background)
        for step in work:
            task = asyncio.create_task(step)
            task.add_done_callback(partial(self._background_ended, needed=needed))
            self._background.append(task)

    def _background_ended(self, task: asyncio.Task[None], *, needed: bool) -> None:
        if task.cancelled() or (failed := task.exception()) is None:
            return
        log.error("a task beside the calls failed", exc_info=failed)
        if needed:
            self.stop.ask(StopReason.INTERNAL, repr(failed))

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background = []


async def run(spec: JobSpec, *, on_open: Callable[[Job], None] | None = None) -> RunSummary:
    """Run a whole job in this event loop.

    Args:
        spec: the job.
        on_open: called with the job as soon as it is open, to show progress or to stop it.

    Returns:
        How the run ended; failures of items are counted there, and not raised.

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
    """Run all shards, `at_once` at a time, so that enough calls stay in flight at a shard's end."""
    queue = iter(shards)

    async def work() -> None:
        for shard in queue:
            await job.run_shard(shard)

    await asyncio.gather(*(work() for _ in range(at_once)))


def summary_of(job: Job, trouble: str) -> RunSummary:
    """Make the summary of a run that has a plan; `trouble`: what went wrong at its very end."""
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
    if not_transcribed := job.stats.not_transcribed:
        parts.append(f"{not_transcribed} results could not be transcribed; run again for them.")
    if left_out_s := job.stats.trimmed_s:
        parts.append(f"{left_out_s:,.0f} s of silence were not sent{worth(job.spec, left_out_s)}.")
    return " ".join(parts)


def worth(spec: JobSpec, audio_s: float) -> str:
    """Say what sending so many seconds of audio would have cost; empty where the price is unknown."""
    price = price_of(spec.model, spec.provider, prices=spec.prices)
    if price is None:
        return ""
    return f", ${price.audio_in * round(audio_s * AUDIO_IN_TOKENS_PER_S) / 1_000_000:.4f} of input"
