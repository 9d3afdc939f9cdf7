"""What the calls of a run share: their deployments, their limits, and where their replies are written.

There is one object a run. A call is a task of its own; its reply is recorded whatever happens to the worker that
waits for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from audiobatch.address import is_remote
from audiobatch.errors import AudioBatchError, BadReply, OutcomeUnknown, StorageError, Unfinished
from audiobatch.limits.pool import Stopping
from audiobatch.planning.tokens import ReplySizes
from audiobatch.planning.worst_case import bounded, worst_by_target
from audiobatch.storage.artifacts import AS_IT_CAME
from audiobatch.storage.partial_reply import Received

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from decimal import Decimal

    from audiobatch.audio.finish import Finish
    from audiobatch.calls.feedback import CallFeedback
    from audiobatch.calls.stats import RunStats
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.limits.concurrency import Gate
    from audiobatch.limits.pool import Pool
    from audiobatch.model import Reply, Request
    from audiobatch.stop import Stop
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool
    from audiobatch.transports.base import Transport

log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: A thread waits for the disk most of its time, and the system makes one flush of many asked for together:
#: with eight, and a busy disk that took 7 ms to flush, files held up the calls.
_DISK_THREADS = 16
#: A store answers in milliseconds where a disk takes microseconds: more wait at once.
_STORE_THREADS = 48


@dataclass(slots=True, kw_only=True)
class CallContext:
    """What the calls of a run share.

    Attributes:
        unknown_before: calls of earlier runs with an unknown end, by item, turn and fingerprint.
        targets: what is behind each deployment of the pool.
        gate: how many items may be open at once.
        finish: what is done to each spoken reply before it is saved.
    """

    spec: JobSpec
    run_id: str
    settings_key: str
    ledger: Ledger
    pool: Pool
    transports: Mapping[str, Transport]
    storage: Storage
    spool: Spool
    stop: Stop
    stats: RunStats
    unknown_before: dict[tuple[str, int, str], int]
    targets: Mapping[str, Target]
    feedback: CallFeedback
    gate: Gate
    finish: Finish = AS_IT_CAME
    sizes: ReplySizes = field(default_factory=ReplySizes)
    _calls: set[asyncio.Task[Reply]] = field(default_factory=set)
    _received: dict[str, list[Received]] = field(default_factory=dict)
    _settling: set[asyncio.Future[Any]] = field(default_factory=set)
    _attempt_numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _disk: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        in_stores = is_remote(str(self.storage.root)) or any(map(is_remote, self.spec.inputs))
        threads = _STORE_THREADS if in_stores else _DISK_THREADS
        self._disk = ThreadPoolExecutor(threads, thread_name_prefix="disk")

    async def aclose(self) -> None:
        """Wait until every call is recorded."""
        while self._settling:
            await asyncio.wait(self._settling)
        self._disk.shutdown(wait=True)

    def give_up(self) -> None:
        """Cancel the calls in flight; each becomes `unknown`. No call begins after this: the run is stopping."""
        for call in self._calls:
            call.cancel()

    def next_attempt_id(self) -> str:
        """Return a key that no other run makes, so that the intent needs no answer of the database."""
        return f"{self.run_id}-{next(self._attempt_numbers)}"

    async def call(self, deployment: str, request: Request) -> Reply:
        """Send a request, as a task of its own: when the run gives up on it, its end is unknown, not lost.

        Raises:
            ServiceError: what the service said, or that it was not reached.
            OutcomeUnknown: the call was given up.
        """
        transport = self.transports[deployment]
        received = Received.of(self.storage, request.item_id, request.turn) if transport.streams else None
        if received is not None:
            self._received.setdefault(request.item_id, []).append(received)
        call = asyncio.create_task(transport.send(request, received))
        self._calls.add(call)
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
        if call.cancelled():
            message = "the run was stopped while this call was in flight; it was perhaps billed"
            raise OutcomeUnknown(message)
        return call.result().without_secrets()

    async def partial_body(self, error: AudioBatchError, request: Request) -> bytes:
        """Return the reply to a call that failed, as far as it came; empty where none did."""
        if not isinstance(error, (BadReply, OutcomeUnknown, Unfinished)):
            return b""
        received = self._received.get(request.item_id)
        return error.raw or (await self.on_disk(received[-1].take) if received else b"")

    async def settle(self, work: Awaitable[_T]) -> _T:
        """Run to its end what records a call, also where the caller is cancelled meanwhile."""
        settling = asyncio.ensure_future(work)
        self._settling.add(settling)
        settling.add_done_callback(self._settled)
        return await asyncio.shield(settling)

    def _settled(self, settling: asyncio.Future[Any]) -> None:
        self._settling.discard(settling)
        failed = None if settling.cancelled() else settling.exception()
        if isinstance(failed, StorageError):
            log.error("%s", failed.message)
        elif failed is not None and not isinstance(failed, AudioBatchError):  # its caller may be gone
            log.error("a call could not be recorded", exc_info=failed)

    async def back_off(self, seconds: float) -> None:
        """Wait before the next try.

        Raises:
            Stopping: the run is stopping.
        """
        if seconds <= 0:
            return
        try:
            with self.gate.stepped_out():
                await asyncio.wait_for(self.stop.soft.wait(), seconds)
        except TimeoutError:
            return
        raise Stopping

    async def on_disk(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run blocking work in one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    def bounded(self, request: Request) -> Request:
        """Return the request, with a maximum for its reply where a cost limit holds."""
        return bounded(request) if self.pool.spending.is_capped else request

    def worst_usd(self, request: Request) -> Mapping[str, Decimal]:
        """Return the most that a call can cost, in USD by deployment; nothing for those without a known price."""
        in_session = self.spec.transport == "realtime"
        return worst_by_target(request, self.targets.values(), hears_replies=in_session)

    async def end_item(self, item_id: str) -> None:
        """Release what was held for the item's next turn: sessions, and copies of replies that are recorded now."""
        ids = [key for key in self._received if key.startswith(f"{item_id}#")]  # of its parts
        for key in (item_id, *ids):
            for transport in self.transports.values():
                transport.end_item(key)
            for received in self._received.pop(key, ()):
                await self.on_disk(received.discard)
