"""A worker in a process of its own: `python -m audiobatch_flows.backends.worker_process`.

Its orders come as a line of JSON on standard input. It stops in order when standard input ends: whoever started it
is gone, or wants it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

from audiobatch.errors import AudioBatchError, ExitCode
from audiobatch.execution.worker import WorkerParams, at_work
from audiobatch.stop import StopReason
from audiobatch_flows import progress, signals

if TYPE_CHECKING:
    from audiobatch.execution.job import Job


def main() -> int:
    """The exit code of a run that sent what this one did."""
    params = WorkerParams.model_validate_json(sys.stdin.buffer.readline())
    try:
        return asyncio.run(_drain(params))
    except AudioBatchError as failed:
        print(failed.message, file=sys.stderr)
        return ExitCode.USAGE


async def _drain(params: WorkerParams) -> int:
    async with at_work(params) as job:
        threading.Thread(target=_until_alone, args=(job, asyncio.get_running_loop()), daemon=True).start()
        with signals.on_signals(job.stop, in_flight=partial(progress.in_flight, job), keep=True):
            summary = await job.drain()
    if summary.message:
        print(summary.message, file=sys.stderr)
    return summary.exit_code


def _until_alone(job: Job, loop: asyncio.AbstractEventLoop) -> None:
    # Not by way of `sys.stdin`: an interpreter that ends would wait for its lock.
    while os.read(0, 1024):
        pass
    with contextlib.suppress(RuntimeError):  # the work has ended before
        loop.call_soon_threadsafe(
            job.stop.ask, StopReason.CANCELLED, "stopped with the run that it worked for"
        )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
