"""Run an open job as a Prefect flow, and get its summary whatever the flow's state is at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from audiobatch_flows import engine_context, prefect_private, server, signals
from audiobatch_flows.endings import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from audiobatch.calls.stats import RunSummary
    from audiobatch.config.jobspec import JobSpec

log = logging.getLogger(__name__)

POLL_S = 0.5
PATIENCE_S = 15.0
ANSWER_S = 5.0
#: A server that answers, if late, is waited for: on a busy machine its last records take their time.
LONGEST_S = 120.0


async def as_flow(
    flow: Callable[[JobSpec], Coroutine[Any, Any, RunSummary]], engine: engine_context.Engine
) -> RunSummary:
    """Run `engine.job` by `flow`, one of this package's, in a process that ends with the run.

    Results are in the ledger before Prefect hears of them. Where its server is gone by then, Prefect tries for
    minutes; after `PATIENCE_S` that is said on standard error, the summary is returned, and the process is ended
    soon after, for what Prefect leaves running cannot be stopped. One that answers gets up to `LONGEST_S`.

    Raises:
        ConfigError: nothing was sent.
        Exception: Prefect failed before the job had its summary.
    """
    token = engine_context.prepared.set(engine)
    try:
        running = asyncio.ensure_future(flow(engine.job.spec))
    finally:
        engine_context.prepared.reset(token)
    ended_at: float | None = None
    while not running.done():
        await asyncio.wait([running], timeout=POLL_S)
        if engine.summary is not None and ended_at is None:
            ended_at = time.monotonic()
        waited_s = time.monotonic() - ended_at if ended_at is not None else 0.0
        if waited_s > LONGEST_S or (waited_s > PATIENCE_S and not await asyncio.to_thread(_server_answers)):
            break
    if running.done():
        try:
            return running.result()
        except RunFailed as ended:
            return ended.summary
        except Exception:
            if engine.summary is None:
                raise
            log.warning("Prefect failed at the end of the run", exc_info=True)
    assert engine.summary is not None
    signals.say("Prefect's server could not record the end of this run; the results are safe.")
    signals.end_process_after(engine.summary.exit_code)
    return engine.summary


def _server_answers() -> bool:
    address = prefect_private.api_url()
    return address is not None and server.answers(address, ANSWER_S)
