"""One process that runs every registered job when it is due: Prefect's runner, with an end in order.

Each due run is a process of its own (`python -m prefect.engine`), so that one cannot take the others along. Jobs
that are registered later are taken up within `LOOK_EVERY_S`; those that are removed or paused never come due.
Stopping the process pauses nothing: schedules live in Prefect's server, and the next `serve` goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from prefect.client.orchestration import get_client
from prefect.runner import Runner
from prefect.states import Failed

from audiobatch_flows import prefect_private, registered_job, schedules, signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from audiobatch_flows.schedules import Scheduled

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
#: Prefect kills a run 30 s after it has asked it to stop. What is not over by then waits for a server that is gone.
STOP_S = 75.0


@dataclass(frozen=True, slots=True)
class _Known:
    """A deployment as the runner wants to add it; it is registered already, with all it needs."""

    id: UUID
    name: str
    storage: None = None

    async def aapply(self) -> UUID:
        return self.id


class RunRefused(Exception):
    """A flow run that is not started; the message says why."""


@dataclass(frozen=True, slots=True)
class _Guard:
    """Which runs are started, and as what.

    Attributes:
        accepted: where each job's calls go, as it was when it was taken up.
    """

    said: Callable[[str], None]
    accepted: dict[UUID, dict[str, Any]] = field(default_factory=dict)

    def take_up(self, scheduled: Scheduled) -> None:
        """Accept where a job's calls go; a later change of that is not accepted."""
        self.accepted.setdefault(scheduled.id, registered_job.destinations(scheduled.job))

    async def entrypoint_of(self, run: FlowRun) -> str:
        """Return which flow of ours to start, whatever the deployment says by now.

        Raises:
            RunRefused: the run would send the credentials elsewhere, or run what we did not write.
        """
        if run.deployment_id is None or run.deployment_id not in self.accepted:
            raise RunRefused("refused: this process does not serve its job")
        now = await schedules.current(run.deployment_id)
        if why := registered_job.refusal(self.accepted[now.id], now, run.parameters):
            self.said(f"Refused a run of {now.name}: {why}")
            async with get_client() as client:  # what is raised here, Prefect reports as "1 sub-exception"
                await client.set_flow_run_state(run.id, Failed(message=f"refused: {why}"), force=True)
            raise RunRefused(f"refused: {why}")
        return schedules.entrypoint_of(now.flow)


class _GuardedRunner(Runner):
    """Prefect's runner, which asks the guard before each start."""

    def __init__(self, guard: _Guard, *, limit: int) -> None:
        super().__init__(name="audiobatch", pause_on_shutdown=False, limit=limit, query_seconds=LOOK_EVERY_S)
        self._guard = guard

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        prefect_private.check_before_start(self, self._guard.entrypoint_of)
        return self


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Return whether a log record is no refusal: those are said in a line, without Prefect's traceback."""
    raised = record.exc_info[1] if record.exc_info else None
    inner = raised.subgroup(RunRefused) if isinstance(raised, ExceptionGroup) else raised
    return not isinstance(inner, RunRefused | ExceptionGroup)


async def serve(*, limit: int, said: Callable[[str], None]) -> None:
    """Run what is due until Ctrl-C or SIGTERM; runs at work are then stopped in order, and waited for.

    Args:
        limit: so many runs at once, each a process; what is due beyond waits for one to end.
        said: is given lines for people: what is served, and what becomes of it.
    """
    prepare_children()
    logging.getLogger("prefect.runner").addFilter(_is_no_refusal)
    logging.getLogger("prefect.runner.flow_run_executor").addFilter(_is_no_refusal)
    for note in await schedules.update_entrypoints():
        said(note)
    served: dict[UUID, Scheduled] = {}
    guard = _Guard(said)
    runner = _GuardedRunner(guard, limit=limit)
    stopped = asyncio.Event()
    running = asyncio.create_task(_started(runner, stopped))
    watching = asyncio.create_task(_follow_registrations(runner, guard, served, said))
    asked = asyncio.create_task(stopped.wait())
    await asyncio.wait([running, watching, asked], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    await asyncio.wait([watching])
    if not running.done():
        said("Stopping: runs at work may end their calls in flight.")
        signals.end_process_after(0, STOP_S)
        await runner.astop()
    asked.cancel()
    await running
    if not watching.cancelled() and (failed := watching.exception()):
        raise failed


def prepare_children() -> None:
    """Have the processes of single runs import nothing from the working folder."""
    os.environ["PYTHONSAFEPATH"] = "1"


async def _started(runner: Runner, stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    asked = 0

    def stop(number: int, _frame: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:  # runs at work have been asked to stop, and do so without us
            os._exit(128 + number)
        loop.call_soon_threadsafe(stopped.set)

    async with contextlib.AsyncExitStack() as stack:
        before = {number: signal.getsignal(number) for number in signals.REASONS}
        stack.callback(lambda: [signal.signal(number, handler) for number, handler in before.items()])
        # The runner sets a handler of its own as it starts, which ends the process with its runs half stopped.
        loop.call_soon(lambda: [signal.signal(number, stop) for number in signals.REASONS])
        await runner.start()


async def _follow_registrations(
    runner: Runner, guard: _Guard, served: dict[UUID, Scheduled], said: Callable[[str], None]
) -> None:
    """Let the runner know of every job that is registered, from now on and later."""
    while True:
        try:
            now = {
                scheduled.id: scheduled
                for scheduled in await schedules.registered()
                if scheduled.work_pool is None
            }
        except Exception:
            log.warning("the registered jobs could not be read", exc_info=True)
            await asyncio.sleep(LOOK_EVERY_S)
            continue
        for scheduled in now.values():
            if scheduled.id not in served:
                guard.take_up(scheduled)
                await runner.aadd_deployment(_Known(scheduled.id, scheduled.name))  # type: ignore[arg-type]
        for text in changes(served, now):
            said(text)
        served.clear()
        served.update(now)
        await asyncio.sleep(LOOK_EVERY_S)


def changes(before: dict[UUID, Scheduled], now: dict[UUID, Scheduled]) -> list[str]:
    """Return what became of the registered jobs since the last look, a line each."""
    lines = []
    for key, scheduled in now.items():
        text = f"{scheduled.cron or 'no cron'} ({scheduled.timezone or 'UTC'}) → {scheduled.output}"
        if scheduled.paused:
            text += ", paused"
        earlier = before.get(key)
        if earlier is None:
            lines.append(f"Serving {scheduled.name}: {text}")
        elif (earlier.cron, earlier.timezone, earlier.paused, earlier.job) != (
            scheduled.cron,
            scheduled.timezone,
            scheduled.paused,
            scheduled.job,
        ):
            lines.append(f"Changed {scheduled.name}: {text}")
    lines += [f"Removed {scheduled.name}" for key, scheduled in before.items() if key not in now]
    return lines
