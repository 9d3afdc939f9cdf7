"""One item: its input read, its turns sent in order, its end counted; and what all workers of a run share.

A worker never raises for an item: failures are outcomes, and what is fatal sets the stop flag, so that calls
that others have paid for still end and are recorded.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from audiobatch.address import is_remote
from audiobatch.calls.transcription import WriteDown
from audiobatch.calls.turns import Asking
from audiobatch.config.transcription_rules import word_models
from audiobatch.errors import (
    AudioBatchError,
    BadReply,
    ErrorType,
    InputError,
    LeaseLost,
    OutcomeUnknown,
    StorageError,
    Unfinished,
    shown,
)
from audiobatch.inputs.recording import open_input
from audiobatch.limits.pool import NoDeployment, Stopping
from audiobatch.limits.retry import Deferred, Tries
from audiobatch.model import Exchange, Outcome, PriorReply, SourceKind, Status
from audiobatch.planning.items import build_item
from audiobatch.planning.review_rules import Rules
from audiobatch.planning.tokens import ReplySizes
from audiobatch.planning.worst_case import bounded, spoken_tokens, worst_by_target
from audiobatch.stop import StopReason
from audiobatch.storage.artifacts import AS_IT_CAME
from audiobatch.storage.partial_reply import Received

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from decimal import Decimal

    from audiobatch.audio.finish import Finish
    from audiobatch.calls.feedback import Aftermath
    from audiobatch.calls.stats import Tally
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.inputs.recording import SoundInput
    from audiobatch.ledger.ledger import Ledger, Recorded
    from audiobatch.limits.concurrency import Gate
    from audiobatch.limits.pool import Pool
    from audiobatch.model import Item, Reply, Request, Turn
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
class _Begun:
    """An item that was deferred: its turns that this run has made, and what its next turn went through."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tries: Tries | None = None
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class Sender:
    """What every worker of a run shares.

    Attributes:
        unknown_before: calls of earlier runs with an unknown end, by item, turn and fingerprint.
        targets: what is behind each deployment of the pool.
        gate: how many items may be open at once.
        later: items that were deferred: they go after all others, in a last pass.
        finish: what is done to each spoken reply before it is saved.
        rules: which results a reviewer's marks let stand.
    """

    spec: JobSpec
    run_id: str
    queue_id: str
    settings_key: str
    ledger: Ledger
    pool: Pool
    transports: Mapping[str, Transport]
    storage: Storage
    spool: Spool
    stop: Stop
    tally: Tally
    unknown_before: dict[tuple[str, int, str], int]
    targets: Mapping[str, Target]
    aftermath: Aftermath
    gate: Gate
    finish: Finish = AS_IT_CAME
    rules: Rules = field(default_factory=Rules)
    sizes: ReplySizes = field(default_factory=ReplySizes)
    later: deque[Recorded] = field(default_factory=deque)
    is_last_pass: bool = False
    _calls: set[asyncio.Task[Reply]] = field(default_factory=set)
    _received: dict[str, list[Received]] = field(default_factory=dict)
    _settling: set[asyncio.Future[Any]] = field(default_factory=set)
    _attempt_numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _begun: dict[str, _Begun] = field(default_factory=dict)
    _disk: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        in_stores = is_remote(str(self.storage.root)) or any(map(is_remote, self.spec.inputs))
        threads = _STORE_THREADS if in_stores else _DISK_THREADS
        self._disk = ThreadPoolExecutor(threads, thread_name_prefix="disk")

    async def aclose(self) -> None:
        """Wait for what is being written down."""
        while self._settling:
            await asyncio.wait(self._settling)
        self._disk.shutdown(wait=True)

    def give_up(self) -> None:
        """End the calls in flight now; each becomes `unknown`. None begins any more: the stop was asked for."""
        for call in self._calls:
            call.cancel()

    async def run(self, one: Recorded) -> Status | None:
        """Everything that is still to do for one item; None when the run stopped before it ended."""
        try:
            status = await self._served(one)
        except Stopping:
            return None
        except Deferred:
            self.later.append(one)
            return None
        except LeaseLost as lost:
            log.warning("%s", lost.message)
            return None
        except StorageError as failed:
            log.error("%s: %s", one.source.item_id, failed.message)
            self.stop.ask(StopReason.STORAGE, failed.message)
            return None
        except Exception as failed:
            log.exception("%s: unexpected", one.source.item_id)
            self.stop.ask(StopReason.INTERNAL, f"{shown(one.source.item_id)}: {failed!r}")
            return None
        finally:
            await self._let_go(one.source.item_id)
        if status is not None:
            self.ledger.queue.ended(one.source.item_id)
            self.tally.item_ended(status, one.source.item_id)
            self._stop_at_failure_limit()
        return status

    async def _served(self, one: Recorded) -> Status | None:
        try:
            return await self._item(one)
        except NoDeployment as ended:
            return await self._without_deployment(one, ended)

    async def _without_deployment(self, one: Recorded, ended: NoDeployment) -> Status | None:
        """What a row names cannot serve it: others go on; without others the run ends."""
        others = self.aftermath.others_left if ended.cause else self.aftermath.others_usable
        if not others or (ended.cause is None and self.is_last_pass):
            self.aftermath.nobody(ended)
            return None
        if ended.cause is None:
            self.later.append(one)
            return None
        self._begun.pop(one.source.item_id, None)
        return await self._not_sent(one, ended.cause)

    async def _item(self, one: Recorded) -> Status | None:
        source = one.source
        begun = self._begun.pop(one.source.item_id, None) or _Begun()
        sound: SoundInput | None = None
        try:
            if source.kind is SourceKind.RECORDING:
                source, sound = await self.on_disk(open_input, source, self.spec)
                if source is not one.source:
                    await self.on_disk(self.ledger.put_sources, [source], self.queue_id)
            item = build_item(source, self.spec)
            return await self._turns(one, begun, item, sound)
        except InputError as refused:
            return await self._not_sent(one, refused)
        finally:
            if sound is not None:
                await self.on_disk(sound.close)

    async def _turns(
        self, one: Recorded, begun: _Begun, item: Item, sound: SoundInput | None
    ) -> Status | None:
        """An item's turns in order, then the words that are wanted of their results."""
        outcomes: list[Outcome] = []
        history: tuple[Exchange, ...] = ()
        bound = item.deployment
        for turn in item.turns:
            spoken = sound if turn.number == 1 else None
            outcome = begun.outcomes.get(turn.number) or one.outcomes.get(turn.number)
            if turn.number not in begun.outcomes and not self.rules.stands(one, turn):
                if self.stop.asked:
                    return None
                if outcome is not None and self._is_left_unfinished(outcome):
                    return Status.PENDING
                turn = self.rules.asked(one, turn)  # noqa: PLW2901 - the same turn, as this run asks it
                asking = Asking(
                    sender=self,
                    item=item,
                    turn=turn,
                    history=history,
                    sound=spoken,
                    bound=bound,
                    before=outcome,
                    tries=begun.tries or self._tries(item, turn),
                    calls=begun.calls,
                )
                outcome = await self._made(asking, begun)
                self.tally.turn_ended(outcome, input_audio_s=spoken.duration_s if spoken else 0.0)
            if outcome is None:  # not wanted, so nothing can follow it
                break
            if outcome.status is not Status.SUCCEEDED:
                return outcome.status
            bound = bound or (outcome.deployment if outcome.audio_id else None)
            history = (*history, exchange_of(turn, spoken, outcome))
            outcomes.append(outcome)
        if word_models(self.spec):
            for outcome in outcomes:
                await WriteDown(sender=self, item=item, sound=sound).add_to(outcome)
        return Status.SUCCEEDED

    def _is_left_unfinished(self, outcome: Outcome) -> bool:
        """Whether its reply is paid for and kept: it is finished when a run begins, and not bought again."""
        asked_for = self.spec.redo or self.rules.reviews
        return outcome.error_type is ErrorType.UNFINISHED and not asked_for

    def _tries(self, item: Item, turn: Turn) -> Tries:
        key = (item.item_id, turn.number, turn.fingerprint)
        return Tries(
            retry_unknown=self.spec.on_unknown == "retry",
            unknown_before=self.unknown_before.get(key, 0),
            budget=self.aftermath.budget,
        )

    async def _made(self, asking: Asking, begun: _Begun) -> Outcome:
        """A turn's outcome; where it is put off, what it went through is kept until its item's next try.

        Raises:
            Deferred, NoDeployment: it is put off.
        """
        try:
            outcome = await asking.run()
        except (Deferred, NoDeployment):
            asking.tries.deferred = False
            begun.tries, begun.calls = asking.tries, asking.calls
            self._begun[asking.item.item_id] = begun
            raise
        begun.outcomes[asking.turn.number] = outcome
        begun.tries, begun.calls = None, 0
        return outcome

    async def _let_go(self, item_id: str) -> None:
        """What was kept for an item's next turn: sessions, and copies of replies that are recorded now."""
        ids = [one for one in self._received if one.startswith(f"{item_id}#")]  # of its parts
        for one in (item_id, *ids):
            for transport in self.transports.values():
                transport.end_item(one)
            for received in self._received.pop(one, ()):
                await self.on_disk(received.discard)

    async def _not_sent(self, one: Recorded, refused: AudioBatchError) -> Status:
        """What was good when it was found, and can not be sent after all: its first turn without a result fails.

        A result is never replaced here: it was paid for, in this run or an earlier one.
        """
        turn = await self.on_disk(self._first_without_result, one.source.item_id)
        if turn is None:
            log.warning("%s: its earlier results stay: %s", one.source.item_id, refused.message)
            return Status.FAILED
        now = datetime.now(UTC)
        outcome = Outcome(
            item_id=one.source.item_id,
            turn=turn,
            fingerprint="",
            status=Status.FAILED,
            run_id=self.run_id,
            started_at=now,
            finished_at=now,
            error_type=refused.error_type,
            error_message=refused.message,
            input_sha256=one.source.sha256,
            settings_key=self.settings_key,
        )
        await self.ledger.record_outcome(outcome)
        return Status.FAILED

    def _first_without_result(self, item_id: str) -> int | None:
        """As the ledger knows it now: this run may have made turns since the item was claimed."""
        for turn in range(1, len(self.spec.turn_specs()) + 1):
            known = self.ledger.outcome(item_id, turn)
            if known is None or known.status is not Status.SUCCEEDED:
                return turn
        return None

    # What a turn asks of the run.

    def next_attempt_id(self) -> str:
        """Unique among all runs: the intent's key is known before the database is asked."""
        return f"{self.run_id}-{next(self._attempt_numbers)}"

    async def call(self, deployment: str, request: Request) -> Reply:
        """The call as a task of its own: when the run gives up on it, its end is unknown, not lost."""
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
            words = "the run was stopped while this call was in flight; it was perhaps billed"
            raise OutcomeUnknown(words)
        return call.result().without_secrets()

    async def keep_body(self, failed: AudioBatchError, request: Request) -> None:
        """Add what had come of a streamed reply to the error that it ended by."""
        received = self._received.get(request.item_id)
        if received and isinstance(failed, (BadReply, OutcomeUnknown, Unfinished)) and not failed.raw:
            failed.raw = await self.on_disk(received[-1].take)

    async def settle(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run to its end what writes down a call, also where the caller is cancelled meanwhile."""
        settling = asyncio.ensure_future(work)
        self._settling.add(settling)
        settling.add_done_callback(self._settled)
        return await asyncio.shield(settling)

    def _settled(self, settling: asyncio.Future[Any]) -> None:
        self._settling.discard(settling)
        if not settling.cancelled() and isinstance(failed := settling.exception(), StorageError):
            log.error("%s", failed.message)

    async def back_off(self, seconds: float) -> None:
        """Wait before the next try; ends, by `Stopping`, when the run does."""
        if seconds <= 0:
            return
        try:
            with self.gate.stepped_out():
                await asyncio.wait_for(self.stop.soft.wait(), seconds)
        except TimeoutError:
            return
        raise Stopping

    async def on_disk(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Blocking work, in one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    def bounded(self, request: Request) -> Request:
        """The request, with a maximum for its reply where a cost limit holds."""
        return bounded(request) if self.pool.spending.is_capped else request

    def worst_usd(self, request: Request) -> Mapping[str, Decimal]:
        """The most that a call can cost, by deployment; of one without a known price there is none."""
        in_session = self.spec.transport == "realtime"
        return worst_by_target(request, self.targets.values(), hears_replies=in_session)

    def _stop_at_failure_limit(self) -> None:
        bad = self.tally.failed + self.tally.unknown
        if bad > self.spec.failure_limit(self.tally.ended):
            self.stop.ask(
                StopReason.MAX_FAILURES,
                f"{bad} of {self.tally.ended} items failed (--max-failures {self.spec.max_failures})",
            )


def exchange_of(turn: Turn, sound: SoundInput | None, outcome: Outcome) -> Exchange:
    """An earlier turn, as the next one builds on it. A recording that went out in parts is too long to go again."""
    in_parts = sound is not None and bool(sound.parts)
    text = turn.text or (
        f"(A recording of {sound.duration_s / 60:.0f} minutes.)" if sound and in_parts else ""
    )
    return Exchange(
        text=text,
        audio=sound.whole() if sound and not in_parts else None,
        reply=PriorReply(
            audio_id=outcome.audio_id,
            audio_expires_at=outcome.audio_expires_at,
            text=outcome.transcript,
            spoken_tokens=_spoken_tokens(outcome),
        ),
    )


def _spoken_tokens(outcome: Outcome) -> int | None:
    """Of a reply that a later turn can be made to hear again: what was put together of parts goes by its words."""
    if outcome.parts is not None or (outcome.audio is None and outcome.audio_id is None):
        return 0
    return spoken_tokens(outcome.usage, outcome.audio_duration_s)
