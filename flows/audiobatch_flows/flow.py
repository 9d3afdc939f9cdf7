"""The flows for people: recordings in, or text prompts in; spoken replies, transcripts and a manifest out.

Both open the job, run its shards and write the reports. The end is a state of Prefect's:

    exit code 0         Completed
    3                   Completed, with a message and the tag `partial`
    5                   Failed, called Parked: the next run goes on
    130, 143            Cancelled
    the rest            Failed

A scheduled run whose folder is at work already, or that finds no input yet, is Completed, called Skipped.

A direct caller gets the summary for the first two and a typed error, which carries it, for the others.

Prefect's task is a shard of items, never one item: a task run costs Prefect's server some 20 ms, and a burst of
thousands loses states. So a job has at most some 500 shards, and a small job has one for each item. Outcomes of
items are data: a shard fails only where this program does. The ledger remembers what is done, so Prefect neither
retries, caches nor stores anything here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from datetime import datetime
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from audiobatch.calls.stats import RunSummary  # noqa: TC001
from audiobatch.config.jobspec import JobSpec  # noqa: TC001 - Prefect reads both types as it makes the parameter form
from audiobatch.errors import AudioBatchError, ExitCode, FolderInUse, NothingFound
from audiobatch.stop import HURRIED, StopReason
from audiobatch_flows import (
    artifacts,
    engine_context,
    prefect_private,
    progress,
    signals,
    stale_runs,
    summary_text,
)
from audiobatch_flows.endings import RunFailed, RunInterrupted

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas import State

    from audiobatch.execution.job import Job, ShardResult
    from audiobatch.planning.plan import Plan, Shard

log = logging.getLogger(__name__)


def run_name() -> str:
    """Name a flow run of either flow in Prefect: `recordings → outputs/recordings`."""
    from prefect.runtime import flow_run

    spec = flow_run.parameters["job"]
    first = PurePath(spec.inputs[0]).name or spec.inputs[0] if spec.inputs else "nothing"
    more = f" +{len(spec.inputs) - 1}" if len(spec.inputs) > 1 else ""
    return f"{first}{more} → {spec.output or f'outputs/{first}'}"


@flow(
    name="process-folder",
    flow_run_name=run_name,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def process_folder(job: JobSpec) -> RunSummary:
    """Send each recording of the job's inputs, with the job's prompt, and save the replies.

    Args:
        job: What to send and where to save; no secret. Credentials come from the environment of the process.

    Returns:
        Counts, cost and the manifest's path, once all is done or the rest failed for good (exit codes 0 and 3).

    Raises:
        RunFailed: the run stopped before its end; `summary` says what was done.
        RunInterrupted: … by a signal or a cancellation, after what was in flight had ended.
        ConfigError: nothing was sent.
    """
    return await _run_job(job)


@flow(
    name="speak-prompts",
    flow_run_name=run_name,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def speak_prompts(job: JobSpec) -> RunSummary:
    """Have each prompt of the job's inputs answered in speech, or read aloud, and save the replies.

    Args:
        job: What to send and where to save; no secret. Credentials come from the environment of the process.

    Returns:
        Counts, cost and the manifest's path, once all is done or the rest failed for good (exit codes 0 and 3).

    Raises:
        RunFailed: the run stopped before its end; `summary` says what was done.
        RunInterrupted: … by a signal or a cancellation, after what was in flight had ended.
        ConfigError: nothing was sent.
    """
    return await _run_job(job)


def flow_for(spec: JobSpec) -> Any:
    """Return the flow that a job's inputs call for: recordings in a folder, or prompts."""
    from audiobatch.address import Address, parse_location
    from audiobatch.audio.probe import looks_like_audio

    def has_sound(given: str) -> bool:
        path = parse_location(given)
        if isinstance(path, Address):
            return not path.suffix or looks_like_audio(given)  # a name is not worth a listing
        return looks_like_audio(given) or (
            path.is_dir() and any(looks_like_audio(name) for _, _, names in os.walk(path) for name in names)
        )

    return flow_named("process-folder" if any(has_sound(given) for given in spec.inputs) else "speak-prompts")


def flow_named(name: str) -> Any:
    """Return the flow that Prefect knows by this name: `process-folder` or `speak-prompts`."""
    return process_folder if name == "process-folder" else speak_prompts


def shard_name() -> str:
    """Name the task run in Prefect: `items 51-100`, by position in input order."""
    from prefect.runtime import task_run

    shard: Shard = task_run.parameters["shard"]
    first, last = shard.first_position, shard.last_position
    return f"item {first}" if first == last else f"items {first}-{last}"


