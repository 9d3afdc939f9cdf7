"""Flow runs that a `kill -9` or a power cut left RUNNING in Prefect, closed by the next run on the same folder.

A flow run that works on a folder carries the folder's own id as a label, from the moment it has the folder's lock
until just before it gives it back. So whoever has the lock, and finds another run with this label that is not
at its end, knows that its process is dead: the system frees a lock with its process, however that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from audiobatch.ledger.job_file import job_id
from audiobatch.storage.lock import FolderLock
from audiobatch_flows import artifacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from audiobatch.execution.job import Job

log = logging.getLogger(__name__)

LABEL = "audiobatch.folder"
PAGE = 200
MESSAGE = (
    "Its process ended without a report: killed, or its machine went down. Closed by the next run, {run_id}."
)
_AT_WORK = [StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]


@contextlib.asynccontextmanager
async def working_on(job: Job, flow_run_id: UUID) -> AsyncIterator[None]:
    """Mark this flow run as the one at work on the job's folder while the block runs, and close dead ones.

    A run does not wait for it, and does not fail for want of it.
    """
    folder = job_id(job.context.storage) if _holds(job) else ""
    if not folder:
        yield
        return
    closing = asyncio.create_task(_claim(folder, flow_run_id, job.run_id))
    try:
        yield
    finally:
        # The folder is still ours: from here on nobody may take this run for a dead one.
        await asyncio.wait([closing], timeout=artifacts.PATIENCE_S)
        closing.cancel()
        await asyncio.wait([closing])
        await _quietly(_label(flow_run_id, ""))


def _holds(job: Job) -> bool:
    """Return whether the folder is this run's alone: workers on one ledger share theirs."""
    holder = FolderLock.holder(job.context.home)
    return holder is not None and holder.run_id == job.run_id


async def _claim(folder: str, flow_run_id: UUID, run_id: str) -> None:
    await _quietly(_label(flow_run_id, folder))
    await _quietly(_close_others(folder, flow_run_id, run_id))


async def _quietly(work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(artifacts.PATIENCE_S):
            await work
    except Exception:
        log.warning("Prefect's record of runs on this folder could not be updated", exc_info=True)


async def _label(flow_run_id: UUID, folder: str) -> None:
    async with get_client() as client:
        await client.update_flow_run_labels(flow_run_id, {LABEL: folder})


async def _close_others(folder: str, flow_run_id: UUID, run_id: str) -> None:
    async with get_client() as client:
        at_work = FlowRunFilter(
            id=FlowRunFilterId(not_any_=[flow_run_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK)),
        )
        for run in await client.read_flow_runs(flow_run_filter=at_work, limit=PAGE):
            if run.labels.get(LABEL) == folder:
                log.warning("flow run %s was left running by a process that is dead; closed", run.name)
                await _close(client, run.id, MESSAGE.format(run_id=run_id))


async def _close(client: PrefectClient, dead: UUID, message: str) -> None:
    left = TaskRunFilter(
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    of_it = FlowRunFilter(id=FlowRunFilterId(any_=[dead]))
    while page := await client.read_task_runs(flow_run_filter=of_it, task_run_filter=left, limit=PAGE):
        for task in page:
            await client.set_task_run_state(task.id, Crashed(message=message), force=True)
    await client.set_flow_run_state(dead, Crashed(message=message), force=True)
