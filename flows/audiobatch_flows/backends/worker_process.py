"""A worker in a process of its own: `python -m audiobatch_flows.backends.worker_process`.

Its parameters come as a line of JSON on standard input. It stops in order when the run that started it is gone, or
closes its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING

from audiobatch.child_process import on_parent_exit
from audiobatch.errors import AudioBatchError, ExitCode
from audiobatch.execution.worker import WorkerParams, at_work
from audiobatch.stop import StopReason
from audiobatch_flows import progress, signals

if TYPE_CHECKING:
    from audiobatch.execution.job import Job


def main() -> int:
    """Drain the ledger; return the exit code of a run that sent what this worker did."""
    params = WorkerParams.model_validate_json(sys.stdin.buffer.readline())
    try:
        return asyncio.run(_drain(params))
    except AudioBatchError as failed:
        print(failed.message, file=sys.stderr)
        return ExitCode.USAGE


async def _drain(params: WorkerParams) -> int:
    async with at_work(params) as job:
        on_parent_exit(partial(_stop, job, asyncio.get_running_loop()))
        with signals.on_signals(job.stop, in_flight=partial(progress.in_flight, job), keep_handlers=True):
            summary = await job.drain()
    if summary.message:
        print(summary.message, file=sys.stderr)
    return summary.exit_code


def _stop(job: Job, loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # the work has ended before
        loop.call_soon_threadsafe(
            job.stop.ask, StopReason.CANCELLED, "stopped with the run that it worked for"
        )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
