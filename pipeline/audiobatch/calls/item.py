"""One item: its input read, its turns sent in order, its end counted.

A worker never raises for an item: failures are outcomes, and what is fatal sets the stop flag, so that calls
that others have paid for still end and are recorded.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.calls.transcription import TranscriptionPass
from audiobatch.calls.turns import TurnRunner
from audiobatch.config.transcription_rules import transcription_models
from audiobatch.errors import (
    AudioBatchError,
    ErrorType,
    InputError,
    LeaseLost,
    StorageError,
    shown,
)
from audiobatch.inputs.recording import open_input
from audiobatch.limits.pool import NoDeployment, Stopping
from audiobatch.limits.retry import Deferred, Tries
from audiobatch.model import Exchange, Outcome, PriorReply, SourceKind, Status
from audiobatch.planning.items import build_item
from audiobatch.planning.review_rules import Rules
from audiobatch.planning.worst_case import spoken_tokens
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from audiobatch.calls.context import CallContext
    from audiobatch.inputs.recording import SoundInput
    from audiobatch.ledger.ledger import Recorded
    from audiobatch.model import Item, Turn

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Begun:
    """An item that was deferred: its turns that this run has made, and what its next turn went through."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tries: Tries | None = None
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class ItemRunner:
    """Takes items through their turns; one for all workers of a run.

    Attributes:
        context: what the calls share.
        rules: which results a reviewer's marks let stand.
        later: items that were deferred: they go after all others, in a last pass.
    """

    context: CallContext
    queue_id: str
    rules: Rules = field(default_factory=Rules)
    later: deque[Recorded] = field(default_factory=deque)
    is_last_pass: bool = False
    _begun: dict[str, _Begun] = field(default_factory=dict)

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
            self.context.stop.ask(StopReason.STORAGE, failed.message)
            return None
        except Exception as failed:
            log.exception("%s: unexpected", one.source.item_id)
            self.context.stop.ask(StopReason.INTERNAL, f"{shown(one.source.item_id)}: {failed!r}")
            return None
        finally:
            await self.context.end_item(one.source.item_id)
        if status is not None:
            self.context.ledger.queue.ended(one.source.item_id)
            self.context.stats.item_ended(status, one.source.item_id)
            self._stop_at_failure_limit()
        return status

    async def _served(self, one: Recorded) -> Status | None:
        try:
            return await self._item(one)
        except NoDeployment as ended:
            return await self._without_deployment(one, ended)

    async def _without_deployment(self, one: Recorded, ended: NoDeployment) -> Status | None:
        """What a row names cannot serve it: others go on; without others the run ends."""
        others = self.context.feedback.others_left if ended.cause else self.context.feedback.others_usable
        if not others or (ended.cause is None and self.is_last_pass):
            self.context.feedback.nobody(ended)
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
                source, sound = await self.context.on_disk(open_input, source, self.context.spec)
                if source is not one.source:
                    await self.context.on_disk(self.context.ledger.put_sources, [source], self.queue_id)
            item = build_item(source, self.context.spec)
            return await self._turns(one, begun, item, sound)
        except InputError as refused:
            return await self._not_sent(one, refused)
        finally:
            if sound is not None:
                await self.context.on_disk(sound.close)

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
                if self.context.stop.asked:
                    return None
                if outcome is not None and self._is_left_unfinished(outcome):
                    return Status.PENDING
                turn = self.rules.asked(one, turn)  # noqa: PLW2901 - the same turn, as this run asks it
                asking = TurnRunner(
                    context=self.context,
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
                self.context.stats.turn_ended(outcome, input_audio_s=spoken.duration_s if spoken else 0.0)
            if outcome is None:  # not wanted, so nothing can follow it
                break
            if outcome.status is not Status.SUCCEEDED:
                return outcome.status
            bound = bound or (outcome.deployment if outcome.audio_id else None)
            history = (*history, exchange_of(turn, spoken, outcome))
            outcomes.append(outcome)
        if transcription_models(self.context.spec):
            for outcome in outcomes:
                await TranscriptionPass(context=self.context, item=item, sound=sound).add_to(outcome)
        return Status.SUCCEEDED

    def _is_left_unfinished(self, outcome: Outcome) -> bool:
        """Whether its reply is paid for and kept: it is finished when a run begins, and not bought again."""
        asked_for = self.context.spec.redo or self.rules.reviews
        return outcome.error_type is ErrorType.UNFINISHED and not asked_for

    def _tries(self, item: Item, turn: Turn) -> Tries:
        key = (item.item_id, turn.number, turn.fingerprint)
        return Tries(
            retry_unknown=self.context.spec.on_unknown == "retry",
            unknown_before=self.context.unknown_before.get(key, 0),
            budget=self.context.feedback.budget,
        )

    async def _made(self, asking: TurnRunner, begun: _Begun) -> Outcome:
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

    async def _not_sent(self, one: Recorded, refused: AudioBatchError) -> Status:
        """What was good when it was found, and can not be sent after all: its first turn without a result fails.

        A result is never replaced here: it was paid for, in this run or an earlier one.
        """
        turn = await self.context.on_disk(self._first_without_result, one.source.item_id)
        if turn is None:
            log.warning("%s: its earlier results stay: %s", one.source.item_id, refused.message)
            return Status.FAILED
        now = datetime.now(UTC)
        outcome = Outcome(
            item_id=one.source.item_id,
            turn=turn,
            fingerprint="",
            status=Status.FAILED,
            run_id=self.context.run_id,
            started_at=now,
            finished_at=now,
            error_type=refused.error_type,
            error_message=refused.message,
            input_sha256=one.source.sha256,
            settings_key=self.context.settings_key,
        )
        await self.context.ledger.record_outcome(outcome)
        return Status.FAILED

    def _first_without_result(self, item_id: str) -> int | None:
        """As the ledger knows it now: this run may have made turns since the item was claimed."""
        for turn in range(1, len(self.context.spec.turn_specs()) + 1):
            known = self.context.ledger.outcome(item_id, turn)
            if known is None or known.status is not Status.SUCCEEDED:
                return turn
        return None

    def _stop_at_failure_limit(self) -> None:
        spec, stats = self.context.spec, self.context.stats
        bad = stats.failed + stats.unknown
        if bad > spec.failure_limit(stats.ended):
            reason = f"{bad} of {stats.ended} items failed (--max-failures {spec.max_failures})"
            self.context.stop.ask(StopReason.MAX_FAILURES, reason)


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
