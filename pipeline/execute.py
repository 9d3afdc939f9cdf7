"""One run on one output folder: opened, prepared, its shards run, finished.

The only place where limits, transports and store meet. It knows nothing of Prefect: `run` below does a whole
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
import os
import secrets
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline import settings
from pipeline.aftermath import Aftermath
from pipeline.discover import JOB_FILE, Discovery, output_name
from pipeline.errors import ConfigError, StorageError
from pipeline.items import job_settings
from pipeline.job_file import write_job_file
from pipeline.jobspec import KNOWN_VOICES
from pipeline.limits.gate import Gate
from pipeline.limits.pool import Stopping
from pipeline.limits.retry_budget import RetryBudget
from pipeline.local import local_service
from pipeline.model import Status
from pipeline.plan import make_plan, rules_of, settings_key
from pipeline.pooling import pool_of
from pipeline.prices import AUDIO_IN_TOKENS_PER_S, price_of
from pipeline.redo import marked
from pipeline.reports.views import Views
from pipeline.room import check_room, give_back, reserve
from pipeline.send import Sender
from pipeline.sound_settings import finish_of
from pipeline.stop import Stop, StopReason
from pipeline.store.durable import translating
from pipeline.store.homecoming import bring_home
from pipeline.store.ledger import Ledger
from pipeline.store.lock import FolderLock
from pipeline.store.recovery import recover
from pipeline.store.spool import Spool
from pipeline.store.storage import LocalStorage
from pipeline.tally import RunSummary, Snapshot, Tally
from pipeline.targets import check_prices, targets_of, word_targets
from pipeline.transports.auth import EntraTokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from pipeline.jobspec import JobSpec
    from pipeline.local import LocalService
    from pipeline.plan import Plan, Retry, Shard
    from pipeline.targets import Target
    from pipeline.transports.base import Transport

__all__ = ["Job", "RunSummary", "ShardResult", "Snapshot", "run", "run_shards"]

log = logging.getLogger(__name__)

#: Reasons to stop that leave calls in flight only `drain_timeout_s`: somebody waits for the process to end.
HURRIED = frozenset({StopReason.SIGINT, StopReason.SIGTERM, StopReason.CANCELLED})
_EXIT_CODES = {
    StopReason.INTERNAL: 1,
    StopReason.STORAGE: 2,
    StopReason.NO_DEPLOYMENT: 4,
    StopReason.MAX_COST: 6,
    StopReason.MAX_FAILURES: 6,
    StopReason.PARKED: 5,
    StopReason.STOP_AT: 5,
    StopReason.OUTAGE: 5,
    StopReason.SIGINT: 130,
    StopReason.SIGTERM: 143,
    StopReason.CANCELLED: 130,
}


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
    """One run. Made by `Job.open`."""

    spec: JobSpec
    run_id: str
    output: Path
    stop: Stop
    ledger: Ledger
    storage: LocalStorage
    views: Views
    targets: tuple[Target, ...]
    spool: Spool
    retry: Retry | None = None
    phase: str = "discovering"
    warnings: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    found: int = 0
    plan: Plan | None = None
    _sender: Sender | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _background: list[asyncio.Task[None]] = field(default_factory=list)
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, spec: JobSpec, *, run_id: str | None = None, retry: Retry | None = None
    ) -> AsyncIterator[Job]:
        """Take the output folder, and put right what a killed run left there.

        Args:
            spec: the job.
            run_id: made from the time and chance by default.
            retry: send only what this selects.

        Raises:
            ConfigError: settings that cannot work; a folder that is in use, or cannot be written.
        """
        settings.check_service(spec)
        targets = targets_of(spec)
        check_prices(spec, targets)
        output = _output_folder(spec)
        run_id = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        storage = LocalStorage(output)
        storage.refuse_file()
        async with contextlib.AsyncExitStack() as stack:
            # First of all: who does not get the folder writes nothing into it.
            stack.enter_context(FolderLock.acquire(output, run_id))
            storage.probe_writable()
            storage.sweep_temporary()
            ledger = Ledger.open(output / "ledger.db")
            stack.callback(ledger.close)
            stack.enter_context(_run_log(output, run_id))
            spool = Spool(output)
            brought = bring_home(spool, storage, ledger)
            lost = recover(ledger, storage)
            job = cls(
                spec=spec,
                run_id=run_id,
                output=output,
                stop=Stop(),
                ledger=ledger,
                storage=storage,
                views=Views(storage, ledger, spec, run_id),
                targets=targets,
                spool=spool,
                retry=retry,
            )
            job._warn_early(brought, lost)
            if not storage.exists(JOB_FILE):
                write_job_file(storage, spec)
            ledger.begin_run(
                run_id,
                spec=spec.model_dump_json(),
                settings_key=settings_key(spec),
                settings_value=orjson.dumps(job_settings(spec)).decode(),
            )
            async with job._stack:
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
        await asyncio.to_thread(self._discover)
        await asyncio.to_thread(self.views.check)
        self.plan = plan = await asyncio.to_thread(
            make_plan, self.ledger, self.spec, self.run_id, retry=self.retry
        )
        log.info(
            "%d inputs: %d to send, %d done, %d refused, %d failed for good, %d unknown, %d held back",
            *(plan.items, plan.to_send, plan.done, plan.refused, plan.final, plan.unknown, plan.held_back),
        )
        if plan.trimmed_s:
            log.info(
                "%.0f s of silence will be left out%s", plan.trimmed_s, _worth(self.spec, plan.trimmed_s)
            )
        if self.retry and self.retry.reviews:
            await asyncio.to_thread(self._warn_of_marks_left, plan, self.retry.reviews)
        # Only now: settings that the plan refuses are not the folder's.
        await asyncio.to_thread(write_job_file, self.storage, self.spec)
        self.phase = "sending"
        if plan.to_send:
            await asyncio.to_thread(self._make_room, plan)
            self._sender = await self._make_sender(plan)
        self._background = [
            asyncio.create_task(self._watch_stop()),
            asyncio.create_task(self._keep_manifest_fresh()),
        ]
        self._stack.push_async_callback(self._end_background)
        self.tally = self._sender.tally if self._sender else self.tally
        return plan

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

    def _discover(self) -> None:
        if self.retry is not None and "-" in self.spec.inputs:
            # Standard input came once; what it brought is in the ledger.
            self.ledger.see_all(self.run_id)
            return
        stdin = sys.stdin.buffer if "-" in self.spec.inputs else None
        discovery = Discovery(self.spec, self.ledger.known_files(), stdin)
        batch = []
        noted = 0
        for source in discovery.sources():
            batch.append(source)
            if source.media is not None and source.media.notes:
                noted += 1
                log.info("%s: %s", source.item_id, "; ".join(source.media.notes))
            self.found += 1
            if len(batch) >= 500:
                self.ledger.put_sources(batch, self.run_id)
                batch = []
            if self.stop.asked:
                break
        self.ledger.put_sources(batch, self.run_id)
        if not self.stop.asked:
            self.ledger.forget_missing_refusals(self.run_id)
        if noted:
            self.warn(
                f"{noted} recordings are not what they seem (such as a wrong ending); the run's log says how"
            )
        if discovery.tally.left_out:
            log.info("%d files were left out by --include and --exclude", discovery.tally.left_out)
        if discovery.tally.other_files:
            log.info("%d files with other endings were left aside", discovery.tally.other_files)
        if discovery.tally.skipped_links:
            self.warn(f"{discovery.tally.skipped_links} symbolic links were not followed")

    async def _make_sender(self, plan: Plan) -> Sender:
        targets = targets_of(self.spec, plan.deployments)
        targets = (*targets, *word_targets(self.spec, targets[0]))
        check_prices(self.spec, targets)
        service: LocalService | None = None
        if local := [one for one in targets if one.provider == "local"]:
            models = {one.deployment: one.model for one in local}
            service = await self._stack.enter_async_context(local_service(models))
        tokens = EntraTokens()
        from pipeline.transports.choose import open_transport  # the SDK takes a second to import

        transports: dict[str, Transport] = {}
        for one in targets:
            here = service if one.provider == "local" else None
            keyless = one.credential is not None and one.credential.kind == "entra"
            transport = open_transport(
                one.settings(self.spec),
                endpoint=here.base_url if here else one.endpoint,
                deployment=one.deployment,
                key=here.api_key if here else one.credential.key if one.credential else None,
                tokens=tokens if keyless else None,
                writes_words=one.writes_words,
            )
            transports[one.name] = transport
            self._stack.push_async_callback(transport.aclose)
        unknown_before = await asyncio.to_thread(self.ledger.unknown_counts)
        pool = pool_of(
            self.spec,
            targets,
            spent_before=await asyncio.to_thread(self.ledger.spent_usd),
            unknown_before=sum(unknown_before.values()),
        )
        sender = Sender(
            spec=self.spec,
            run_id=self.run_id,
            settings_key=settings_key(self.spec),
            ledger=self.ledger,
            pool=pool,
            transports=transports,
            storage=self.storage,
            spool=self.spool,
            stop=self.stop,
            tally=Tally(),
            unknown_before=unknown_before,
            targets={one.name: one for one in targets},
            aftermath=Aftermath(
                pool=pool, stop=self.stop, budget=RetryBudget(clock=pool.clock), waits=self.spec.wait
            ),
            gate=Gate(lambda: pool.room),
            rules=rules_of(self.spec, self.retry),
            finish=finish_of(self.spec),
        )
        self._stack.push_async_callback(sender.aclose)
        return sender

    async def run_shard(self, shard: Shard) -> ShardResult:
        """Send a shard's items. Never raises for an item: its failure is a recorded outcome."""
        if self.stop.asked or self._sender is None:
            return ShardResult(number=shard.number, sent=0, succeeded=0, failed=0, unknown=0)
        sender = self._sender
        queue = iter(
            await asyncio.to_thread(self.ledger.to_do, self.run_id, shard.first_position, shard.last_position)
        )
        ends: list[Status | None] = []

        async def work() -> None:
            for one in queue:
                if self.stop.asked:
                    return
                async with sender.gate.entered():
                    if self.stop.asked:
                        return
                    ends.append(await sender.run(one))

        workers = min(shard.size, self.spec.concurrency_ceiling)
        await asyncio.gather(*(work() for _ in range(workers)))
        return ShardResult(
            number=shard.number,
            sent=len(ends),
            succeeded=ends.count(Status.SUCCEEDED),
            failed=ends.count(Status.FAILED),
            unknown=ends.count(Status.UNKNOWN),
        )

    async def _send_deferred(self) -> None:
        """The end of the queue: items that the budget of retries left for later, as fast as it fills again."""
        sender = self._sender
        if sender is None or not sender.later:
            return
        log.info("%d items were deferred; they go now", len(sender.later))
        sender.is_last_pass = True

        async def work() -> None:
            while sender.later and not self.stop.asked:
                one = sender.later.popleft()
                async with sender.gate.entered():
                    try:
                        await sender.back_off(sender.aftermath.budget.room_in_s())
                    except Stopping:
                        return
                    await sender.run(one)

        workers = min(len(sender.later), self.spec.concurrency_ceiling)
        await asyncio.gather(*(work() for _ in range(workers)))

    async def finish(self) -> RunSummary:
        """Write the reports and close the run's books."""
        await self._send_deferred()
        self.phase = "reporting"
        await self._end_background()
        trouble = ""
        try:
            notes = await asyncio.to_thread(self.views.write_all, drawing_s=Views.DRAWING_S)
            for note in notes:
                self.warn(note)
        except StorageError as failed:
            trouble = (
                f"the manifest could not be written: {failed.message}. `audiobatch report` makes it again."
            )
            self.stop.ask(StopReason.STORAGE, trouble)
        summary = self._summary(trouble)
        log.info("ended: %s", orjson.dumps(summary.as_json()).decode())
        try:
            await asyncio.to_thread(
                self.ledger.end_run, self.run_id, orjson.dumps(summary.as_json()).decode()
            )
        except StorageError as failed:
            self.stop.ask(StopReason.STORAGE, failed.message)
            summary = self._summary(trouble)
        return summary

    def _summary(self, trouble: str) -> RunSummary:
        plan, tally = self.plan, self.tally
        assert plan is not None
        pending = plan.to_send - tally.ended + plan.held_back
        return RunSummary(
            run_id=self.run_id,
            output=self.output,
            manifest=self.output / self.views.manifest.name,
            exit_code=self._exit_code(plan),
            items=plan.items,
            sent=tally.ended,
            succeeded=tally.succeeded,
            failed=tally.failed,
            refused=plan.refused,
            unknown=tally.unknown,
            pending=pending,
            skipped_done=plan.done,
            cost_usd=tally.cost_usd if tally.cost_is_known else None,
            input_audio_s=tally.input_audio_s,
            output_audio_s=tally.output_audio_s,
            elapsed_s=(datetime.now(UTC) - self._started).total_seconds(),
            stopped_by=self.stop.reason.value if self.stop.reason else None,
            input_tokens=tally.input_text_tokens + tally.input_audio_tokens,
            output_tokens=tally.output_text_tokens + tally.output_audio_tokens,
            message=" ".join(part for part in (self.stop.detail, trouble, self._what_is_left(plan)) if part),
        )

    def _exit_code(self, plan: Plan) -> int:
        if self.stop.reason is not None:
            return _EXIT_CODES[self.stop.reason]
        bad = self.tally.failed + self.tally.unknown + plan.refused
        return 3 if bad else 0

    def _what_is_left(self, plan: Plan) -> str:
        parts = []
        if plan.final:
            parts.append(f"{plan.final} items failed for good earlier; `audiobatch retry` sends them again.")
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
        if unheard := self.tally.unheard:
            parts.append(f"The words of {unheard} results could not be written down; run again for them.")
        if left_out_s := self.tally.trimmed_s:
            parts.append(f"{left_out_s:,.0f} s of silence were not sent{_worth(self.spec, left_out_s)}.")
        return " ".join(parts)

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
            in_flight=pool.in_flight if pool else 0,
            rate_per_min=rate,
            eta_s=left / rate * 60 if rate and left else None,
            cost_usd=tally.cost_usd if tally.cost_is_known else None,
            waiting=pool.binding() if pool else "",
            projected_usd=tally.projected_usd(plan.to_send) if plan else None,
        )

    def table_rows(self, limit: int = 200) -> list[dict[str, str]]:
        """The run's first rows, few columns, for a table in Prefect."""
        return self.views.table_rows(limit)

    # In the background.

    async def _watch_stop(self) -> None:
        """When a stop is asked for: let nobody call any more, then give calls in flight their time."""
        stop_time = self.spec.stop_time(datetime.now().astimezone())
        if stop_time is None:
            await self.stop.soft.wait()
        else:
            left_s = (stop_time - datetime.now().astimezone()).total_seconds()
            try:
                await asyncio.wait_for(self.stop.soft.wait(), left_s)
            except TimeoutError:
                self.stop.ask(StopReason.STOP_AT, f"--stop-at {self.spec.stop_at}")
        if self._sender is None:
            return
        self._sender.pool.stop()
        drain_s = self.spec.drain_timeout_s if self.stop.reason in HURRIED else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.hard.wait(), drain_s)
        self._sender.give_up()

    async def _keep_manifest_fresh(self) -> None:
        """Rewrite the manifest while the run goes on, spending at most a twentieth of the time on it."""
        loop = asyncio.get_running_loop()
        pause_s = Views.FRESH_EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            began_s = loop.time()
            try:
                for note in await asyncio.to_thread(self.views.write_manifest):
                    if note not in self.warnings:
                        self.warn(note)
            except StorageError as failed:
                log.warning("manifest not refreshed: %s", failed.message)
            pause_s = max(Views.FRESH_EVERY_S, 20 * (loop.time() - began_s))

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


