"""`audiobatch run`: the main job, as a Prefect flow or without."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from audiobatch.errors import AudioBatchError
from audiobatch_flows.cli.options import JobCommand, job_options, resolve_job, workers_options
from audiobatch_flows.cli.worker_options import workers_for
from audiobatch_flows.registered_job import from_anywhere
from audiobatch_flows.server import require_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from audiobatch.calls.stats import RunSummary
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.job import Job
    from audiobatch.planning.plan import Plan, Retry
    from audiobatch_flows.cli.worker_options import Workers
    from audiobatch_flows.server import EmbeddedServer


@click.command(cls=JobCommand, short_help="Send a folder of recordings or prompts, save what comes back.")
@job_options
@click.option(
    "--no-prefect", is_flag=True, help="Run the engine without Prefect: starts faster, keeps no flow run."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, last on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@click.option(
    "--watch",
    is_flag=True,
    help="Run again whenever files have arrived, until Ctrl-C; each file once two looks find it unchanged.",
)
@click.option(
    "--watch-every",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: time between two looks.",
)
@workers_options
def run(  # noqa: PLR0913 - an argument for each option
    inputs: tuple[str, ...],
    job_file: Path | None,
    *,
    workers: int | None,
    work_pool: str | None,
    dask: str | None,
    watch: bool,
    watch_every: float,
    no_prefect: bool,
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Send recordings or prompts, save the spoken replies and transcripts, and write a manifest.

    INPUT is a folder of recordings or of .txt prompts, a single file, a table of prompts (.csv, .xlsx, .jsonl),
    or - for JSON Lines on standard input. A second run sends only what is new, changed, or failed for a
    reason that may pass.

    With --watch each batch of arrivals is a run of its own: --max-cost and --limit hold for each, --max-total-cost
    for all. What failed for a reason that may pass is sent again after a quarter of an hour. It ends at Ctrl-C or
    SIGTERM (calls in flight may end; 130 or 143), at --stop-at (5), and with a batch's own code where the next one
    would end the same way: 1, 2, 4 and 6.

    With --workers N, N workers make the calls, and this run finds, plans and reports: processes of this machine,
    flow runs on a Prefect --work-pool, or tasks on a --dask cluster. They need a --ledger in PostgreSQL.

    \b
    Exit codes: 0 all done · 2 settings · 3 some rows failed, were refused or are unknown ·
    4 no usable credential or deployment · 5 parked, run again later · 6 a limit was reached ·
    130/143 interrupted
    """  # noqa: D301 - click's mark for lines as they are
    spec = resolve_job(inputs, job_file, flags).spec
    backend = workers_for(spec, workers, pool=work_pool, dask=dask, prefect=not no_prefect, watch=watch)
    if backend is not None:
        spec = from_anywhere(spec)
    if work_pool:
        require_server("Work pools")
    server = None if no_prefect else start_server()
    if watch:
        return watch_to_end(
            spec, every_s=watch_every, server=server, prefect=not no_prefect, as_json=as_json, quiet=quiet
        )
    return run_to_end(
        spec, server=server, prefect=not no_prefect, as_json=as_json, quiet=quiet, workers=backend
    )


def run_to_end(
    spec: JobSpec,
    *,
    server: EmbeddedServer | None,
    prefect: bool,
    as_json: bool,
    quiet: bool,
    retry: Retry | None = None,
    workers: Workers | None = None,
) -> int:
    """Run a job, show it, print its summary; return the exit code. `retry`: only what this selects."""
    try:
        summary = asyncio.run(
            _run(
                spec,
                server=server,
                prefect=prefect,
                as_json=as_json,
                quiet=quiet,
                retry=retry,
                workers=workers,
            )
        )
    except AudioBatchError:
        if server is not None:
            server.abandon()
        raise
    return summary.exit_code


