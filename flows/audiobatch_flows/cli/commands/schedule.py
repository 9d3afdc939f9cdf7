"""`audiobatch schedule`: jobs that run again and again, registered with Prefect."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from audiobatch_flows.cli.options import JobCommand, job_options, resolve_job

if TYPE_CHECKING:
    from pathlib import Path

    from audiobatch_flows.schedules import Scheduled

DEFAULT = "add"


class _DefaultsToAdd(click.Group):
    """A group in which `schedule recordings --cron …` is `schedule add recordings --cron …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[add] INPUT… --cron CRON [OPTIONS]")
        formatter.write_usage(ctx.command_path, "list | pause NAME… | resume NAME… | remove NAME…")


@click.group(cls=_DefaultsToAdd, short_help="Run a job again and again, at times you name.")
def schedule() -> None:
    """Register a job with Prefect, to be run whenever it is due, and look after those that are registered.

    \b
    It takes three terminals (or services):
      audiobatch server                        Prefect's server; set PREFECT_API_URL to its address
      audiobatch schedule inbox --output out --cron "0 2 * * *"
      audiobatch serve                         runs what is due, with this process's credentials

    Each run sends what `audiobatch run` would: what is new, changed, or failed for a reason that may pass. One
    that is due while the last one still works is skipped. `audiobatch schedule add --help` has all options.
    """  # noqa: D301 - click's mark for lines as they are


@schedule.command(cls=JobCommand, short_help="Register a job; `add` may be left out.")
@job_options
@click.option(
    "--cron",
    required=True,
    metavar="CRON",
    help='When: minute, hour, day of the month, month, day of the week. "0 2 * * *": every night at two.',
)
@click.option(
    "--timezone", metavar="ZONE", help="Of the cron expression: Europe/Berlin. [default: this machine's]"
)
@click.option("--name", metavar="NAME", help="What to call it. [default: the output folder's name]")
def add(
    inputs: tuple[str, ...],
    job_file: Path | None,
    *,
    cron: str,
    timezone: str | None,
    name: str | None,
    **flags: Any,
) -> int:
    """Register the job, or change the one of the same name.

    The job is kept as it is now: paths are made absolute, and what the job file and the environment say is written
    down with it. Credentials are not: those of the process that serves are used.
    """
    from audiobatch_flows import cron as when
    from audiobatch_flows import registered_job

    found = registered_job.with_absolute_paths(resolve_job(inputs, job_file, flags).spec)
    expression, zone = when.checked_cron(cron), when.checked_timezone(timezone)
    name = registered_job.name_for(found, name)
    _need_server()
    for missing in registered_job.missing_inputs(found):
        click.echo(f"Note: {missing} is not there (yet); a run that does not find it fails.", err=True)

    from audiobatch_flows import schedules

    scheduled, is_new = asyncio.run(schedules.register(found, name=name, cron=expression, timezone=zone))
    click.echo(f"{'Scheduled' if is_new else 'Changed'}: {scheduled.name}")
    click.echo(f"  {', '.join(found.inputs)} → {scheduled.output}")
    click.echo(f"  {scheduled.cron} ({scheduled.timezone}){_next(scheduled)}")
    if scheduled.work_pool is None:
        click.echo("It runs while `audiobatch serve` does.", err=True)
    return 0


@schedule.command("list", short_help="What is registered, when it runs next, how it last ended.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
def list_(*, as_json: bool) -> int:
    """List the registered jobs."""
    _need_server()

    from audiobatch_flows import schedules

    for note in asyncio.run(schedules.update_entrypoints()):
        click.echo(f"Note: {note}", err=True)
    known = asyncio.run(schedules.registered(planned=True))
    if as_json:
        click.echo(json.dumps([_as_json(scheduled) for scheduled in known], ensure_ascii=False))
        return 0
    if not known:
        click.echo("Nothing is scheduled.", err=True)
    for scheduled in known:
        click.echo(f"{scheduled.name}")
        click.echo(f"  {scheduled.cron or 'no cron'} ({scheduled.timezone or 'UTC'}){_next(scheduled)}")
        click.echo(f"  last: {scheduled.last or 'never run'}")
        click.echo(f"  {', '.join(scheduled.job.get('inputs', []))} → {scheduled.output}")
        if scheduled.work_pool is not None:
            click.echo(f"  run by the workers of pool {scheduled.work_pool}")
    return 0


_names = click.argument("names", nargs=-1, required=True, metavar="NAME…")


@schedule.command(short_help="Let jobs fire no more, until they are resumed.")
@_names
def pause(names: tuple[str, ...]) -> int:
    """Let jobs fire no more until `audiobatch schedule resume`. A run at work goes on."""
    return _for_each(names, "pause", "Paused")


@schedule.command(short_help="Let paused jobs fire again.")
@_names
def resume(names: tuple[str, ...]) -> int:
    """Let paused jobs fire again. What they missed is not made up for: the next run sends all that is new."""
    return _for_each(names, "resume", "Resumed")


@schedule.command(short_help="Forget jobs; their results stay.")
@_names
def remove(names: tuple[str, ...]) -> int:
    """Forget jobs. Their results stay where they are, their runs stay in Prefect."""
    return _for_each(names, "remove", "Removed")


def _for_each(names: tuple[str, ...], what: str, said: str) -> int:
    _need_server()

    from audiobatch_flows import schedules

    async def work() -> None:
        # All are looked up before any is changed: a misspelt name changes nothing.
        found = [await schedules.named(name) for name in names]
        for scheduled in found:
            await getattr(schedules, what)(scheduled)
            click.echo(f"{said}: {scheduled.name}")

    asyncio.run(work())
    return 0


def _need_server() -> None:
    from audiobatch_flows.server import quiet_prefect, require_server

    quiet_prefect()
    require_server("Schedules")


def _next(scheduled: Scheduled) -> str:
    """Return when it runs next, as far as that is known: the server plans a few seconds after a change."""
    if scheduled.paused:
        return ", paused"
    if scheduled.next_at is None:
        return ""
    return f", next {scheduled.next_at.astimezone():%Y-%m-%d %H:%M}"


def _as_json(scheduled: Scheduled) -> dict[str, Any]:
    return {
        "name": scheduled.name,
        "cron": scheduled.cron,
        "timezone": scheduled.timezone,
        "paused": scheduled.paused,
        "next_at": scheduled.next_at.isoformat() if scheduled.next_at else None,
        "last": scheduled.last,
        "output": scheduled.output,
        "work_pool": scheduled.work_pool,
        "job": scheduled.job,
    }
