"""One turn of one item: called until it has an outcome, and the outcome recorded.

The order of writes is the promise: intent on disk → call → files on disk → outcome on disk. The place among the
calls in flight is held until the outcome is recorded, so that after a kill at most as many calls have an
unknown end as may be in flight.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.errors import (
    AudioBatchError,
    AudioIdGone,
    BadReply,
    DeploymentFatal,
    Disconnected,
    OutcomeUnknown,
    StorageError,
)
from pipeline.limits.pool import NoDeployment, Stopping
from pipeline.limits.retry import AskAgain, Tries, retrying
from pipeline.model import Outcome, Request, Status
from pipeline.prices import cost_usd
from pipeline.store.artifacts import NotSaved, save, save_raw
from pipeline.store.ledger import Attempt, AttemptEnd
from pipeline.store.ledger_rows import outcome_to_row

if TYPE_CHECKING:
    from pipeline.limits.pool import Lease
    from pipeline.model import AudioPart, Exchange, Item, Reply, Turn
    from pipeline.send import Sender
    from pipeline.store.artifacts import Made

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class OneTurn:
    """A turn on its way.

    Attributes:
        history: the turns before it, with their replies.
        sound: the recording, in the first turn of a recording.
        bound: the one deployment that can serve it (where its audio id lives, or which its row names).
        before: what the ledger says of it so far.
        calls: how many were made for it in this run.
        open_end: why the last call's end is not known, if it is not.
    """

    sender: Sender
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: AudioPart | None
    bound: str | None
    before: Outcome | None
    tries: Tries
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    calls: int = 0
    last: Attempt | None = None
    open_end: OutcomeUnknown | None = None
    without_audio_ids: bool = False
    asked_for_sound_again: bool = False

    async def run(self) -> Outcome:
        """Call until there is an outcome.

        Raises:
            Stopping, NoDeployment: the run ended first; nothing is recorded but the calls that were made.
            StorageError: the outcome could not be recorded; a paid reply is kept in the spool.
        """
        try:
            return await retrying(self.tries, sleep=self.sender.back_off)(self._call)
        except (Stopping, NoDeployment):
            if self.open_end is None:
                raise
            return await self._failed(self.open_end)
        except StorageError:
            raise
        except AudioBatchError as failed:
            return await self._failed(failed)

    async def _call(self) -> Outcome:
        """One call with everything around it."""
        sender = self.sender
        request = self._request()
        tokens = sender.sizes.call_tokens(request, read_aloud=self.item.read_aloud)
        lease = await sender.pool.acquire(tokens, only=self.bound)
        used: float | None = None
        proven = False
        try:
            attempt = self.last = self._attempt(lease.deployment.name)
            await sender.ledger.record_intent(attempt)
            sender.tally.calls += 1
            try:
                reply = await sender.call(lease.deployment.name, request)
                proven = True
                used = float(reply.usage.total_tokens) if reply.usage else None
                return await self._keep(reply, attempt)
            except StorageError:
                raise
            except AudioBatchError as failed:
                proven = not isinstance(failed, (DeploymentFatal, Disconnected))
                await self._ended_without(failed, attempt, lease)
                raise
        finally:
            lease.release(actual_tokens=used, proven=proven)

    def _request(self) -> Request:
        history = self.history
        if self.without_audio_ids:
            history = tuple(replace(one, reply=replace(one.reply, audio_id=None)) for one in history)
        item, turn = self.item, self.turn
        return Request(
            item_id=item.item_id,
            turn=turn.number,
            system=item.system,
            history=history,
            text=turn.text,
            audio=self.sound,
            modalities=turn.modalities,
            voice=turn.voice,
            format=turn.format,
            temperature=item.temperature,
            seed=item.seed,
            max_completion_tokens=item.max_completion_tokens,
        )

    def _attempt(self, deployment: str) -> Attempt:
        self.calls += 1
        sender = self.sender
        return Attempt(
            attempt_id=sender.next_attempt_id(),
            item_id=self.item.item_id,
            turn=self.turn.number,
            fingerprint=self.turn.fingerprint,
            run_id=sender.run_id,
            number=self._earlier_attempts() + self.calls,
            started_at=datetime.now(UTC),
            deployment=deployment,
            provider=sender.spec.provider,
            transport=sender.transports[deployment].name,
            model=self.item.model,
            voice=self.turn.voice,
            format=self.turn.format,
            prompt=self.turn.text,
            input_sha256=self.item.source.sha256,
            settings_key=sender.settings_key,
        )

    def _earlier_attempts(self) -> int:
        """Calls that earlier runs made for this very request."""
        before = self.before
        same = before is not None and before.fingerprint == self.turn.fingerprint
        return before.attempts if before and same and before.status is not Status.SUCCEEDED else 0

    async def _ended_without(self, failed: AudioBatchError, attempt: Attempt, lease: Lease) -> None:
        """Write down how a call ended that brought no reply; let the deployment rest where it asked to.

        Raises:
            AskAgain: the turn can be asked for in another way, or of another deployment.
        """
        await asyncio.shield(
            self.sender.ledger.record_end(
                AttemptEnd(
                    attempt_id=attempt.attempt_id,
                    state=Status.UNKNOWN if isinstance(failed, OutcomeUnknown) else Status.FAILED,
                    finished_at=datetime.now(UTC),
                    error_type=failed.error_type,
                    request_id=getattr(failed, "request_id", None) or "",
                )
            )
        )
        log.info(
            "%s turn %d try %d at %s: %s: %s",
            *(attempt.item_id, attempt.turn, attempt.number, attempt.deployment, failed.error_type, failed),
        )
        self.open_end = failed if isinstance(failed, OutcomeUnknown) else None
        others_left = self.sender.rest(lease.deployment, failed)
        if isinstance(failed, DeploymentFatal) and others_left and self.bound is None:
            raise AskAgain(failed.message) from failed
        if isinstance(failed, AudioIdGone) and not self.without_audio_ids:
            self.without_audio_ids = True
            raise AskAgain(failed.message) from failed

    async def _keep(self, reply: Reply, attempt: Attempt) -> Outcome:
        """Files, then the outcome; both before the call's place is given to another."""
        sender = self.sender
        cost = cost_usd(self.item.model, reply.usage)
        sender.tally.paid(reply.usage, cost)
        if self.turn.wants_audio and reply.audio is None and self._asks_for_sound_again():
            raise AskAgain("the reply came without the audio asked for", request_id=reply.request_id)
        replaced = self.before if self.before and self.before.status is Status.SUCCEEDED else None
        if replaced is not None:
            await sender.ledger.supersede(replaced)
        outcome = replace(
            self._outcome(attempt),
            status=Status.SUCCEEDED,
            transcript=reply.words,
            input_transcript=reply.input_transcript,
            latency_s=reply.latency_s,
            usage=reply.usage,
            cost_usd=cost,
            finish_reason=reply.finish_reason,
            request_id=reply.request_id or "",
            audio_id=reply.audio_id,
            audio_expires_at=reply.audio_expires_at,
        )
        end = AttemptEnd(
            attempt_id=attempt.attempt_id,
            state=Status.SUCCEEDED,
            finished_at=outcome.finished_at,
            request_id=outcome.request_id,
            cost_usd=cost,
        )
        try:
            saved = await asyncio.shield(
                sender.on_disk(save, sender.storage, self.item, self.turn, reply, replaced)
            )
        except NotSaved as failed:
            made = failed.made
            outcome = replace(outcome, audio_duration_s=made.audio_duration_s, checks=made.checks)
            await self._spool(outcome, end, made)
            raise
        outcome = replace(
            outcome,
            audio=saved.audio,
            transcript_file=saved.transcript,
            audio_duration_s=saved.made.audio_duration_s,
            checks=saved.made.checks,
        )
        sender.sizes.saw(outcome)
        try:
            await asyncio.shield(sender.ledger.record_outcome(outcome, end))
        except StorageError:
            await self._spool(outcome, end, None)
            raise
        return outcome

    def _asks_for_sound_again(self) -> bool:
        again = self.sender.spec.retry_text_only and not self.asked_for_sound_again
        self.asked_for_sound_again = True
        return again

    async def _spool(self, outcome: Outcome, end: AttemptEnd, made: Made | None) -> None:
        """Keep a paid reply in the user's own folder; the next run brings it home.

        Args:
            made: files that could not be written; None where they were and only the ledger failed.
        """
        record = {
            "outcome": outcome_to_row(outcome),
            "attempt_id": end.attempt_id,
            "audio": made.audio_path if made else None,
            "transcript": made.transcript_path if made else None,
        }
        spool = self.sender.spool
        place = await self.sender.on_disk(spool.keep, outcome.item_id, made.files if made else [], record)
        log.warning("%s: the reply was kept at %s; the next run brings it home", outcome.item_id, place)

    async def _failed(self, failed: AudioBatchError) -> Outcome:
        """Record a turn that came to nothing, with the body that was wrong where there is one."""
        sender = self.sender
        assert self.last is not None
        raw_reply = None
        if isinstance(failed, (BadReply, OutcomeUnknown)) and failed.raw:
            raw_reply = await sender.on_disk(
                save_raw, sender.storage, self.item.item_id, self.turn.number, failed.raw
            )
        if self.before is not None and self.before.status is Status.SUCCEEDED:
            await sender.ledger.supersede(self.before)
        outcome = replace(
            self._outcome(self.last),
            status=Status.UNKNOWN if isinstance(failed, OutcomeUnknown) else Status.FAILED,
            error_type=failed.error_type,
            error_message=failed.message,
            request_id=getattr(failed, "request_id", None) or "",
            raw_reply=raw_reply,
        )
        await asyncio.shield(sender.ledger.record_outcome(outcome))
        return outcome

    def _outcome(self, attempt: Attempt) -> Outcome:
        before = self.before
        return Outcome(
            item_id=self.item.item_id,
            turn=self.turn.number,
            fingerprint=self.turn.fingerprint,
            status=Status.PENDING,
            run_id=self.sender.run_id,
            started_at=self.started,
            finished_at=datetime.now(UTC),
            version=before.version + (before.status is Status.SUCCEEDED) if before else 1,
            prompt=self.turn.text,
            voice=self.turn.voice,
            format=self.turn.format,
            model=self.item.model,
            deployment=attempt.deployment,
            provider=attempt.provider,
            transport=attempt.transport,
            attempts=attempt.number,
            perhaps_billed=self.tries.unknown,
            input_sha256=self.item.source.sha256,
            settings_key=self.sender.settings_key,
        )
