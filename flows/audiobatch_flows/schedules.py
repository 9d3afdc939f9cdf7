"""Scheduled jobs: Prefect deployments whose parameter is a job, served by one process.

A deployment is found again by its name, the tag `audiobatch`, and its flow. It carries the job, never a credential:
those come from the environment of the process that serves. Whoever runs workers deploys to a work pool instead
(`prefect.yaml`); such deployments are listed here, and left to their workers.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

    from audiobatch.config.jobspec import JobSpec

TAG = "audiobatch"
PAGE = 200
#: Where versions before 0.2 had the flows, by module or by file.
_EARLIER = re.compile(r"(?:^|/)flows[./](process_folder|speak_prompts)(?:\.py:|\.)\1$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A registered job.

    Attributes:
        cron: empty where it has no cron schedule (one made in Prefect's pages may have none).
        work_pool: the pool whose workers run it; None: `audiobatch serve` does.
        entrypoint: where Prefect finds its flow.
        has_pull_steps: it has commands to be run before each flow run; `register` writes none.
        job: the flow's parameter, as registered.
        next_at: None where it is paused, or nothing is planned.
        last: state and time of the newest run that has begun; empty where there is none.
    """

    id: UUID
    name: str
    flow: str
    cron: str
    timezone: str
    paused: bool
    work_pool: str | None
    job: dict[str, Any]
    entrypoint: str = ""
    has_pull_steps: bool = False
    next_at: datetime | None = None
    last: str = ""

    @property
    def output(self) -> str:
        """The job's output folder, as registered."""
        return str(self.job.get("output") or "")


async def register(spec: JobSpec, *, name: str, cron: str, timezone: str) -> tuple[Scheduled, bool]:
    """Register a job, or change the one of this name. What was paused stays so.

    Args:
        spec: with absolute paths.

    Returns:
        The job as it is now, and whether it is new.

    Raises:
        ConfigError: the name belongs to a job with another output folder, or Prefect refuses it.
    """
    from prefect.deployments.runner import DeploymentApplyError
    from prefect.exceptions import PrefectHTTPStatusError

    from audiobatch_flows.flow import flow_for, flow_named

    before = next((scheduled for scheduled in await registered() if scheduled.name == name), None)
    if before is not None and before.output != spec.output:
        raise ConfigError(
            f"there is a schedule {name!r} already, for {before.output}; give this one another --name, or "
            f"remove that one: audiobatch schedule remove {name!r}"
        )
    flow = flow_named(before.flow) if before else flow_for(spec)
    deployment = await flow.ato_deployment(
        name=name,
        schedules=[Cron(cron, timezone=timezone)],
        parameters={"job": spec.as_parameter()},
        tags=[TAG],
        description=f"{', '.join(spec.inputs)} → {spec.output}",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.paused = before.paused if before else False
    try:
        await deployment.aapply()
    except (DeploymentApplyError, PrefectHTTPStatusError) as refused:
        raise ConfigError(f"Prefect does not take the schedule: {refused}") from refused
    return await named(name), before is None


async def registered(*, planned: bool = False) -> list[Scheduled]:
    """Return every registered job, by name; with `planned`, also when it runs next and how it last ended."""
    wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[Scheduled] = []
    async with get_client() as client:
        flows: dict[UUID, str] = {}
        while page := await client.read_deployments(deployment_filter=wanted, limit=PAGE, offset=len(found)):
            for deployment in page:
                if deployment.flow_id not in flows:
                    flows[deployment.flow_id] = (await client.read_flow(deployment.flow_id)).name
            found += [_scheduled(deployment, flows[deployment.flow_id]) for deployment in page]
        if planned:
            found = list(await asyncio.gather(*(_with_runs(client, scheduled) for scheduled in found)))
    return sorted(found, key=lambda scheduled: scheduled.name)


def entrypoint_of(flow: str) -> str:
    """Return the module path of the flow of this name, as Prefect wants it."""
    from audiobatch_flows.flow import flow_named

    function = flow_named(flow).fn
    return f"{function.__module__}.{function.__name__}"


async def update_entrypoints() -> list[str]:
    """Register jobs of versions before 0.2 by where their flows are today; id, schedule and pause stay.

    Returns:
        What was done, and what is left to do by hand, in sentences.
    """
    notes = []
    for job in await registered():
        if not _EARLIER.search(job.entrypoint):
            continue
        if job.work_pool is not None:
            notes.append(
                f"{job.name} is run by the workers of pool {job.work_pool}, which do not find its flow at "
                f"{job.entrypoint} any more. Deploy it again: prefect deploy --name {shlex.quote(job.name)}"
            )
            continue
        async with get_client() as client:
            await client.update_deployment(job.id, DeploymentUpdate(entrypoint=entrypoint_of(job.flow)))
        notes.append(
            f"{job.name} was registered by an earlier version; its flow is now {entrypoint_of(job.flow)}"
        )
    return notes


async def current(deployment_id: UUID) -> Scheduled:
    """Return a registered job as it is at this moment."""
    async with get_client() as client:
        found = await client.read_deployment(deployment_id)
        return _scheduled(found, (await client.read_flow(found.flow_id)).name)


async def named(name: str) -> Scheduled:
    """Return the registered job of this name.

    Raises:
        ConfigError: there is none; with the names that there are.
    """
    known = await registered(planned=True)
    for scheduled in known:
        if scheduled.name == name:
            return scheduled
    names = ", ".join(scheduled.name for scheduled in known) or "none"
    raise ConfigError(f"there is no schedule {name!r}; there are: {names}")


async def pause(scheduled: Scheduled) -> None:
    """Let it fire no more until it is resumed; a run at work goes on."""
    async with get_client() as client:
        await client.pause_deployment(scheduled.id)


async def resume(scheduled: Scheduled) -> None:
    """Let a paused job fire again."""
    async with get_client() as client:
        await client.resume_deployment(scheduled.id)


async def remove(scheduled: Scheduled) -> None:
    """Forget the schedule. Its runs stay in Prefect, its results where they are."""
    async with get_client() as client:
        await client.delete_deployment(scheduled.id)


def _scheduled(found: DeploymentResponse, flow: str) -> Scheduled:
    cron = next(
        (schedule.schedule for schedule in found.schedules if isinstance(schedule.schedule, CronSchedule)),
        None,
    )
    job = found.parameters.get("job")
    return Scheduled(
        id=found.id,
        name=found.name,
        flow=flow,
        cron=cron.cron if cron else "",
        timezone=(cron.timezone or "UTC") if cron else "",
        paused=found.paused or not any(schedule.active for schedule in found.schedules),
        work_pool=found.work_pool_name,
        job=job if isinstance(job, dict) else {},
        entrypoint=found.entrypoint or "",
        has_pull_steps=bool(found.pull_steps),
    )


async def _with_runs(client: PrefectClient, scheduled: Scheduled) -> Scheduled:
    from dataclasses import replace

    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[scheduled.id]))
    planned = await client.read_flow_runs(
        deployment_filter=of_it,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
        sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        limit=1,
    )
    begun = await client.read_flow_runs(
        deployment_filter=of_it,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(not_any_=[StateType.SCHEDULED, StateType.PENDING])
            )
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    next_at = planned[0].next_scheduled_start_time if planned and not scheduled.paused else None
    last = ""
    if begun and (state := begun[0].state) is not None:
        last = f"{state.name} {state.timestamp.astimezone():%Y-%m-%d %H:%M}"
    return replace(scheduled, next_at=next_at, last=last)