def watch_to_end(
    spec: JobSpec,
    *,
    every_s: float,
    server: EmbeddedServer | None,
    prefect: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the job whenever its inputs have changed; return the exit code of the last batch or the stop."""
    from audiobatch_flows.cli.watch import Watch

    async def batch(on_open: Callable[[Job], None]) -> RunSummary:
        return await _run(
            spec, server=server, prefect=prefect, as_json=as_json, quiet=quiet, retry=None, on_open=on_open
        )

    def said(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    try:
        return asyncio.run(Watch(spec, batch, said, look_every_s=every_s).until_ended())
    except AudioBatchError:
        if server is not None:
            server.abandon()
        raise


def start_server() -> EmbeddedServer | None:
    """Start Prefect's server as a child, unless the user has one; discovery goes on meanwhile.

    It ends when this process does, after Prefect has sent it the last events.

    Raises:
        ConfigError: the user's own server does not answer.
    """
    from audiobatch_flows import prefect_private
    from audiobatch_flows.server import EmbeddedServer, quiet_prefect, require_answer, trouble_with

    quiet_prefect()
    if address := prefect_private.api_url():
        require_answer(address)
        if trouble := trouble_with(address):
            click.echo(f"Note: {trouble}", err=True)
        return None
    server = EmbeddedServer()
    server.start()
    return server


async def _run(
    spec: JobSpec,
    *,
    server: EmbeddedServer | None,
    prefect: bool,
    as_json: bool,
    quiet: bool,
    retry: Retry | None,
    on_open: Callable[[Job], None] | None = None,
    workers: Workers | None = None,
) -> RunSummary:
    """Run the job once. With `on_open`, which is given the open job, the server stays for the next run."""
    from audiobatch.execution.job import Job, run_shards
    from audiobatch_flows import progress, signals, summary_text

    async with Job.open(spec, retry=retry, sends=workers is None) as job:
        if on_open is not None:
            on_open(job)
        # Prefect takes seconds to import: they pass while inputs are found and probed.
        flow = _meanwhile(_flow_for, spec) if prefect else None
        # With Prefect the process ends with the run, so that a second signal cannot break its last steps.
        with signals.on_signals(job.stop, in_flight=partial(progress.in_flight, job), keep_handlers=prefect):
            async with progress.shown(job, quiet=quiet):
                plan = await job.prepare()
                idle = not plan.to_send and (server is not None or on_open is not None)
                if idle and server is not None and on_open is None:
                    server.abandon()
                if flow is None or idle:
                    if workers is not None:
                        await workers.send(job, plan)
                    else:
                        await run_shards(job, plan.shards, plan.shards_at_once)
                    summary = await job.finish()
                else:
                    summary = await _as_flow(await asyncio.wrap_future(flow), job, plan, server, workers)
        if not quiet and on_open is None:
            progress.print_closing(summary)
            if summary.failed or summary.refused or summary.unknown:
                progress.say_why(await asyncio.to_thread(job.reasons))
        elif not quiet:
            click.echo(f"{datetime.now().astimezone():%H:%M:%S} {summary_text.headline(summary)}")
        if summary.message:
            progress.warn(summary.message)
        # Here and not after the event loop's end, which a dead Prefect server can put off for ever.
        if as_json:
            click.echo(json.dumps(summary.as_json(), ensure_ascii=False))
            sys.stdout.flush()
    return summary


async def _as_flow(
    flow: Any, job: Job, plan: Plan, server: EmbeddedServer | None, workers: Workers | None
) -> RunSummary:
    from audiobatch_flows import engine_context, launch

    if server is not None:
        await server.wait_healthy()
    send = None if workers is None else workers.send
    return await launch.as_flow(flow, engine_context.Engine(job=job, plan=plan, send=send))


def _flow_for(spec: JobSpec) -> Any:
    from audiobatch_flows.flow import flow_for

    return flow_for(spec)


def _meanwhile(work: Callable[[JobSpec], Any], spec: JobSpec) -> Future[Any]:
    """Work in a thread that nothing waits for at the end: a run that stops early ends at once."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work(spec))
        except BaseException as failed:  # noqa: BLE001 - whoever awaits it is told
            done.set_exception(failed)

    threading.Thread(target=run, daemon=True, name="import-prefect").start()
    return done
