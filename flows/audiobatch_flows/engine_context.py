"""The run's engine, where Prefect's flows and tasks can reach it without taking it as a parameter.

Prefect looks into every parameter, stores it and shows it; an engine is not for it. The variables live
in a module of their own: one defined in a flow's module cannot be pickled when that flow is served.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from audiobatch.calls.stats import RunSummary
    from audiobatch.execution.job import Job
    from audiobatch.planning.plan import Plan


@dataclass(slots=True)
class Engine:
    """An open job that a flow is to run.

    Attributes:
        plan: None until the job is prepared; the flow prepares it where the caller has not.
        send: how the plan's items are sent; None: by this flow's own tasks.
        summary: set by the flow at its end, whatever its state is then.
    """

    job: Job
    plan: Plan | None = None
    send: Callable[[Job, Plan], Awaitable[None]] | None = None
    summary: RunSummary | None = None


#: An engine that the caller of a flow has opened for it, while Prefect's server was still starting.
prepared: ContextVar[Engine | None] = ContextVar("prepared", default=None)
#: The job whose shards the tasks of this flow run work on.
current_job: ContextVar[Job] = ContextVar("current_job")
