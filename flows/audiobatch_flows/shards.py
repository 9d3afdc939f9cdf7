"""Prefect's unit of work: a shard of items, never one item.

A task run costs Prefect's server some 20 ms, and a burst of thousands loses states; so a job is at most some 500
shards, and a small job has one for each item. Outcomes of items are data: a shard fails only where this program
does. The ledger remembers what is done, so Prefect neither retries, caches nor stores anything here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from audiobatch.stop import StopReason
from audiobatch_flows import engine_context

if TYPE_CHECKING:
    from audiobatch.execution.job import Job, ShardResult
    from audiobatch.planning.plan import Plan, Shard

log = logging.getLogger(__name__)


def shard_name() -> str:
    """What the task run is called in Prefect: `items 51-100`, by place in input order."""
    from prefect.runtime import task_run

    shard: Shard = task_run.parameters["shard"]
    first, last = shard.first_position, shard.last_position
    return f"item {first}" if first == last else f"items {first}-{last}"


@task(
    name="shard",
    task_run_name=shard_name,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def process_shard(shard: Shard) -> ShardResult:
    """Send the items of one shard, as far as no stop was asked for."""
    return await engine_context.current_job.get().run_shard(shard)


async def run_all(job: Job, plan: Plan) -> None:
    """Run the plan's shards, `shards_at_once` side by side, in this event loop.

    One limiter and one client serve them all. A shard that fails stops the others orderly: what they have in
    flight is paid for and gets recorded.
    """
    gate = asyncio.Semaphore(plan.shards_at_once)
    token = engine_context.current_job.set(job)

    async def one(shard: Shard) -> None:
        async with gate:
            if job.stop.asked:
                return
            try:
                await process_shard(shard)
            except Exception as failed:
                log.exception("shard %s failed", shard.number)
                job.stop.ask(StopReason.INTERNAL, f"{type(failed).__name__}: {failed}")

    try:
        await asyncio.gather(*(one(shard) for shard in plan.shards))
    finally:
        engine_context.current_job.reset(token)
