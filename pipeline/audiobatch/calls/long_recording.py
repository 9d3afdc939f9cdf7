"""A turn of a long recording: its parts asked one by one, each recorded when it is there, then put together.

A part is a call of the item's turn like any other: intent, call, file, row. When the run ends in between, the next
one finds the rows, and asks only for the parts that have none. The whole becomes an outcome when the last part is
there, from files and rows alone: putting together can fail and be done again, and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.audio.clips import join_replies
from audiobatch.audio.join import join_transcripts, to_text
from audiobatch.calls.check_redo import asked_again
from audiobatch.calls.part_turn import JOINED_FORMAT, PartCall, stretch
from audiobatch.calls.record import record_reply
from audiobatch.calls.spent import TurnCost
from audiobatch.config.prices import total_usd
from audiobatch.errors import InputError, StorageError
from audiobatch.inputs.sound_settings import fields_of_parts
from audiobatch.ledger.ledger import PartCalls
from audiobatch.limits.pool import Stopping
from audiobatch.limits.retry import Tries
from audiobatch.model import (
    Check,
    Outcome,
    PartKind,
    Reply,
    Status,
    basis_of,
    next_version,
    total_usage,
    weakest_basis,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from audiobatch.audio.split import Part
    from audiobatch.calls.context import CallContext
    from audiobatch.inputs.recording import SoundInput
    from audiobatch.ledger.rows import PartOutcome
    from audiobatch.model import Exchange, Item, SavedFile, Turn

log = logging.getLogger(__name__)

#: Parts of one recording in flight at once. Ten minutes take 19 MB as they are, 26 MB as they go out, and as much
#: again in the making: two hours go through in 200 MB above idle.
PARTS_AT_ONCE = 2


@dataclass(slots=True, kw_only=True)
class MultipartTurn:
    """The first turn of a recording that goes out in parts."""

    context: CallContext
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: SoundInput
    bound: str | None
    before: Outcome | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def run(self) -> Outcome:
        """Ask for the parts that are not there yet, then put all of them together.

        Raises:
            Stopping, NoDeployment, Deferred: not all parts are there; those that are stay.
            InputError: it asks for fields, and no part can answer for the whole; nothing was sent.
            StorageError: the output cannot be written.
        """
        context, parts = self.context, self.sound.parts
        if self.turn.answer is not None and len(parts) > 1:
            refused = InputError(fields_of_parts(context.spec))
            log.warning("%s: %s", self.item.item_id, refused.message)
            raise refused
        done = await context.on_disk(self._recorded)
        if done:
            log.info("%s: %d of %d parts are there", self.item.item_id, len(done), len(parts))
        calls = await context.on_disk(
            context.ledger.part_calls, self.item.item_id, self.turn.number, self.turn.fingerprint
        )
        queue = iter([part for part in parts if part.number not in done])
        failures: list[Outcome] = []
        workers = (self._work(queue, done, failures, calls) for _ in range(PARTS_AT_ONCE))
        for ended in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended
        if failures:
            return failures[0]
        return await context.settle(self._put_together([done[part.number] for part in parts]))

    async def _work(
        self,
        queue: Iterator[Part],
        done: dict[int, PartOutcome],
        failures: list[Outcome],
        calls: Mapping[int, PartCalls],
    ) -> None:
        """Parts one after the other, until there are none, one of them failed, or the run stops."""
        for part in queue:
            if failures:
                return
            if self.context.stop.asked:
                raise Stopping
            kept, outcome = await self._one(part, calls.get(part.number, PartCalls()))
            if kept is None:
                failures.append(outcome)
            else:
                done[part.number] = kept

    async def _one(self, part: Part, earlier: PartCalls) -> tuple[PartOutcome | None, Outcome]:
        """A part's outcome, asked for again where the job wants that of the flaws it has."""
        made = 0 if self.before and self.before.status is Status.SUCCEEDED else earlier.made
        sound = await self.context.on_disk(self.sound.of, part)
        best: PartOutcome | None = None

        async def ask(before: Outcome | None) -> Outcome:
            nonlocal best
            turn = PartCall(
                context=self.context,
                item=self.item,
                turn=self.turn,
                history=self.history,
                sound=sound,
                bound=self.bound,
                before=self.before,
                tries=Tries(
                    retry_unknown=self.context.spec.on_unknown == "retry",
                    unknown_before=before.perhaps_billed if before else earlier.unknown,
                ),
                spent=TurnCost.of(before),
                earlier_calls=0 if before else made,
                calls=before.attempts if before else 0,
                keeps=before,
                part=part,
                count=len(self.sound.parts),
                trimmed_s=self.sound.trimmed_s,
            )
            outcome = await turn.run()
            best = turn.kept or best
            return outcome

        outcome = await asked_again(self.context.spec, ask, await ask(None))
        return best, outcome

    def _recorded(self) -> dict[int, PartOutcome]:
        """Parts that are there from an earlier run: asked the same, of the same stretch, their sound on disk."""
        ledger, storage = self.context.ledger, self.context.storage
        found = ledger.parts_of(
            self.item.item_id, self.turn.number, next_version(self.before), PartKind.REPLY
        )
        planned = {part.number: part for part in self.sound.parts}
        return {
            number: one
            for number, one in found.items()
            if number in planned
            and one.outcome.status is Status.SUCCEEDED
            and one.is_of(self.turn.fingerprint, *stretch(planned[number]))
            and (one.outcome.audio is None or storage.exists(one.outcome.audio.path))
        }

    async def _put_together(self, parts: Sequence[PartOutcome]) -> Outcome:
        """The whole turn's files and outcome, out of its parts'."""
        context, outcomes = self.context, [one.outcome for one in parts]
        reply = await context.on_disk(self._joined, outcomes)
        finishes = [one.finish_reason for one in outcomes]
        outcome = replace(
            outcomes[-1],
            started_at=min(self.started, *(one.started_at for one in outcomes)),
            finished_at=datetime.now(UTC),
            run_id=context.run_id,
            transcript=reply.text,
            input_transcript=self._heard(outcomes),
            audio=None,
            audio_duration_s=None,
            format=self.turn.format,
            attempts=sum(one.attempts for one in outcomes),
            perhaps_billed=sum(one.perhaps_billed for one in outcomes),
            latency_s=sum(one.latency_s or 0.0 for one in outcomes),
            usage=total_usage(one.usage for one in outcomes),
            cost_usd=total_usd(one.cost_usd for one in outcomes),
            cost_basis=weakest_basis(basis_of(one) for one in outcomes),
            finish_reason=next((reason for reason in finishes if reason != "stop"), "stop"),
            audio_id=None,
            audio_expires_at=None,
            parts=len(parts),
            trimmed_s=self.sound.trimmed_s,
            settings_key=context.settings_key,
            kept_as=self.turn.kept_as,
        )
        replaced = self.before if self.before and self.before.status is Status.SUCCEEDED else None
        recorded = await record_reply(
            context,
            self.item,
            self.turn,
            reply,
            outcome=outcome,
            end=None,
            replaced=replaced,
            checks=tuple(check for check in Check if any(check in one.checks for one in outcomes)),
        )
        await context.on_disk(_discard, context, [one.audio for one in outcomes if one.audio])
        return recorded

    def _heard(self, outcomes: Sequence[Outcome]) -> str:
        """What the parts' sessions wrote down of the recording."""
        passages = join_transcripts(self.sound.parts, [one.input_transcript for one in outcomes])
        return " ".join(passage.text for passage in passages if passage.text)

    def _joined(self, outcomes: Sequence[Outcome]) -> Reply:
        """The parts' words with their times, and their sound with pauses, as if they were one reply."""
        passages = join_transcripts(self.sound.parts, [one.transcript for one in outcomes])
        sounds = [self.context.storage.read(one.audio.path) for one in outcomes if one.audio]
        return Reply(
            text=to_text(passages),
            transcript="",
            audio=join_replies(sounds, JOINED_FORMAT) if sounds else None,
            audio_format=JOINED_FORMAT,
            audio_id=None,
            audio_expires_at=None,
            finish_reason="stop",
            usage=None,
            model="",
            request_id=None,
            latency_s=0.0,
        )


def _discard(context: CallContext, files: Sequence[SavedFile]) -> None:
    """The parts' own sounds, once the whole is recorded; one that cannot be deleted harms nobody."""
    for file in files:
        try:
            context.storage.delete(file.path)
        except StorageError as failed:
            log.warning("%s", failed.message)
