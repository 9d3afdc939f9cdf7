"""Scheduled jobs: Prefect deployments whose parameter is a job, served by one process.

A deployment is found again by its name, the tag `audiobatch`, and its flow. It carries the job, never a credential:
those come from the environment of the process that serves. Whoever runs workers deploys to a work pool instead
(`prefect.yaml`); such deployments are listed here, and left to their workers.

When a schedule fires: a cron expression and a time zone, checked before anything is registered.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import shlex
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
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

    from audiobatch_flows.flow_choice import flow_for, flow_named

    before = next((one for one in await registered() if one.name == name), None)
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
    """Every registered job, by name; with `planned`, also when it runs next and how it last ended."""
    wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[Scheduled] = []
    async with get_client() as client:
        flows: dict[UUID, str] = {}
        while page := await client.read_deployments(deployment_filter=wanted, limit=PAGE, offset=len(found)):
            for one in page:
                if one.flow_id not in flows:
                    flows[one.flow_id] = (await client.read_flow(one.flow_id)).name
            found += [_scheduled(one, flows[one.flow_id]) for one in page]
        if planned:
            found = list(await asyncio.gather(*(_with_runs(client, one) for one in found)))
    return sorted(found, key=lambda one: one.name)


def entrypoint_of(flow: str) -> str:
    """The module path of the flow of this name, as Prefect wants it."""
    from audiobatch_flows.flow_choice import flow_named

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
    """A registered job as it is at this moment."""
    async with get_client() as client:
        found = await client.read_deployment(deployment_id)
        return _scheduled(found, (await client.read_flow(found.flow_id)).name)


async def named(name: str) -> Scheduled:
    """The registered job of this name.

    Raises:
        ConfigError: there is none; with the names that there are.
    """
    known = await registered(planned=True)
    for one in known:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known) or "none"
    raise ConfigError(f"there is no schedule {name!r}; there are: {names}")


async def pause(one: Scheduled) -> None:
    """Let it fire no more until it is resumed; a run at work goes on."""
    async with get_client() as client:
        await client.pause_deployment(one.id)


async def resume(one: Scheduled) -> None:
    async with get_client() as client:
        await client.resume_deployment(one.id)


async def remove(one: Scheduled) -> None:
    """Forget the schedule. Its runs stay in Prefect, its results where they are."""
    async with get_client() as client:
        await client.delete_deployment(one.id)


def _scheduled(found: DeploymentResponse, flow: str) -> Scheduled:
    cron = next((one.schedule for one in found.schedules if isinstance(one.schedule, CronSchedule)), None)
    job = found.parameters.get("job")
    return Scheduled(
        id=found.id,
        name=found.name,
        flow=flow,
        cron=cron.cron if cron else "",
        timezone=(cron.timezone or "UTC") if cron else "",
        paused=found.paused or not any(one.active for one in found.schedules),
        work_pool=found.work_pool_name,
        job=job if isinstance(job, dict) else {},
        entrypoint=found.entrypoint or "",
        has_pull_steps=bool(found.pull_steps),
    )


async def _with_runs(client: PrefectClient, one: Scheduled) -> Scheduled:
    from dataclasses import replace

    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[one.id]))
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
    next_at = planned[0].next_scheduled_start_time if planned and not one.paused else None
    last = ""
    if begun and (state := begun[0].state) is not None:
        last = f"{state.name} {state.timestamp.astimezone():%Y-%m-%d %H:%M}"
    return replace(one, next_at=next_at, last=last)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


#: Minute, hour, day of the month, month, day of the week: what each may be.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)


_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


_PART = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\w+))?", re.ASCII)


_EXAMPLE = '"0 2 * * *" is every night at two, "*/15 8-18 * * mon-fri" every quarter of an hour at work'


def checked_cron(text: str) -> str:
    """The expression in five fields, `@daily` and the like written out.

    Raises:
        ConfigError: which field is wrong, and what it may be.
    """
    text = _MACROS.get(text.strip().lower(), text.strip())
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"--cron {text!r}: has {len(fields)} fields, and needs 5: minute, hour, day of the month, month, "
            f"day of the week. {_EXAMPLE}."
        )
    for given, (name, lowest, highest, names) in zip(fields, _FIELDS, strict=True):
        for part in given.split(","):
            if not _is_right(part.lower(), lowest, highest, names):
                words = f" or {names[0]} to {names[-1]}" if names else ""
                raise ConfigError(
                    f"--cron {text!r}: {part!r} is no {name}: {lowest} to {highest}{words}, *, a range (1-5), a "
                    f"step (*/15), or several with commas. {_EXAMPLE}."
                )
    return " ".join(fields)


def _is_right(part: str, lowest: int, highest: int, names: tuple[str, ...]) -> bool:
    match = _PART.fullmatch(part)
    if match is None:
        return False

    def value(text: str) -> int | None:
        if text in names:
            return lowest + names.index(text)
        return int(text) if text.isdecimal() and lowest <= int(text) <= highest else None

    first, last, step = match["first"], match["last"], match["step"]
    if step is not None and not (step.isdecimal() and 0 < int(step) <= highest):
        return False
    if first == "*":
        return last is None
    begin, end = value(first), value(last) if last is not None else None
    if begin is None or (last is not None and end is None):
        return False
    return end is None or begin <= end


def checked_timezone(name: str | None) -> str:
    """A time zone that exists; by default this machine's, or UTC where it does not say.

    Raises:
        ConfigError: there is no such zone; with the nearest name.
    """
    if name is None:
        return local_timezone()
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        by_ending = {one.rpartition("/")[2].lower(): one for one in sorted(known)}
        asked = name.replace(" ", "_")
        near = by_ending.get(asked.lower()) or next(iter(difflib.get_close_matches(asked, known, n=1)), None)
        hint = f"; did you mean {near}?" if near else "; names are like Europe/Berlin or UTC"
        raise ConfigError(f"--timezone {name!r}: there is no such time zone{hint}") from None
    return name


def local_timezone(etc: Path = Path("/etc")) -> str:
    """The name of this machine's time zone; UTC where the system does not tell."""
    guesses = [os.environ.get("TZ", "").removeprefix(":")]
    link = etc / "localtime"
    if link.is_symlink():
        guesses.append(str(link.resolve()).rpartition("zoneinfo/")[2])
    if (etc / "timezone").is_file():
        guesses.append((etc / "timezone").read_text(encoding="utf-8", errors="replace").strip())
    known = zoneinfo.available_timezones()
    return next((one for one in guesses if one in known), "UTC")
