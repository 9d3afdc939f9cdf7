"""Workers as tasks on a Dask cluster that is there; needs the extra `dask`, here and on the cluster."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from audiobatch.errors import AudioBatchError, ConfigError
from audiobatch.execution.coordinator import TELLING, Phase, WorkerStatus

if TYPE_CHECKING:
    from audiobatch.execution.worker import WorkerParams

PATIENCE_S = 30.0


@dataclass(slots=True, eq=False)
class DaskBackend:
    """One task a worker. Where a machine of the cluster dies, Dask starts its task again elsewhere."""

    address: str
    _client: Any = None
    _tasks: list[Any] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What a person may have to do where no worker begins."""
        return f"Has the cluster a free worker? dask worker {self.address} starts one."

    async def start(self, params: WorkerParams, count: int) -> None:
        """Submit `count` tasks, spread over the cluster's workers.

        Raises:
            ConfigError: no scheduler answers.
        """
        from distributed import Client

        try:
            self._client = await Client(  # type: ignore[no-untyped-call]
                self.address, asynchronous=True, timeout=PATIENCE_S, name="audiobatch", set_as_default=False
            )
        except (OSError, TimeoutError, ValueError) as failed:
            raise ConfigError(
                f"--dask {self.address}: no Dask scheduler answers there ({failed})"
            ) from failed
        addresses = sorted(self._client.scheduler_info(n_workers=-1)["workers"])
        text = params.model_dump_json()
        for number in range(count):
            # Spread over the cluster's workers, and anywhere if one of them is gone.
            preference = (
                {"workers": [addresses[number % len(addresses)]], "allow_other_workers": True}
                if addresses
                else {}
            )
            key = f"audiobatch-{params.for_run}-{number + 1}"
            self._tasks.append(self._client.submit(drain, text, key=key, pure=False, **preference))

    async def look(self) -> list[WorkerStatus]:
        """Return what has become of each task."""
        at_work = {key for keys in (await self._client.processing()).values() for key in keys}
        return [await _status(task, is_at_work=task.key in at_work) for task in self._tasks]

    async def dismiss(self, *, by_force: bool) -> None:
        """Cancel the tasks that have not begun; by force: all of them."""
        at_work = {key for keys in (await self._client.processing()).values() for key in keys}
        gone = [
            task for task in self._tasks if by_force or (task.status == "pending" and task.key not in at_work)
        ]
        await self._client.cancel(gone)

    async def close(self) -> None:
        """Close the connection to the scheduler."""
        if self._client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._client.close()


def drain(params: str) -> str:
    """Drain the ledger as a worker, in a thread of a Dask worker.

    Returns:
        What a person should know of its end. Errors of ours too: not every class need be known where they are read.
    """
    from audiobatch.execution.worker import WorkerParams, at_work

    async def work() -> str:
        async with at_work(WorkerParams.model_validate_json(params)) as job:
            summary = await job.drain()
        return summary.message if summary.exit_code in TELLING else ""

    try:
        return asyncio.run(work())
    except AudioBatchError as failed:
        return failed.message


async def _status(task: Any, *, is_at_work: bool) -> WorkerStatus:
    name = f"worker {task.key.rpartition('-')[2]} on Dask"
    if task.status == "pending":
        return WorkerStatus(name=name, phase=Phase.WORKING if is_at_work else Phase.WAITING)
    if task.status == "finished":
        return WorkerStatus(name=name, phase=Phase.ENDED, trouble=await task.result())
    trouble = repr(await task.exception()) if task.status == "error" else task.status
    return WorkerStatus(name=name, phase=Phase.ENDED, trouble="" if task.status == "cancelled" else trouble)
