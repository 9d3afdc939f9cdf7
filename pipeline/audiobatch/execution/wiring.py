"""Opens what a run needs to make calls: its deployments, their limits, and the count of earlier spending."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
from typing import TYPE_CHECKING

from audiobatch import descriptors
from audiobatch.address import is_remote
from audiobatch.calls.context import CallContext
from audiobatch.calls.feedback import CallFeedback
from audiobatch.calls.item import ItemRunner
from audiobatch.config.targets import check_prices, with_named
from audiobatch.execution.local_emulator import local_service
from audiobatch.inputs.sound_settings import finish_of
from audiobatch.limits.concurrency import Gate
from audiobatch.limits.limiter import Limiter
from audiobatch.limits.pool import Deployment, Pool, Spending
from audiobatch.limits.retry import RetryBudget
from audiobatch.planning.plan import rules_of
from audiobatch.planning.worst_case import worst_unknown_usd
from audiobatch.transports.auth import EntraTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from decimal import Decimal

    from audiobatch.calls.stats import RunStats
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.execution.local_emulator import LocalService
    from audiobatch.execution.run_context import RunContext
    from audiobatch.transports.base import Transport

#: The SDK takes a second; what a run needs at its end must be there when descriptors and disk are used up.
_NEEDED_LATER = (
    "audiobatch.transports.factory",
    "soundfile",
    "av",
    "soxr",
    "pandas",
    "pyarrow.pandas_compat",
    "xlsxwriter",
    "jinja2",
)


def import_ahead() -> None:
    """Import what a run needs later, in a thread that nothing waits for."""

    def work() -> None:
        for name in _NEEDED_LATER:
            with contextlib.suppress(ImportError, OSError):  # the code that needs it reports it
                importlib.import_module(name)

    threading.Thread(target=work, daemon=True, name="import-sdk").start()


async def open_runner(
    run: RunContext,
    deployments: AbstractSet[str],
    stack: contextlib.AsyncExitStack,
    *,
    stats: RunStats,
    warn: Callable[[str], None],
) -> ItemRunner:
    """Make the runner of an open run; `stack` closes what it opens.

    Args:
        run: whose calls it makes.
        deployments: those that rows name, beside the job's own.
        stack: closed with the run.
        stats: counts what the run does.
        warn: shows a message to people.

    Raises:
        ConfigError: settings or credentials that cannot work.
    """
    import_ahead()
    targets = with_named(run.spec, run.targets, deployments)
    check_prices(run.spec, targets)
    service: LocalService | None = None
    if models := {target.deployment: target.model for target in targets if target.provider == "local"}:
        service = await stack.enter_async_context(local_service(models))
    most = descriptors.calls_allowed(
        in_stores=any(map(is_remote, (str(run.output), *run.spec.inputs))), streams=run.spec.stream
    )
    if most is not None and (run.spec.max_concurrency or 0) > most:
        warn(
            f"at most {most} calls at once: this process may have {descriptors.limit()} files open (`ulimit -n`)"
        )
    tokens = EntraTokens()
    from audiobatch.transports.factory import open_transport  # the SDK takes a second to import

    transports: dict[str, Transport] = {}
    for target in targets:
        emulator = service if target.provider == "local" else None
        is_keyless = target.credential is not None and target.credential.kind == "entra"
        transport = open_transport(
            target.settings(run.spec),
            endpoint=emulator.base_url if emulator else target.endpoint,
            deployment=target.deployment,
            key=emulator.api_key if emulator else target.credential.key if target.credential else None,
            tokens=tokens if is_keyless else None,
            transcribes=target.transcribes,
            most_sessions=most,
        )
        transports[target.name] = transport
        stack.push_async_callback(transport.aclose)
    unrecorded_usd = worst_unknown_usd(targets, run.spec)
    spent_before = await asyncio.to_thread(run.ledger.reader.spent_at_most_usd, unrecorded_usd)
    pool = pool_of(run.spec, targets, spent_before=spent_before, most_calls=most)
    context = CallContext(
        spec=run.spec,
        run_id=run.run_id,
        settings_key=run.settings_key,
        ledger=run.ledger,
        pool=pool,
        transports=transports,
        storage=run.storage,
        spool=run.spool,
        stop=run.stop,
        stats=stats,
        unknown_before=await asyncio.to_thread(run.ledger.reader.unknown_counts),
        targets={target.name: target for target in targets},
        feedback=CallFeedback(
            pool=pool, stop=run.stop, budget=RetryBudget(clock=pool.clock), waits=run.spec.wait
        ),
        gate=Gate(lambda: pool.room),
        finish=finish_of(run.spec),
    )
    stack.push_async_callback(context.aclose)
    return ItemRunner(context=context, queue_id=run.queue_id, rules=rules_of(run.spec, run.retry))


def pool_of(
    spec: JobSpec, targets: Sequence[Target], *, spent_before: Decimal, most_calls: int | None = None
) -> Pool:
    """Make the pool of a run, which everything that calls shares.

    Args:
        spec: the job.
        targets: where its calls can go.
        spent_before: what the folder's calls can have cost so far, in USD.
        most_calls: that this process has room for at once; None: as many as wanted.
    """
    deployments = [
        Deployment(
            name=target.name,
            limiter=Limiter(max_concurrency=target.max_concurrency, rpm=target.rpm, tpm=target.tpm),
            priority=target.priority,
            named_only=target.named_only,
        )
        for target in targets
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
