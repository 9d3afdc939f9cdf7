"""A stand-in for the engine, for tests of the flows: the same interface, calls that only sleep.

What it does is told by the job's settings, so that it can be told in another process too: `limit` is the number of
items, `timeout_s` how long a call takes, `system` what becomes of it (`failed=2`, `exit=6`).
Each call leaves two lines in `calls.txt` of the output folder: `start 7` and `end 7`, or `lost 7`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from audiobatch.calls.stats import RunSummary, Snapshot
from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError
from audiobatch.execution.job import Job
from audiobatch.planning.plan import Plan as RealPlan
from audiobatch.planning.plan import Shard
from audiobatch.stop import Stop, StopReason
from audiobatch_flows.engine_context import Engine

if TYPE_CHECKING:
    from audiobatch.execution.job import ShardResult


@dataclass(frozen=True)
class Plan:
    """What the stand-in plans: shards, and how many run at once."""

    to_send: int
    shards: tuple[Shard, ...]
    shards_at_once: int


def nothing_yet() -> SimpleNamespace:
    """Return a snapshot of a run that has sent nothing."""
    counts = dict.fromkeys(("total", "done", "failed", "refused", "unknown", "in_flight"), 0)
    return SimpleNamespace(
        **counts, phase="discovering", rate_per_min=0.0, eta_s=None, cost_usd=None, waiting=""
    )


def options(spec: JobSpec) -> dict[str, int]:
    """Parse `name=number` pairs of the system prompt."""
    pairs = (part.split("=") for part in (spec.system or "").split())
    return {name: int(value) for name, value in pairs}


@dataclass
class SlowJob:
    """Stands in for `Job`: its items take the time that they are given."""

    spec: JobSpec
    run_id: str
    output: Path
    stop: Stop = field(default_factory=Stop)
    now: SimpleNamespace = field(default_factory=nothing_yet)
    warnings: list[str] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)
    sent: int = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, spec: JobSpec, *, run_id: str | None = None) -> AsyncIterator[SlowJob]:
        if "refuse" in options(spec):
            raise ConfigError("output is a file")
        output = Path(spec.output or "outputs")
        output.mkdir(parents=True, exist_ok=True)
        yield cls(spec=spec, run_id=run_id or "run-1", output=output)

    @property
    def context(self) -> SimpleNamespace:
        return SimpleNamespace(home=self.output)

    async def prepare(self) -> Plan:
        count = self.spec.limit or 4
        self.now.total, self.now.phase = count, "sending"
        self.seats = asyncio.Semaphore(self.spec.max_concurrency or 16)
        size = options(self.spec).get("shard", 1)
        shards = tuple(
            Shard(
                number=number,
                first_position=first,
                last_position=min(first + size - 1, count),
                size=min(size, count - first + 1),
            )
            for number, first in enumerate(range(1, count + 1, size), 1)
        )
        return Plan(to_send=count, shards=shards, shards_at_once=(self.spec.max_concurrency or 16))

    async def run_shard(self, shard: Shard) -> ShardResult:
        from audiobatch.execution.job import ShardResult

        if shard.number == options(self.spec).get("bug"):
            raise ZeroDivisionError("a bug of ours")
        await asyncio.gather(*(self._one(n) for n in range(shard.first_position, shard.last_position + 1)))
        return ShardResult(number=shard.number, sent=shard.size, succeeded=shard.size, failed=0, unknown=0)

    async def _one(self, position: int) -> None:
        async with self.seats:
            if self.stop.asked:
                return
            self.sent += 1
            self.now.in_flight += 1
            self._note("start", position)
            call = asyncio.create_task(asyncio.sleep(self.spec.timeout_s))
            hard = asyncio.create_task(self.stop.hard.wait())
            await asyncio.wait((call, hard), return_when=asyncio.FIRST_COMPLETED)
            self.now.in_flight -= 1
            if call.done():
                self._note("end", position)
                if position <= options(self.spec).get("failed", 0):
                    self.now.failed += 1
                else:
                    self.now.done += 1
            else:
                call.cancel()
                self._note("lost", position)
                self.now.unknown += 1
            hard.cancel()

    def _note(self, what: str, position: int) -> None:
        with (self.output / "calls.txt").open("a") as journal:
            journal.write(f"{what} {position}\n")

    async def finish(self) -> RunSummary:
        self.now.phase = "reporting"
        codes: dict[StopReason | None, int] = {
            StopReason.SIGINT: 130,
            StopReason.SIGTERM: 143,
            StopReason.CANCELLED: 130,
            StopReason.INTERNAL: 1,
        }
        code = codes.get(self.stop.reason, 3 if self.now.failed else 0)
        code = options(self.spec).get("exit", code)
        manifest = self.output / "manifest.csv"
        manifest.write_text("item_id\n")
        return RunSummary(
            run_id=self.run_id, output=self.output, manifest=manifest, exit_code=code,
            items=self.now.total, sent=self.sent, succeeded=self.now.done, failed=self.now.failed, refused=0,
            unknown=self.now.unknown, pending=self.now.total - self.sent, skipped_done=0,
            cost_usd=Decimal("0.0125"), input_audio_s=90.0, output_audio_s=120.0,
            elapsed_s=time.monotonic() - self.started_at, stopped_by=self.stop.reason, input_tokens=1000,
            output_tokens=234,
            message=self.stop.detail,
        )  # fmt: skip

    def snapshot(self) -> Snapshot:
        return Snapshot(**vars(self.now))

    def table_rows(self, limit: int = 200) -> list[dict[str, str]]:
        return [{"item_id": f"item {n}", "status": "succeeded"} for n in range(min(limit, self.now.total))]


def as_job(stand_in: SlowJob) -> Job:
    """Return the stand-in as the job that the flows take it for."""
    return cast("Job", stand_in)


def engine_of(stand_in: SlowJob, plan: Plan) -> Engine:
    """Return what a flow finds in its context."""
    return Engine(job=as_job(stand_in), plan=cast("RealPlan", plan))


def install() -> None:
    """Put the stand-in in the engine's place, in this process."""
    from audiobatch.execution import job

    vars(job)["Job"] = SlowJob
