"""This engine, on the same work as its rivals: with ledger, hashing, checks and fsync."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from audiobatch.config.jobspec import JobSpec
from audiobatch.execution.job import Job, run_shards
from tests.benchmarks.contender import lateness_ms, report


async def main(origin: str, prompts: Path, output: Path, concurrency: int) -> None:
    os.environ["AZURE_OPENAI_API_KEY"] = "key"
    spec = JobSpec(
        inputs=(str(prompts),),
        output=str(output),
        endpoint=origin,
        deployment="gpt-audio-1.5",
        api_version="2025-01-01-preview",
        max_concurrency=concurrency,
        reports=(),  # the script by hand writes a CSV alone
    )
    async with Job.open(spec) as job:
        plan = await job.prepare()
        started_s = time.perf_counter()
        async with lateness_ms() as late_ms:
            await run_shards(job, plan.shards, plan.shards_at_once)
        loop_s = time.perf_counter() - started_s
        summary = await job.finish()
    assert summary.succeeded == plan.to_send, summary
    report(loop_s=loop_s, items=plan.to_send, late_ms=late_ms)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
