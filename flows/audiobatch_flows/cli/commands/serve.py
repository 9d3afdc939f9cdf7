"""`audiobatch serve`: run the registered jobs when they are due."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime

import click


@click.command(short_help="Run scheduled jobs when they are due, until Ctrl-C.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Runs at once, each a process; what is due beyond waits for one to end.",
)
def serve(limit: int) -> int:
    """Run the jobs of `audiobatch schedule` whenever they are due, until Ctrl-C.

    One process serves all of them, also those registered while it runs; each run is a process of its own, with
    this one's environment: its credentials, its working folder's `.env`. It needs PREFECT_API_URL (`audiobatch
    server` starts a server).

    Ctrl-C and SIGTERM stop runs at work in order: calls in flight may end, the rest is for the next run. No
    schedule is paused by it; what came due while nobody served is started by the next `serve`, once.
    """
    from audiobatch_flows.server import quiet_prefect, require_server, trouble_with

    # What fails before a run's own code is reached is reported by Prefect alone.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
    quiet_prefect()
    address = require_server("Schedules")
    if trouble := trouble_with(address):
        click.echo(f"Note: {trouble}", err=True)

    from audiobatch_flows import serving

    click.echo(f"Serving the jobs registered at {address}; Ctrl-C ends it, and pauses nothing.", err=True)
    asyncio.run(serving.serve(limit=limit, said=_say))
    click.echo("Ended. The schedules stay as they are; `audiobatch serve` goes on with them.", err=True)
    return 0


def _say(text: str) -> None:
    click.echo(f"{datetime.now().astimezone():%H:%M:%S} {text}", err=True)
