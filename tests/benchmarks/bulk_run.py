"""A whole job in a process of its own, phase by phase: what each took, and the peak of memory at its end.

`python -m tests.benchmarks.bulk_run ORIGIN INPUTS OUTPUT CONCURRENCY` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

from audiobatch.config.jobspec import JobSpec
from audiobatch.execution.job import Job, run_shards


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


async def main(origin: str, inputs: str, output: str, concurrency: int) -> None:
    phases: dict[str, dict[str, float]] = {}
    at_s, cpu_s = time.monotonic(), _cpu_s()

    def ended(phase: str) -> None:
        nonlocal at_s, cpu_s
        now_s, used_s = time.monotonic(), _cpu_s()
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        phases[phase] = {"wall_s": now_s - at_s, "cpu_s": used_s - cpu_s, "peak_mb": peak_mb}
        at_s, cpu_s = now_s, used_s

    spec = JobSpec(
        inputs=(inputs,),
        output=output,
        endpoint=origin,
        deployment="gpt-audio-1.5",
        max_concurrency=concurrency,
    )
    async with Job.open(spec) as job:
        plan = await job.prepare()
        ended("find and plan")
        await run_shards(job, plan.shards, plan.shards_at_once)
        ended("send")
        summary = await job.finish()
        ended("report")
    assert summary.succeeded == plan.to_send, summary
    print(json.dumps({"items": summary.items, "phases": phases}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
