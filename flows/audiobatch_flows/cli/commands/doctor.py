"""`audiobatch doctor`: is everything there that a run needs, and if not, what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from audiobatch.errors import ExitCode
from audiobatch_flows.cli.options import JobCommand, job_options, resolve_job

if TYPE_CHECKING:
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.maintenance.doctor import Finding

_TIMEOUT_S = 5.0


@click.command(cls=JobCommand, short_help="Check credentials, endpoint, codecs, output and Prefect.")
@job_options
@click.option(
    "--call", is_flag=True, help="Also ask each deployment one short question, which costs a little."
)
def doctor(inputs: tuple[str, ...], job_file: Path | None, *, call: bool, **flags: Any) -> int:
    """Check what `run` with the same arguments would need: each line ok or failed, and what to do.

    Exit code 0 where all is well, 4 where something is not.
    """
    spec = resolve_job(inputs, job_file, flags).spec
    return asyncio.run(_examine(spec, call=call))


async def _examine(spec: JobSpec, *, call: bool) -> int:
    from audiobatch.maintenance.doctor import examine

    well = True
    async for finding in examine(spec, call=call):
        well = _show(finding) and well
    well = _show(await asyncio.to_thread(prefect_server)) and well
    return ExitCode.DONE if well else ExitCode.NO_DEPLOYMENT


def prefect_server() -> Finding:
    """Return the server that Prefect's settings name, or the embedded one that a run starts for itself."""
    from audiobatch.maintenance.doctor import Finding
    from audiobatch_flows.prefect_private import api_url
    from audiobatch_flows.server import answers

    address = api_url()
    if address is None:
        return Finding(
            what="prefect", ok=True, message="no PREFECT_API_URL: a run starts a server of its own"
        )
    if answers(address, _TIMEOUT_S):
        return Finding(what="prefect", ok=True, message=f"the server at {address} answers")
    advice = "start it, unset PREFECT_API_URL, or run with --no-prefect"
    return Finding(what="prefect", ok=False, message=f"{address} does not answer", advice=advice)


def _show(finding: Finding) -> bool:
    mark = "ok    " if finding.ok else "FAILED"
    click.echo(f"{mark}  {finding.what:<28}  {finding.message}")
    if not finding.ok and finding.advice:
        click.echo(f"{'':<38}{finding.advice}")
    return finding.ok
