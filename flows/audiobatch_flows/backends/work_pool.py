"""Workers as flow runs on one of Prefect's work pools: whatever it starts, processes, containers or pods."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling
from prefect.types.entrypoint import EntrypointType

from audiobatch.errors import ConfigError
from audiobatch.execution.coordinator import Phase, WorkerStatus

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas import FlowRun

    from audiobatch.execution.worker import WorkerParams

#: Not that of registered jobs: these are nobody's schedule.
TAG = "audiobatch-worker"
PAGE = 200


@dataclass(slots=True, eq=False)
class WorkPoolBackend:
    """Flow runs of `drain`, deployed to a pool by the command that needs them."""

    pool: str
    _runs: list[UUID] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What a person may have to do where no worker begins."""
        return f"Is a worker of the pool at work? prefect worker start --pool {self.pool!r} starts one."

    async def start(self, params: WorkerParams, count: int) -> None:
        """Deploy the flow `drain` to the pool, and create `count` runs of it.

        Raises:
            ConfigError: there is no such pool, or Prefect refuses.
        """
        from prefect.deployments.runner import DeploymentApplyError

        from audiobatch_flows.worker_flow import drain

        async with get_client() as client:
            try:
                await client.read_work_pool(self.pool)
            except ObjectNotFound:
                names = ", ".join(pool.name for pool in await client.read_work_pools()) or "none"
                raise ConfigError(
                    f"there is no work pool {self.pool!r}; there are: {names}. To make one whose workers start "
                    f"processes: prefect work-pool create {self.pool!r} --type process"
                ) from None
            try:
                deployment = await drain.ato_deployment(
                    name=self.pool,
                    work_pool_name=self.pool,
                    tags=[TAG],
                    description="Workers of `audiobatch run --work-pool`: each drains a job's shared ledger.",
                    entrypoint_type=EntrypointType.MODULE_PATH,
                )
                deployed = await deployment.aapply()
                for _ in range(count):
                    run = await client.create_flow_run_from_deployment(
                        deployed, parameters=params.as_parameters(), tags=[TAG]
                    )
                    self._runs.append(run.id)
            except (DeploymentApplyError, PrefectHTTPStatusError) as refused:
                raise ConfigError(
                    f"Prefect does not start workers on pool {self.pool!r}: {refused}"
                ) from refused

    async def look(self) -> list[WorkerStatus]:
        """Return what has become of each flow run."""
        return [_status(run) for run in await self._now()]

    async def dismiss(self, *, by_force: bool) -> None:
        """Cancel the flow runs that have not begun; by force: those at work, too."""
        phases = {Phase.WAITING, Phase.WORKING} if by_force else {Phase.WAITING}
        async with get_client() as client:
            for run in await self._now():
                if _status(run).phase in phases:
                    with contextlib.suppress(PrefectHTTPStatusError, ObjectNotFound):
                        await client.set_flow_run_state(run.id, Cancelling())

    async def close(self) -> None:
        """Do nothing: nothing is open between calls."""

    async def _now(self) -> list[FlowRun]:
        found: list[FlowRun] = []
        async with get_client() as client:
            for first in range(0, len(self._runs), PAGE):
                some = FlowRunFilter(id=FlowRunFilterId(any_=self._runs[first : first + PAGE]))
                found += await client.read_flow_runs(flow_run_filter=some, limit=PAGE)
        return found


def _status(run: FlowRun) -> WorkerStatus:
    state = run.state
    name = f"worker {run.name!r}"
    if state is None or state.is_scheduled() or state.is_pending():
        return WorkerStatus(name=name, phase=Phase.WAITING)
    if not state.is_final():
        return WorkerStatus(name=name, phase=Phase.WORKING)
    failed = state.is_failed() or state.is_crashed()
    return WorkerStatus(
        name=name, phase=Phase.ENDED, trouble=(state.message or state.name or "") if failed else ""
    )
