"""A child process for tests of the flows: `python -m tests.flows_child MODE SPEC`, SPEC being a JobSpec in JSON.

`flow` calls the flow as a user's program does, `command` as the command line does, `embedded` the same on a
server of its own, `plain` runs without Prefect. Standard output gets one JSON object at the end (`embedded`: the
server's process id in a line before). The engine is the stand-in of `flows_engine`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

from audiobatch.calls.stats import RunSummary
from audiobatch.config.jobspec import JobSpec
from audiobatch_flows.server import EmbeddedServer
from tests import flows_engine


def told(summary: RunSummary) -> RunSummary:
    """Print the summary, while the loop still runs: after it, tasks that hang may hold the process."""
    print(json.dumps(summary.as_json()), flush=True)
    return summary


async def run_plain(spec: JobSpec) -> RunSummary:
    """Run the job without Prefect."""
    from audiobatch_flows import progress, signals

    async with flows_engine.SlowJob.open(spec) as job:
        with signals.on_signals(job.stop, in_flight=partial(progress.in_flight, flows_engine.as_job(job))):
            plan = await job.prepare()
            await asyncio.gather(*(job.run_shard(shard) for shard in plan.shards))
            return told(await job.finish())


async def run_command(spec: JobSpec, server: EmbeddedServer | None) -> RunSummary:
    """Run the job as the command line does."""
    from audiobatch_flows import launch, progress, signals

    launch.PATIENCE_S = 2.0
    async with flows_engine.SlowJob.open(spec) as job:
        with signals.on_signals(
            job.stop, in_flight=partial(progress.in_flight, flows_engine.as_job(job)), keep_handlers=True
        ):
            plan = await job.prepare()
            if server is not None:
                await server.wait_healthy()
                print(server.pid, flush=True)
            from audiobatch_flows.flow import process_folder

            async with progress.shown(flows_engine.as_job(job)):
                return told(await launch.as_flow(process_folder, flows_engine.engine_of(job, plan)))


async def run_flow(spec: JobSpec) -> RunSummary:
    """Run the job as a user's program does."""
    from audiobatch_flows import RunFailed, process_folder

    try:
        return told(await process_folder(spec))
    except RunFailed as ended:
        print(type(ended).__name__, file=sys.stderr)
        return told(ended.summary)


def main() -> int:
    """Run the mode that the arguments name."""
    mode, spec = sys.argv[1], JobSpec.model_validate_json(sys.argv[2])
    if mode != "plain":
        flows_engine.install()
    server = None
    if mode == "embedded":
        server = EmbeddedServer()
        server.start()
    work = {
        "plain": lambda: run_plain(spec),
        "flow": lambda: run_flow(spec),
        "command": lambda: run_command(spec, None),
        "embedded": lambda: run_command(spec, server),
    }
    return asyncio.run(work[mode]()).exit_code


if __name__ == "__main__":
    sys.exit(main())
