"""A worker's parameters, and its stop: requested in the ledger, which a worker reaches wherever it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from audiobatch.config.jobspec import JobSpec  # noqa: TC001 - pydantic reads it
from audiobatch.errors import StorageError
from audiobatch.execution.job import Job
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from audiobatch.ledger.ledger import Ledger

log = logging.getLogger(__name__)

LOOK_S = 1.0
SOFT, HARD = "stop", "stop now"


class WorkerParams(BaseModel):
    """A worker's parameters; no secret.

    Attributes:
        job: the effective job, every path absolute.
        for_run: the run that it works for; empty: for itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: JobSpec
    for_run: str = ""

    def as_parameters(self) -> dict[str, Any]:
        """Return what differs from the defaults, and where results go, as JSON values."""
        return {"job": self.job.as_parameter(), "for_run": self.for_run}


def request_stop(ledger: Ledger, for_run: str, *, now: bool = False) -> None:
    """Request that the workers of a run stop. Blocks.

    Args:
        ledger: that they share.
        for_run: the run that they work for.
        now: give up calls in flight; else let them end.

    Raises:
        StorageError: the ledger is gone; then they stop by themselves.
    """
    ledger.writer.put_note(_key(for_run), HARD if now else SOFT)


@contextlib.asynccontextmanager
async def at_work(params: WorkerParams) -> AsyncIterator[Job]:
    """Open a worker's job, for it to drain; a stop that its run requests reaches it.

    Raises:
        ConfigError: as `Job.open`.
    """
    run_id = f"{params.for_run}.{secrets.token_hex(3)}" if params.for_run else None
    async with Job.open(params.job, run_id=run_id, worker=True) as job:
        listening = asyncio.create_task(_listen(job, params.for_run)) if params.for_run else None
        try:
            yield job
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])


async def _listen(job: Job, for_run: str) -> None:
    while not job.stop.hard.is_set():
        try:
            request = await asyncio.to_thread(job.context.ledger.reader.note, _key(for_run))
        except StorageError as failed:
            log.warning("the ledger could not be asked whether to stop: %s", failed.message)
            request = ""
        if request == HARD:
            job.stop.force(StopReason.CANCELLED)
        elif request == SOFT:
            job.stop.ask(StopReason.CANCELLED, f"stopped with run {for_run}, which it worked for")
        await asyncio.sleep(LOOK_S)


def _key(for_run: str) -> str:
    return f"stop {for_run}"
