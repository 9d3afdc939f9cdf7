"""The flow of a worker: it drains the ledger of a job that a run has planned, beside others, and writes no reports.

It runs wherever a work pool runs it: in a process, a container, a pod. What it needs there is this package with the
extras of the job's ledger and storage, the credentials in its environment, and a way to the inputs and the output.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from prefect import flow
from prefect.context import FlowRunContext
from prefect.states import Failed

from audiobatch.calls.stats import RunSummary  # noqa: TC001
from audiobatch.config.jobspec import JobSpec  # noqa: TC001 - Prefect reads both types as it makes the parameter form
from audiobatch.errors import AudioBatchError
from audiobatch.execution.worker import WorkerParams, at_work
from audiobatch_flows import prefect_private, progress, signals
from audiobatch_flows.flow import is_cancelling, state_of, tag

if TYPE_CHECKING:
    from prefect.client.schemas import State


def run_name() -> str:
    """Name the flow run: `worker on outputs/recordings`, with the run that it works for."""
    from prefect.runtime import flow_run

    given = flow_run.parameters
    output = str(given["job"].output or "")
    where = output if "://" in output else "/".join(PurePath(output).parts[-2:])
    whose = f" for {given['for_run']}" if given.get("for_run") else ""
    return f"worker on {where}{whose}"


@flow(name="drain", flow_run_name=run_name, persist_result=False, retries=0, log_prints=False)
async def drain(job: JobSpec, for_run: str = "") -> RunSummary:
    """Send what is left on the queue of a job that a run has planned, until nobody holds anything.

    Args:
        job: as the run was given it, with its shared ledger and all paths absolute; no secret. Credentials come
            from the environment of the worker.
        for_run: the run that asked for it, and with which it stops; empty: it works until nothing is left.
    """
    return cast("RunSummary", await _state(WorkerParams(job=job, for_run=for_run)))


async def _state(params: WorkerParams) -> State[Any]:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run_id = context.flow_run.id
    ends_with_run = prefect_private.is_child_of_runner()
    try:
        async with at_work(params) as job:
            in_flight = partial(progress.in_flight, job)
            with signals.on_signals(job.stop, in_flight=in_flight, keep_handlers=ends_with_run):
                async with signals.on_cancellation(job.stop, lambda: is_cancelling(run_id)):
                    await tag(run_id, "audiobatch", "worker")
                    summary = await job.drain()
            if ends_with_run and job.stop.hurried.is_set():
                signals.end_process_after(summary.exit_code)
    except AudioBatchError as failed:
        return Failed(message=failed.message, data=failed)
    return state_of(summary)
