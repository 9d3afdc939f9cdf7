"""`audiobatch server`: Prefect's server, set up so that it loses nothing."""

from __future__ import annotations

import click

from audiobatch_flows.standing_server import DEFAULT_PORT


@click.command(short_help="Start Prefect's server: pages, schedules, notifications.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: a free one."
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Another name by which the server may be addressed. Repeatable.",
)
@click.option("--no-auth", is_flag=True, help="Let others on the network reach it without a login.")
def server(host: str, port: int, names: tuple[str, ...], *, no_auth: bool) -> int:
    """Start Prefect's server and keep it running until Ctrl-C.

    It is Prefect's own, with its web pages, its scheduler and its automations, on its usual database
    (PREFECT_HOME, or PREFECT_API_DATABASE_CONNECTION_URL for PostgreSQL). Set here, unless you have set it
    otherwise: task states are recorded in batches (one by one, the server loses states of large jobs), no
    telemetry, and pages that ask this port.

    Requests must name this server in their Host header: 127.0.0.1, localhost, [::1], the address of --host, or an
    --allow-host. Web pages of other origins are refused. A --host that others can reach needs a login:
    PREFECT_SERVER_API_AUTH_STRING=user:password here, PREFECT_API_AUTH_STRING for those who connect.

    \b
    Others find it by its address:
      export PREFECT_API_URL=http://127.0.0.1:4200/api
    """  # noqa: D301 - click's mark for lines as they are
    from audiobatch_flows import standing_server

    click.echo("Starting Prefect's server …", err=True)
    standing_server.serve(host, port, names=names, without_auth=no_auth, ready=_say_ready)
    click.echo("Prefect's server has ended.", err=True)
    return 0


def _say_ready(origin: str) -> None:
    click.echo(f"Pages:    {origin}")
    click.echo(f"For runs: export PREFECT_API_URL={origin}/api")
    click.echo("Ctrl-C ends it.", err=True)
