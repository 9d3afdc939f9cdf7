"""The pool of a job: its deployments with their limits, and the account that each call is paid from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.limits.limiter import Limiter
from audiobatch.limits.pool import Deployment, Pool
from audiobatch.limits.spending import Spending

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target


def pool_of(
    spec: JobSpec, targets: Sequence[Target], *, spent_before: Decimal, most_calls: int | None = None
) -> Pool:
    """One for a run, shared by everything that calls.

    Args:
        spec: the job.
        targets: where its calls can go.
        spent_before: what the folder's calls can have cost so far, in USD.
        most_calls: that this process has room for at once; None: as many as wanted.
    """
    deployments = [
        Deployment(
            name=one.name,
            limiter=Limiter(max_concurrency=one.max_concurrency, rpm=one.rpm, tpm=one.tpm),
            priority=one.priority,
            named_only=one.named_only,
        )
        for one in targets
    ]
    spending = Spending(run_cap=spec.max_cost, total_cap=spec.max_total_cost, spent_before=spent_before)
    return Pool(
        deployments,
        spending=spending,
        waits_for_parked=spec.wait,
        max_concurrency=min(
            (most for most in (spec.max_concurrency if len(targets) > 1 else None, most_calls) if most),
            default=None,
        ),
    )
