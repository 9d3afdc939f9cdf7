"""What all workers of a run share, made ready: deployments opened, limits set, earlier spending counted."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch import descriptors
from audiobatch.address import is_remote
from audiobatch.calls.context import CallContext
from audiobatch.calls.feedback import CallFeedback
from audiobatch.calls.item import ItemRunner
from audiobatch.calls.stats import RunStats
from audiobatch.config.targets import check_prices, targets_of, transcription_targets
from audiobatch.execution.local_emulator import local_service
from audiobatch.inputs.sound_settings import finish_of
from audiobatch.limits.concurrency import Gate
from audiobatch.limits.limiter import Limiter
from audiobatch.limits.pool import Deployment, Pool, Spending
from audiobatch.limits.retry import RetryBudget
from audiobatch.planning.plan import rules_of, settings_key
from audiobatch.planning.worst_case import worst_unknown_usd
from audiobatch.transports.auth import EntraTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from decimal import Decimal

    from audiobatch.address import Place
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.execution.local_emulator import LocalService
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.planning.plan import Retry
    from audiobatch.stop import Stop
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool
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
    """Import what a run needs later, in a thread that nothing waits for; what needs it then finds it."""

    def work() -> None:
        for name in _NEEDED_LATER:
            with contextlib.suppress(ImportError, OSError):  # whoever needs it says so
                importlib.import_module(name)

    threading.Thread(target=work, daemon=True, name="import-sdk").start()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What an open run gives to those who make its calls.

    Attributes:
        retry: what a `retry` selects; None: an ordinary run.
        finished: replies that were finished from kept bodies before.
        warn: tells people something.
    """

    spec: JobSpec
    run_id: str
    queue_id: str
    output: Place
    ledger: Ledger
    storage: Storage
    spool: Spool
    stop: Stop
    retry: Retry | None
    finished: int
    warn: Callable[[str], None]


async def open_runner(
    run: RunContext, deployments: AbstractSet[str], stack: contextlib.AsyncExitStack
) -> ItemRunner:
    """The runner of an open run; `stack` closes what it opens.

    Args:
        run: whose calls it makes.
        deployments: those that rows name, beside the job's own.
        stack: ended with the run.

    Raises:
        ConfigError: settings or credentials that cannot work.
    """
    import_ahead()
    targets = targets_of(run.spec, deployments)
    targets = (*targets, *transcription_targets(run.spec, targets[0]))
    check_prices(run.spec, targets)
    service: LocalService | None = None
    if local := [one for one in targets if one.provider == "local"]:
        models = {one.deployment: one.model for one in local}
        service = await stack.enter_async_context(local_service(models))
    most = descriptors.calls_allowed(
        in_stores=any(map(is_remote, (str(run.output), *run.spec.inputs))), streams=run.spec.stream
    )
    if most is not None and (run.spec.max_concurrency or 0) > most:
        run.warn(
            f"at most {most} calls at once: this process may have {descriptors.limit()} files open (`ulimit -n`)"
        )
    tokens = EntraTokens()
    from audiobatch.transports.factory import open_transport  # the SDK takes a second to import

    transports: dict[str, Transport] = {}
    for one in targets:
        here = service if one.provider == "local" else None
        keyless = one.credential is not None and one.credential.kind == "entra"
        transport = open_transport(
            one.settings(run.spec),
            endpoint=here.base_url if here else one.endpoint,
            deployment=one.deployment,
            key=here.api_key if here else one.credential.key if one.credential else None,
            tokens=tokens if keyless else None,
            transcribes=one.transcribes,
            most_sessions=most,
        )
        transports[one.name] = transport
        stack.push_async_callback(transport.aclose)
    not_on_record = worst_unknown_usd(targets, run.spec)
    spent_before = await asyncio.to_thread(run.ledger.spent_at_most_usd, not_on_record)
    pool = pool_of(run.spec, targets, spent_before=spent_before, most_calls=most)
    context = CallContext(
        spec=run.spec,
        run_id=run.run_id,
        settings_key=settings_key(run.spec),
        ledger=run.ledger,
        pool=pool,
        transports=transports,
        storage=run.storage,
        spool=run.spool,
        stop=run.stop,
        stats=RunStats(finished=run.finished),
        unknown_before=await asyncio.to_thread(run.ledger.unknown_counts),
        targets={one.name: one for one in targets},
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
