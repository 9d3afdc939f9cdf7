"""The first turn of a long recording: its parts sent one by one, each recorded when its reply comes, then joined.

A part is a call of the item's turn like any other: intent, call, file, row. When the run ends in between, the next
run finds the rows, and sends only the parts that have none. The whole becomes an outcome when the last part is
recorded, from files and rows alone: joining can fail and be done again, and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.audio.clips import join_replies
from audiobatch.audio.join import join_transcripts, to_text
from audiobatch.calls.record import record_failure, record_reply, spool_files
from audiobatch.calls.turn import TurnCall, TurnCost, redo_flawed, success_in
from audiobatch.config.prices import total_usd
from audiobatch.errors import InputError, StorageError, redacted_bytes
from audiobatch.inputs.sound_settings import why_no_fields_in_parts
from audiobatch.ledger.reader import PartCalls
from audiobatch.ledger.rows import PartOutcome
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
from audiobatch.storage.artifacts import make
from audiobatch.storage.names import output_path, part_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from audiobatch.audio.split import Part
    from audiobatch.calls.context import CallContext
    from audiobatch.errors import AudioBatchError
    from audiobatch.inputs.prepared_recording import PreparedRecording
    from audiobatch.ledger.rows import AttemptEnd
    from audiobatch.model import Exchange, Item, Request, SavedFile, Turn

log = logging.getLogger(__name__)

#: Parts of one recording in flight at once. Ten minutes take 19 MB as they are, 26 MB as they go out, and as much
#: again in the making: two hours go through in 200 MB above idle.
PARTS_AT_ONCE = 2
#: What the service is asked for, whatever the job's format: parts are joined first and encoded once.
JOINED_FORMAT = "wav"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPolicy:
    """Records one part of a turn with a file and a row of its own (a `TurnPolicy`).

    Attributes:
        before: what the ledger says of the whole turn so far.
        stretch: the part of the recording.
        count: how many parts the recording has.
    """

    context: CallContext
    item: Item
    turn: Turn
    before: Outcome | None
    stretch: Part
    count: int

    @property
    def part(self) -> int:
        """Return the part's number, from 1."""
        return self.stretch.number

    def build_request(self, request: Request) -> Request:
        """Name the part, and request a format that can be joined."""
        return replace(
            request,
            item_id=part_id(self.item.item_id, self.part),
            format=JOINED_FORMAT if self.turn.wants_audio else "",
        )

    def error_message(self, error: AudioBatchError) -> str:
        """Say which part failed."""
        return f"part {self.part} of {self.count}: {error.message}"

    async def record(self, reply: Reply, outcome: Outcome, end: AttemptEnd) -> Outcome:
        """Write the part's sound, then its row."""
        context = self.context
        outcome, files = await self._measured(reply, outcome)
        try:
            await context.on_disk(context.ledger.queue.check_lease, self.item.item_id)
            saved = await context.on_disk(context.storage.write_many, files)
            outcome = replace(outcome, audio=saved[0] if saved else None)
            await context.ledger.writer.record_part(_row(self.stretch, outcome), end)
        except StorageError as failed:
            await self._spool(outcome, end, files, failed)
            raise
        context.sizes.add(outcome)
        return outcome

    async def spool(self, reply: Reply, outcome: Outcome, end: AttemptEnd, cause: StorageError) -> None:
        """Put the part's sound and row into the spool."""
        outcome, files = await self._measured(reply, outcome)
        await self._spool(outcome, end, files, cause)

    async def record_failure(self, outcome: Outcome, end: AttemptEnd | None, raw: bytes) -> Outcome:
        """Record the whole turn's failure; the replies to the other parts stay for the next run."""
        return await record_failure(self.context, outcome, end, raw, success_in(self.before))

    async def record_unfinished(self, outcome: Outcome, end: AttemptEnd, raw: bytes) -> Outcome:
        """Store the part's body and row beside the turn's own row: each part is finished by itself."""
        context = self.context
        body = redacted_bytes(raw)
        path = part_path(self.item, self.turn, self.part, ".json")
        try:
            await context.on_disk(context.ledger.queue.check_lease, self.item.item_id)
            (saved,) = await context.on_disk(context.storage.write_many, [(path, body)])
            part = _row(self.stretch, replace(outcome, raw_reply=saved))
            await context.ledger.writer.record_part(part, end, outcome)
        except StorageError as failed:
            row = _row(self.stretch, outcome)
            roles = {"raw_reply": path}
            await spool_files(context, outcome, end, [(path, body)], roles, cause=failed, part=row)
            raise
        return outcome

    async def _spool(
        self, outcome: Outcome, end: AttemptEnd, files: list[tuple[str, bytes]], cause: StorageError
    ) -> None:
        roles = {"audio": files[0][0] if files else None}
        row = _row(self.stretch, outcome)
        await spool_files(self.context, outcome, end, files, roles, cause=cause, part=row)

    async def _measured(self, reply: Reply, outcome: Outcome) -> tuple[Outcome, list[tuple[str, bytes]]]:
        """Return the part's outcome without its file, and that file if it has one."""
        plain = replace(self.turn, format=JOINED_FORMAT)
        made = await self.context.on_disk(make, self.item, plain, reply)
        outcome = replace(outcome, checks=made.checks, audio_duration_s=made.audio_duration_s)
        path = part_path(self.item, self.turn, self.part, f".{JOINED_FORMAT}")
        return outcome, [(path, data) for made_path, data in made.files if made_path == made.audio_path]


