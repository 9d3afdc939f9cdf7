"""One item: its input read, its turns sent in order, its end counted.

A worker never raises for an item: failures are outcomes, and a fatal error asks the run to stop, so that calls that
are paid for still end and are recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.calls.long_recording import MultipartTurn
from audiobatch.calls.transcription import TranscriptionPass
from audiobatch.calls.whole_turn import TurnRunner
from audiobatch.config.transcription_rules import transcription_models
from audiobatch.errors import (
    AudioBatchError,
    ErrorType,
    InputError,
    LeaseLost,
    StorageError,
    shown,
)
from audiobatch.inputs.prepared_recording import prepare_recording
from audiobatch.limits.pool import NoDeployment, Stopping
from audiobatch.limits.retry import Deferred, Tries
from audiobatch.model import Exchange, Outcome, PriorReply, SourceKind, Status, next_version
from audiobatch.planning.items import build_item
from audiobatch.planning.review_rules import Rules
from audiobatch.planning.worst_case import spoken_tokens
from audiobatch.stop import StopReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from audiobatch.calls.context import CallContext
    from audiobatch.inputs.prepared_recording import PreparedRecording
    from audiobatch.ledger.reader import Recorded
    from audiobatch.model import Item, Turn

    ClaimNext = Callable[[], Awaitable[Recorded | None]]

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Progress:
    """What this run has done for an item that it deferred.

    Attributes:
        outcomes: of the turns that it has made, by number.
        tries: of the next turn.
        calls: made for the next turn.
    """

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tries: Tries | None = None
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class ItemRunner:
    """Takes items through their turns; one for all workers of a run.

    Attributes:
        context: what the calls share.
        rules: which results a reviewer's marks let stand.
        deferred: items that go after all others, in a last pass.
    """

    context: CallContext
    queue_id: str
    rules: Rules = field(default_factory=Rules)
    deferred: deque[Recorded] = field(default_factory=deque)
    is_last_pass: bool = False
    _progress: dict[str, _Progress] = field(default_factory=dict)

    async def run(self, recorded: Recorded) -> Status | None:
        """Do everything that is still to do for one item.

        Returns:
            How the item ended; None where it has not: the run stopped, or the item is deferred.
        """
        try:
            status = await self._served(recorded)
        except Stopping:
            return None
        except Deferred:
            self.deferred.append(recorded)
            return None
        except LeaseLost as lost:
            log.warning("%s", lost.message)
            return None
        except StorageError as failed:
            log.error("%s: %s", recorded.source.item_id, failed.message)
            self.context.stop.ask(StopReason.STORAGE, failed.message)
            return None
        except Exception as failed:
            log.exception("%s: unexpected", recorded.source.item_id)
            self.context.stop.ask(StopReason.INTERNAL, f"{shown(recorded.source.item_id)}: {failed!r}")
            return None
        finally:
            await self.context.end_item(recorded.source.item_id)
        if status is not None:
            self.context.ledger.queue.finish(recorded.source.item_id)
            self.context.stats.item_ended(status, recorded.source.item_id)
            self._stop_at_failure_limit()
        return status

    async def run_queue(self, claim_next: ClaimNext, *, at_once: int) -> list[Status | None]:
        """Run every item of a queue, until a stop is requested.

        Args:
            claim_next: claims the next item; returns None where there is none left.
            at_once: items that are open at once.

        Returns:
            How each item ended; None for those that have not.
        """
        ends: list[Status | None] = []

        async def work() -> None:
            while True:
                # The gate first, then the item: an item that waited at the gate could be another run's.
                async with self.context.gate.entered():
                    if self.context.stop.asked:
                        return
                    try:
                        recorded = await claim_next()
                    except StorageError as failed:
                        self.context.stop.ask(StopReason.STORAGE, failed.message)
                        return
                    if recorded is None:
                        return
                    ends.append(await self.run(recorded))

        await asyncio.gather(*(work() for _ in range(at_once)))
        return ends

    async def run_deferred(self) -> None:
        """Run the items that were deferred, after the queue, as fast as the budget of retries refills."""
        if not self.deferred:
            return
        log.info("%d items were deferred; they go now", len(self.deferred))
        self.is_last_pass = True

        async def work() -> None:
            while self.deferred and not self.context.stop.asked:
                recorded = self.deferred.popleft()
                async with self.context.gate.entered():
                    try:
                        await self.context.back_off(self.context.feedback.budget.room_in_s())
                    except Stopping:
                        return
                    await self.run(recorded)

        workers = min(len(self.deferred), self.context.spec.concurrency_ceiling)
        await asyncio.gather(*(work() for _ in range(workers)))

    async def _served(self, recorded: Recorded) -> Status | None:
        try:
            return await self._item(recorded)
        except NoDeployment as ended:
            return await self._without_deployment(recorded, ended)

    async def _without_deployment(self, recorded: Recorded, ended: NoDeployment) -> Status | None:
        """End an item that no deployment can serve, or defer it; without any deployment end the run."""
        others = self.context.feedback.others_left if ended.cause else self.context.feedback.others_usable
        if not others or (ended.cause is None and self.is_last_pass):
            self.context.feedback.nobody(ended)
            return None
        if ended.cause is None:
            self.deferred.append(recorded)
            return None
        self._progress.pop(recorded.source.item_id, None)
        return await self._not_sent(recorded, ended.cause)

    async def _item(self, recorded: Recorded) -> Status | None:
        source = recorded.source
        progress = self._progress.pop(recorded.source.item_id, None) or _Progress()
        sound: PreparedRecording | None = None
        try:
            if source.kind is SourceKind.RECORDING:
                source, sound = await self.context.on_disk(prepare_recording, source, self.context.spec)
                if source is not recorded.source:
                    await self.context.on_disk(
                        self.context.ledger.writer.put_sources, [source], self.queue_id
                    )
            item = build_item(source, self.context.spec)
            return await self._turns(recorded, progress, item, sound)
        except InputError as refused:
            return await self._not_sent(recorded, refused)
        finally:
            if sound is not None:
                await self.context.on_disk(sound.close)

    async def _turns(
        self, recorded: Recorded, progress: _Progress, item: Item, sound: PreparedRecording | None
    ) -> Status | None:
        """Send an item's turns in order, then have their results transcribed where the job wants that."""
        outcomes: list[Outcome] = []
        history: tuple[Exchange, ...] = ()
        only_deployment = item.deployment
        for turn in item.turns:
            spoken = sound if turn.number == 1 else None
            outcome = progress.outcomes.get(turn.number) or recorded.outcomes.get(turn.number)
            if turn.number not in progress.outcomes and not self.rules.leaves(recorded, turn):
                if self.context.stop.asked:
                    return None
                if outcome is not None and self._is_left_unfinished(outcome):
                    return Status.PENDING
                turn = self.rules.apply_note(recorded, turn)  # noqa: PLW2901 - the same turn, as this run asks it
                runner = TurnRunner(
                    context=self.context,
                    item=item,
                    turn=turn,
                    history=history,
                    sound=spoken,
                    only_deployment=only_deployment,
                    before=outcome,
                    tries=progress.tries or self._tries(item, turn),
                    calls=progress.calls,
                )
                outcome = await self._run_turn(runner, progress)
                self.context.stats.turn_ended(outcome, input_audio_s=spoken.duration_s if spoken else 0.0)
            if outcome is None:  # not wanted, so nothing can follow it
                break
            if outcome.status is not Status.SUCCEEDED:
                return outcome.status
            only_deployment = only_deployment or (outcome.deployment if outcome.audio_id else None)
            history = (*history, exchange_of(turn, spoken, outcome))
            outcomes.append(outcome)
        if transcription_models(self.context.spec):
            for outcome in outcomes:
                await TranscriptionPass(context=self.context, item=item, sound=sound).add_to(outcome)
        return Status.SUCCEEDED

    def _is_left_unfinished(self, outcome: Outcome) -> bool:
        """Return whether its reply is paid for and stored: a run finishes it when it begins, without a call."""
        is_redone = self.context.spec.redo or self.rules.reviews
        return outcome.error_type is ErrorType.UNFINISHED and not is_redone

    def _tries(self, item: Item, turn: Turn) -> Tries:
        key = (item.item_id, turn.number, turn.fingerprint)
        return Tries(
            retry_unknown=self.context.spec.on_unknown == "retry",
            unknown_before=self.context.unknown_before.get(key, 0),
            budget=self.context.feedback.budget,
        )

    async def _run_turn(self, runner: TurnRunner, progress: _Progress) -> Outcome:
        """Run a turn to its outcome; where it is deferred, remember its tries and calls until its item's next pass.

        Raises:
            Deferred, NoDeployment: it is deferred.
        """
        try:
            outcome = await self._outcome_of(runner)
        except (Deferred, NoDeployment):
            runner.tries.deferred = False
            progress.tries, progress.calls = runner.tries, runner.calls
            self._progress[runner.item.item_id] = progress
            raise
        progress.outcomes[runner.turn.number] = outcome
        progress.tries, progress.calls = None, 0
        return outcome

    async def _outcome_of(self, runner: TurnRunner) -> Outcome:
        """Run a turn, in parts where its recording has to be split."""
        if runner.sound is None or not runner.sound.parts:
            return await runner.run()
        return await MultipartTurn(
            context=self.context,
            item=runner.item,
            turn=runner.turn,
            history=runner.history,
            sound=runner.sound,
            only_deployment=runner.only_deployment,
            before=runner.before,
        ).run()

    async def _not_sent(self, recorded: Recorded, refused: AudioBatchError) -> Status:
        """Record that an item cannot be sent: its first turn without a result fails.

        A result is never replaced here: it was paid for, in this run or an earlier one.
        """
        turn, before = await self.context.on_disk(self._first_without_result, recorded.source.item_id)
        if turn is None:
            log.warning("%s: its earlier results stay: %s", recorded.source.item_id, refused.message)
            return Status.FAILED
        now = datetime.now(UTC)
        outcome = Outcome(
            item_id=recorded.source.item_id,
            turn=turn,
            fingerprint="",
            status=Status.FAILED,
            run_id=self.context.run_id,
            started_at=now,
            finished_at=now,
            version=next_version(before),
            attempts=before.attempts if before else 0,
            perhaps_billed=before.perhaps_billed if before else 0,
            usage=before.usage if before else None,
            cost_usd=before.cost_usd if before else None,
            cost_basis=before.cost_basis if before else None,
            error_type=refused.error_type,
            error_message=refused.message,
            input_sha256=recorded.source.sha256,
            settings_key=self.context.settings_key,
        )
        await self.context.ledger.writer.record_outcome(outcome)
        return Status.FAILED

    def _first_without_result(self, item_id: str) -> tuple[int | None, Outcome | None]:
        """Return the first turn without a result, and what is recorded of it; None: every turn has one.

        The ledger is asked anew: this run may have made turns since the item was claimed.
        """
        for turn in range(1, len(self.context.spec.turn_specs()) + 1):
            outcome = self.context.ledger.reader.outcome(item_id, turn)
            if outcome is None or outcome.status is not Status.SUCCEEDED:
                return turn, outcome
        return None, None

    def _stop_at_failure_limit(self) -> None:
        spec, stats = self.context.spec, self.context.stats
        bad = stats.failed + stats.unknown
        if bad > spec.failure_limit(stats.ended):
            reason = f"{bad} of {stats.ended} items failed (--max-failures {spec.max_failures})"
            self.context.stop.ask(StopReason.MAX_FAILURES, reason)


def exchange_of(turn: Turn, sound: PreparedRecording | None, outcome: Outcome) -> Exchange:
    """Make an earlier turn the history of the next. A recording that went out in parts is too long to go again."""
    in_parts = sound is not None and bool(sound.parts)
    text = turn.text or (
        f"(A recording of {sound.duration_s / 60:.0f} minutes.)" if sound and in_parts else ""
    )
    return Exchange(
        text=text,
        audio=sound.read() if sound and not in_parts else None,
        reply=PriorReply(
            audio_id=outcome.audio_id,
            audio_expires_at=outcome.audio_expires_at,
            text=outcome.transcript,
            spoken_tokens=_spoken_tokens(outcome),
        ),
    )


def _spoken_tokens(outcome: Outcome) -> int | None:
    """Count the tokens of speech that a later turn sends again; a reply joined of parts goes as text."""
    if outcome.parts is not None or (outcome.audio is None and outcome.audio_id is None):
        return 0
    return spoken_tokens(outcome.usage, outcome.audio_duration_s)