@task(
    name="shard",
    task_run_name=shard_name,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def process_shard(shard: Shard) -> ShardResult:
    """Send the items of one shard, as far as no stop was asked for."""
    return await engine_context.current_job.get().run_shard(shard)


async def run_shards(job: Job, plan: Plan) -> None:
    """Run the plan's shards, `shards_at_once` side by side, in this event loop.

    One limiter and one client serve them all. A shard that fails stops the others orderly: what they have in
    flight is paid for and gets recorded.
    """
    gate = asyncio.Semaphore(plan.shards_at_once)
    token = engine_context.current_job.set(job)

    async def run(shard: Shard) -> None:
        async with gate:
            if job.stop.asked:
                return
            try:
                await process_shard(shard)
            except Exception as failed:
                log.exception("shard %s failed", shard.number)
                job.stop.ask(StopReason.INTERNAL, f"{type(failed).__name__}: {failed}")

    try:
        await asyncio.gather(*(run(shard) for shard in plan.shards))
    finally:
        engine_context.current_job.reset(token)


async def _run_job(spec: JobSpec) -> RunSummary:
    """Run the job inside a flow, on the engine that the caller has prepared or on one of its own.

    Returns, for Prefect, a state that carries the summary; Prefect hands it to the flow's caller as
    the summary itself, or raises `RunFailed` or `RunInterrupted`, which carry it.
    """
    try:
        state = await _state(spec)
    except (FolderInUse, NothingFound) as idle:
        state = _skipped(idle) if _is_scheduled() else Failed(message=idle.message, data=idle)
    except AudioBatchError as failed:
        # As a state, it is logged in one line; raised, Prefect would add a page of its own frames.
        state = Failed(message=failed.message, data=failed)
    if prefect_private.is_child_of_runner() and state.is_completed():
        # Any other end Prefect itself logs, as an error.
        signals.say(f"{datetime.now().astimezone():%H:%M:%S} {run_name()}: {state.message}")
    return cast("RunSummary", state)


async def _state(spec: JobSpec) -> State[Any]:
    from audiobatch.execution.job import Job

    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run_id = context.flow_run.id
    engine = engine_context.prepared.get()
    ours = engine is not None and engine.job.spec == spec
    # Our command line, or a process that Prefect started for this one flow run: it ends with the run.
    ends_with_run = ours or prefect_private.is_child_of_runner()
    async with contextlib.AsyncExitStack() as stack:
        if engine is None or not ours:
            engine = engine_context.Engine(job=await stack.enter_async_context(Job.open(spec)))
        job = engine.job
        await stack.enter_async_context(stale_runs.working_on(job, run_id))
        stack.enter_context(
            signals.on_signals(
                job.stop, in_flight=partial(progress.in_flight, job), keep_handlers=ends_with_run
            )
        )
        async with signals.on_cancellation(job.stop, lambda: is_cancelling(run_id)):
            await tag(run_id, "audiobatch", spec.provider, spec.deployment or spec.model)
            async with artifacts.live_progress(job):
                plan = engine.plan or await job.prepare()
                await (engine.send or run_shards)(job, plan)
                engine.summary = summary = await job.finish()
        await artifacts.at_the_end(job, summary)
        if summary.exit_code == ExitCode.PARTIAL:
            await tag(run_id, "partial")
        if ends_with_run and job.stop.hurried.is_set():
            signals.end_process_after(summary.exit_code)
    return state_of(summary)


def state_of(summary: RunSummary) -> State[Any]:
    """Return the flow run's last state; its data is what the flow's caller gets or has raised."""
    headline = summary_text.headline(summary)
    message = f"{summary.message} {headline}".strip() if summary.message else headline
    if summary.exit_code in {ExitCode.DONE, ExitCode.PARTIAL}:
        return Completed(message=message, data=summary)
    if summary.stopped_by in HURRIED:
        return Cancelled(message=message, data=RunInterrupted(message, summary))
    failed: State[Any] = Failed(message=message, data=RunFailed(message, summary))
    if summary.exit_code == ExitCode.PARKED:
        failed.name = "Parked"
    return failed


def _skipped(idle: FolderInUse | NothingFound) -> State[Any]:
    """Return the state of a scheduled run that found another at work, or no input: Completed, named Skipped."""
    # Without the advice that follows, which is for somebody at a terminal.
    who, _, _ = idle.message.partition(". Wait until")
    why = f"the last run is still at work: {who}" if isinstance(idle, FolderInUse) else f"nothing yet: {who}"
    return Completed(name="Skipped", message=f"skipped: {why}")


def _is_scheduled() -> bool:
    """Return whether a deployment made this run, on schedule or by a click."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


async def is_cancelling(run_id: UUID) -> bool:
    """Return whether somebody has cancelled this flow run."""
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    return run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled())


async def tag(run_id: UUID, *tags: str) -> None:
    """Add tags to those that the flow run has; a run does not fail for want of them."""
    try:
        async with asyncio.timeout(artifacts.PATIENCE_S), get_client() as client:
            run = await client.read_flow_run(run_id)
            await client.update_flow_run(run_id, tags=[*dict.fromkeys((*run.tags, *tags))])
    except Exception:
        log.warning("tags could not be set", exc_info=True)
