"""A job whose ledger and files are flushed in one of three ways: for `durability`, and for nothing else.

`python -m tests.benchmarks.durable_run WAY ORIGIN INPUTS OUTPUT RATE`; the ways are `group` (as it is), `each` (a
transaction, and so a flush, for each intent and each outcome), `none` (nothing is ever flushed).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys

from sqlalchemy import Pool, event

from audiobatch.config.jobspec import JobSpec
from audiobatch.execution.job import Job, run_shards
from audiobatch.ledger import group_commit


def _flush_each() -> None:
    group_commit.MAX_BATCH = 1


def _flush_nothing() -> None:
    os.fsync = lambda fd: None  # noqa: ARG005 - the name is the signature's
    # At each checkout, since it can be set outside of transactions only.
    event.listen(Pool, "checkout", lambda connection, *_: connection.execute("PRAGMA synchronous=OFF"))


async def main(origin: str, inputs: str, output: str, per_s: int) -> None:
    spec = JobSpec(
        inputs=(inputs,),
        output=output,
        endpoint=origin,
        deployment="gpt-audio-1.5",
        max_concurrency=128,
        rpm=per_s * 60,
        reports=(),
    )
    async with Job.open(spec) as job:
        plan = await job.prepare()
        before = resource.getrusage(resource.RUSAGE_SELF)
        await run_shards(job, plan.shards, plan.shards_at_once)
        after = resource.getrusage(resource.RUSAGE_SELF)
        summary = await job.finish()
    assert summary.succeeded == plan.to_send, summary
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu_s, "items": summary.succeeded}), flush=True)


if __name__ == "__main__":
    {"group": lambda: None, "each": _flush_each, "none": _flush_nothing}[sys.argv[1]]()
    asyncio.run(main(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