@dataclass(slots=True, kw_only=True)
class MultipartTurn:
    """The first turn of a recording that goes out in parts.

    Attributes:
        only_deployment: the one that can serve it; None: any.
        before: what the ledger says of the turn so far.
    """

    context: CallContext
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: PreparedRecording
    only_deployment: str | None
    before: Outcome | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def run(self) -> Outcome:
        """Send the parts that have no recorded reply yet, then join all replies.

        Raises:
            Stopping, NoDeployment, Deferred: some parts have no reply; the replies of the others stay recorded.
            InputError: the job requires fields, and no part can answer for the whole; nothing was sent.
            StorageError: the output cannot be written.
        """
        context, parts = self.context, self.sound.parts
        if self.turn.answer is not None and len(parts) > 1:
            refused = InputError(why_no_fields_in_parts(context.spec))
            log.warning("%s: %s", self.item.item_id, refused.message)
            raise refused
        done = await context.on_disk(self._recorded)
        if done:
            log.info("%s: %d of %d parts are recorded", self.item.item_id, len(done), len(parts))
        calls = await context.on_disk(
            context.ledger.reader.part_calls, self.item.item_id, self.turn.number, self.turn.fingerprint
        )
        queue = iter([part for part in parts if part.number not in done])
        failures: list[Outcome] = []
        workers = (self._work(queue, done, failures, calls) for _ in range(PARTS_AT_ONCE))
        ends = await asyncio.gather(*workers, return_exceptions=True)
        if errors := [end for end in ends if isinstance(end, BaseException)]:
            # An output that cannot be written ends the run, whatever else there was.
            raise next((error for error in errors if isinstance(error, StorageError)), errors[0])
        if failures:
            return failures[0]
        return await context.settle(self._join([done[part.number] for part in parts]))

    async def _work(
        self,
        queue: Iterator[Part],
        done: dict[int, PartOutcome],
        failures: list[Outcome],
        calls: Mapping[int, PartCalls],
    ) -> None:
        """Send parts one after the other, until there are none, one of them failed, or the run stops."""
        for part in queue:
            if failures:
                return
            if self.context.stop.asked:
                raise Stopping
            outcome = await self._send_part(part, calls.get(part.number, PartCalls()))
            if outcome.status is Status.SUCCEEDED:
                done[part.number] = _row(part, outcome)
            else:
                failures.append(outcome)

    async def _send_part(self, part: Part, earlier: PartCalls) -> Outcome:
        """Send one part, again where its reply has a flaw that the job rejects."""
        made = 0 if success_in(self.before) else earlier.made
        sound = await self.context.on_disk(self.sound.read_part, part)
        policy = PartPolicy(
            context=self.context,
            item=self.item,
            turn=self.turn,
            before=self.before,
            stretch=part,
            count=len(self.sound.parts),
        )

        async def call(standing: Outcome | None) -> Outcome:
            part_call = TurnCall(
                context=self.context,
                policy=policy,
                item=self.item,
                turn=self.turn,
                history=self.history,
                sound=sound,
                only_deployment=self.only_deployment,
                before=self.before,
                tries=Tries(
                    retry_unknown=self.context.spec.on_unknown == "retry",
                    unknown_before=standing.perhaps_billed if standing else earlier.unknown,
                ),
                cost=TurnCost.of(standing),
                earlier_attempts=0 if standing else made,
                calls=standing.attempts if standing else 0,
                standing=standing,
                trimmed_s=self.sound.trimmed_s,
            )
            return await part_call.run()

        return await redo_flawed(self.context.spec, call, await call(None))

    def _recorded(self) -> dict[int, PartOutcome]:
        """Return the parts that earlier runs recorded: the same request and stretch, their sound on disk."""
        ledger, storage = self.context.ledger, self.context.storage
        found = ledger.reader.parts_of(
            self.item.item_id, self.turn.number, next_version(self.before), PartKind.REPLY
        )
        planned = {part.number: part for part in self.sound.parts}
        return {
            number: row
            for number, row in found.items()
            if number in planned
            and row.outcome.status is Status.SUCCEEDED
            and row.is_of(self.turn.fingerprint, *_bounds_s(planned[number]))
            and (row.outcome.audio is None or storage.exists(row.outcome.audio.path))
        }

    async def _join(self, parts: Sequence[PartOutcome]) -> Outcome:
        """Make and record the whole turn's files and outcome from those of its parts."""
        context, outcomes = self.context, [part.outcome for part in parts]
        reply = await context.on_disk(self._joined_reply, outcomes)
        finishes = [outcome.finish_reason for outcome in outcomes]
        whole = replace(
            outcomes[-1],
            started_at=min(self.started, *(outcome.started_at for outcome in outcomes)),
            finished_at=datetime.now(UTC),
            run_id=context.run_id,
            transcript=reply.text,
            input_transcript=self._joined_input_transcript(outcomes),
            audio=None,
            audio_duration_s=None,
            format=self.turn.format,
            attempts=sum(outcome.attempts for outcome in outcomes),
            perhaps_billed=sum(outcome.perhaps_billed for outcome in outcomes),
            latency_s=sum(outcome.latency_s or 0.0 for outcome in outcomes),
            usage=total_usage(outcome.usage for outcome in outcomes),
            cost_usd=total_usd(outcome.cost_usd for outcome in outcomes),
            cost_basis=weakest_basis(basis_of(outcome) for outcome in outcomes),
            finish_reason=next((reason for reason in finishes if reason != "stop"), "stop"),
            audio_id=None,
            audio_expires_at=None,
            parts=len(parts),
            trimmed_s=self.sound.trimmed_s,
            settings_key=context.settings_key,
            kept_as=self.turn.kept_as,
        )
        recorded = await record_reply(
            context,
            self.item,
            self.turn,
            reply,
            outcome=whole,
            end=None,
            replaced=success_in(self.before),
            checks=tuple(check for check in Check if any(check in outcome.checks for outcome in outcomes)),
        )
        await context.on_disk(_discard, context, [outcome.audio for outcome in outcomes if outcome.audio])
        return recorded

    def _joined_input_transcript(self, outcomes: Sequence[Outcome]) -> str:
        """Join the transcripts of the recording that the parts' sessions made."""
        transcripts = [outcome.input_transcript for outcome in outcomes]
        passages = join_transcripts(self.sound.parts, transcripts)
        return " ".join(passage.text for passage in passages if passage.text)

    def _joined_reply(self, outcomes: Sequence[Outcome]) -> Reply:
        """Join the parts' texts with their times, and their sound with pauses, as if they were one reply."""
        passages = join_transcripts(self.sound.parts, [outcome.transcript for outcome in outcomes])
        sounds = [self.context.storage.read(outcome.audio.path) for outcome in outcomes if outcome.audio]
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
    """Delete the parts' own sounds, once the whole is recorded; one that cannot be deleted does no harm."""
    for file in files:
        try:
            context.storage.delete(file.path)
        except StorageError as failed:
            log.warning("%s", failed.message)


def part_path(item: Item, turn: Turn, number: int, ending: str) -> str:
    """Return the path of a part's file, in the output, until the whole is joined."""
    return output_path(
        item.item_id,
        folder="parts",
        ending=ending,
        turn=turn.number,
        filename=item.source.settings.filename,
        part=number,
    )


def _bounds_s(part: Part) -> tuple[float, float]:
    """Return where a part begins and ends in the recording, in seconds."""
    return part.timeline.start_s, part.timeline.end_s


def _row(part: Part, outcome: Outcome) -> PartOutcome:
    start_s, end_s = _bounds_s(part)
    return PartOutcome(kind=PartKind.REPLY, part=part.number, start_s=start_s, end_s=end_s, outcome=outcome)