def _worth(spec: JobSpec, audio_s: float) -> str:
    """What sending so much sound would have cost, in words; empty where the price is not known."""
    price = price_of(spec.model, spec.provider, prices=spec.prices)
    if price is None:
        return ""
    return f", ${price.audio_in * round(audio_s * AUDIO_IN_TOKENS_PER_S) / 1_000_000:.4f} of input"


def _output_folder(spec: JobSpec) -> Path:
    if not spec.inputs:
        raise ConfigError("no input given: name a folder, a file, or '-' for JSON Lines on standard input")
    if spec.output is not None:
        output = Path(spec.output)
    else:
        default = output_name(spec.inputs)
        if default is None:
            raise ConfigError("several inputs, or '-', need --output: the folder that results go to")
        output = Path(default)
    full = output.resolve()
    for given in spec.inputs:
        if given != "-" and Path(given).resolve() == full:
            raise ConfigError(f"{output}: is both input and output; name another --output")
    return output


class _RunLog(logging.FileHandler):
    """A log that cannot be written is no reason to stop, nor to fill the terminal with the reasons."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        return


@contextlib.contextmanager
def _run_log(output: Path, run_id: str) -> Any:
    """Everything that the library and the flows log goes to `runs/<run_id>.log`. Ids and causes, no content."""
    path = output / "runs" / f"{run_id}.log"
    with translating(str(path)):
        path.parent.mkdir(exist_ok=True)
        handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("pipeline", "flows")]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = bool(os.environ.get("AUDIOBATCH_LOG_TO_STDERR"))
    try:
        yield
    finally:
        for one, (level, propagate) in zip(loggers, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagate
        handler.close()
