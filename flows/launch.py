"""Run an open job as a Prefect flow, and get its summary whatever the flow's state is at the end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flows import engine_context, stopping
from flows.endings import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pipeline.execute import RunSummary
    from pipeline.jobspec import JobSpec

log = logging.getLogger(__name__)


async def as_flow(
    flow: Callable[[JobSpec], Coroutine[Any, Any, RunSummary]], engine: engine_context.Engine
) -> RunSummary:
    """Run `engine.job` by `flow`, one of this package's.

    Results are in the ledger before Prefect hears of them: where its server is gone by the end of the run, that
    is said on standard error, and the summary is returned all the same.

    Raises:
        ConfigError: nothing was sent.
        Exception: Prefect failed before the job had its summary.
    """
    token = engine_context.prepared.set(engine)
    try:
        return await flow(engine.job.spec)
    except RunFailed as ended:
        return ended.summary
    except Exception as failed:
        if engine.summary is None:
            raise
        log.warning("Prefect failed at the end of the run", exc_info=True)
        stopping.say(
            f"Prefect could not record the end of this run ({type(failed).__name__}); the results are safe."
        )
        return engine.summary
    finally:
        engine_context.prepared.reset(token)
