"""Transcripts made by the transcription service: of what recordings say, and of how replies can be understood.

They are added to a result that is recorded already. Each call is recorded, limited and counted like any other; a
long recording takes one for each of its parts. Where the service refuses, the result stays as it is, without a
transcript, and the next run tries again.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from audiobatch.audio.join import join_transcripts, to_srt, to_vtt
from audiobatch.audio.measure import spoken_words
from audiobatch.audio.split import PART_S, Part
from audiobatch.audio.trim import Span, Timeline
from audiobatch.calls.record import spool_files
from audiobatch.calls.turn import TurnCall
from audiobatch.config.prices import total_usd
from audiobatch.config.transcription_rules import MAX_TRANSCRIPTION_S, missing_transcripts
from audiobatch.errors import BadReply, InputError, StorageError, redacted_bytes
from audiobatch.inputs.prepared_recording import prepare_bytes
from audiobatch.ledger.rows import PartOutcome
from audiobatch.limits.pool import NoDeployment
from audiobatch.limits.retry import Deferred, Tries
from audiobatch.model import Check, Cue, PartKind, Status, Turn, basis_of, weakest_basis
from audiobatch.planning.items import digest
from audiobatch.storage.names import output_path, transcription_id
from audiobatch.storage.versions import subtitle_paths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from audiobatch.calls.context import CallContext
    from audiobatch.errors import AudioBatchError
    from audiobatch.inputs.prepared_recording import PreparedRecording
    from audiobatch.ledger.rows import AttemptEnd
    from audiobatch.model import AudioPart, Item, Outcome, Reply, Request

log = logging.getLogger(__name__)

_TIME_MARK = re.compile(r"\[\d+:\d\d:\d\d\] ")


@dataclass(slots=True, kw_only=True)
class TranscriptionPolicy:
    """Records the transcript of one part as a row of its own (a `TurnPolicy`).

    Attributes:
        kind: whether the recording or the reply is transcribed.
        stretch: the part that is transcribed.
        row: the transcript, recorded; None until then.
    """

    context: CallContext
    item: Item
    turn: Turn
    kind: PartKind
    stretch: Part
    row: PartOutcome | None = None

    @property
    def part(self) -> int:
        """Return the part's number, from 1."""
        return self.stretch.number

    def build_request(self, request: Request) -> Request:
        """Send the sound alone."""
        item_id = f"{transcription_id(self.item.item_id, self.kind)}{self.part}"
        return replace(request, item_id=item_id, system="", text="", voice="", format="")

    def error_message(self, error: AudioBatchError) -> str:
        """Return the error's own message."""
        return error.message

    async def record(self, reply: Reply, outcome: Outcome, end: AttemptEnd) -> Outcome:
        """Record the transcript with the end of its call."""
        row = self._row_of(reply, outcome)
        try:
            await self.context.ledger.writer.record_part(row, end)
        except StorageError as failed:
            await self._spool(row, end, failed)
            raise
        self.row = row
        return row.outcome

    async def spool(self, reply: Reply, outcome: Outcome, end: AttemptEnd, cause: StorageError) -> None:
        """Put the transcript into the spool."""
        await self._spool(self._row_of(reply, outcome), end, cause)

    async def record_failure(self, outcome: Outcome, end: AttemptEnd | None, raw: bytes) -> Outcome:
        """Record the call's end alone: the result stays as it is."""
        if end is not None:
            await self.context.ledger.writer.record_end(end)
        return outcome

    async def record_unfinished(self, outcome: Outcome, end: AttemptEnd, raw: bytes) -> Outcome:
        """Store the body with a row of its own; the next request for this transcript finishes it."""
        context = self.context
        body, path = redacted_bytes(raw), self._body_path()
        row = _row(self.kind, self.part, self.stretch.timeline, outcome, ())
        try:
            (saved,) = await context.on_disk(context.storage.write_many, [(path, body)])
            await context.ledger.writer.record_part(
                replace(row, outcome=replace(row.outcome, raw_reply=saved)), end
            )
        except StorageError as failed:
            roles = {"raw_reply": path}
            await spool_files(context, row.outcome, end, [(path, body)], roles, cause=failed, part=row)
            raise
        return outcome

    async def finish(self, unfinished: PartOutcome) -> PartOutcome:
        """Make the transcript from a stored body, and record it; nothing is sent.

        Raises:
            BadReply: the body holds none after all; the next run sends the sound again.
        """
        from audiobatch.transports.transcriptions import decode  # brings the service's client

        context, outcome = self.context, unfinished.outcome
        assert outcome.raw_reply is not None
        body = await context.on_disk(context.storage.read, outcome.raw_reply.path)
        try:
            reply = decode(body, {}, 0.0)
        except BadReply as bad:
            failed = replace(outcome, status=Status.FAILED, error_type=bad.error_type, raw_reply=None)
            await context.ledger.writer.record_part(replace(unfinished, outcome=failed))
            await context.on_disk(context.storage.delete, outcome.raw_reply.path)
            raise
        done = replace(outcome, status=Status.SUCCEEDED, error_type=None, error_message="", raw_reply=None)
        row = self._row_of(reply.without_secrets(), done)
        await context.ledger.writer.record_part(row)
        await context.on_disk(context.storage.delete, outcome.raw_reply.path)
        context.stats.finished += 1
        return row

    def _row_of(self, reply: Reply, outcome: Outcome) -> PartOutcome:
        timeline = self.stretch.timeline
        cues = tuple(
            Cue(
                start_s=round(timeline.to_source_s(cue.start_s), 3),
                end_s=round(timeline.to_source_s(cue.end_s), 3),
                text=cue.text,
            )
            for cue in reply.cues
        )
        checks = (Check.REPAIRED,) if reply.repaired else ()
        outcome = replace(outcome, transcript=reply.text, checks=checks)
        return _row(self.kind, self.part, timeline, outcome, cues)

    def _body_path(self) -> str:
        item_id = transcription_id(self.item.item_id, self.kind)
        return output_path(item_id, folder="parts", ending=".json", turn=self.turn.number, part=self.part)

    async def _spool(self, row: PartOutcome, end: AttemptEnd, cause: StorageError) -> None:
        await spool_files(self.context, row.outcome, end, [], {}, cause=cause, part=row)


class _NotTranscribed(Exception):
    """The service made no transcript in this run."""


@dataclass(slots=True, kw_only=True)
class TranscriptionPass:
    """The transcripts of one item's results.

    Attributes:
        sound: the recording; None where the item has none.
    """

    context: CallContext
    item: Item
    sound: PreparedRecording | None

    async def add_to(self, outcome: Outcome) -> Outcome:
        """Add the transcripts that a result lacks, and record it.

        Returns:
            The outcome; as it was where the service made no transcript.

        Raises:
            Stopping: the run is stopping.
            StorageError: the output cannot be written.
        """
        written = await self.context.on_disk(self.context.ledger.reader.transcribed, outcome.item_id)
        for kind in missing_transcripts(outcome, self.item.source, self.context.spec, written):
            try:
                outcome = await self._add(kind, outcome)
            except (_NotTranscribed, NoDeployment, Deferred, InputError, BadReply) as failed:
                self.context.stats.not_transcribed += 1
                log.warning("%s turn %d: no %s transcript: %s", outcome.item_id, outcome.turn, kind, failed)
        return outcome

    async def _add(self, kind: PartKind, outcome: Outcome) -> Outcome:
        context = self.context
        if kind is PartKind.INPUT:
            assert self.sound is not None
            assert context.spec.transcribe_inputs is not None
            model, sound, sha256 = context.spec.transcribe_inputs, self.sound, outcome.input_sha256
        else:
            assert outcome.audio is not None
            assert context.spec.verify_speech is not None
            data = await context.on_disk(context.storage.read, outcome.audio.path)
            sound = await context.on_disk(prepare_bytes, data, PurePosixPath(outcome.audio.path).name)
            model, sha256 = context.spec.verify_speech, outcome.audio.sha256
        turn = Turn(
            number=outcome.turn,
            text="",
            modalities=("text",),
            voice="",
            format="",
            fingerprint=digest({"words": kind.value, "of": sha256, "by": model}),
        )
        try:
            return await self._of_sound(kind, turn, model, sound, outcome)
        finally:
            if sound is not self.sound:
                sound.close()

    async def _of_sound(
        self, kind: PartKind, turn: Turn, model: str, sound: PreparedRecording, outcome: Outcome
    ) -> Outcome:
        context = self.context
        item = replace(
            self.item, model=model, deployment=model, max_completion_tokens=None, temperature=None, seed=None
        )
        parts = await context.on_disk(_parts_of, sound)
        recorded = await context.on_disk(
            context.ledger.reader.parts_of, outcome.item_id, outcome.turn, outcome.version, kind
        )
        rows = []
        for part in parts:
            policy = TranscriptionPolicy(context=context, item=item, turn=turn, kind=kind, stretch=part)
            rows.append(await self._row(policy, sound, outcome, _known(recorded, turn, part)))
        return await context.settle(self._record(kind, parts, rows, outcome))

    async def _row(
        self,
        policy: TranscriptionPolicy,
        sound: PreparedRecording,
        outcome: Outcome,
        known: PartOutcome | None,
    ) -> PartOutcome:
        """Return the transcript of one part: recorded, finished from its body, or made by a call."""
        context, item, turn = self.context, policy.item, policy.turn
        if known is not None and known.outcome.status is Status.SUCCEEDED:
            return known
        if known is not None:
            return await context.settle(policy.finish(known))
        key = (outcome.item_id, turn.number, turn.fingerprint)
        call = TurnCall(
            context=context,
            policy=policy,
            item=item,
            turn=turn,
            history=(),
            sound=await context.on_disk(_bytes_of, sound, policy.stretch),
            only_deployment=item.deployment,
            before=replace(outcome, status=Status.PENDING, fingerprint=""),
            tries=Tries(
                retry_unknown=context.spec.on_unknown == "retry",
                unknown_before=context.unknown_before.get(key, 0),
            ),
        )
        ended = await call.run()
        if policy.row is None:
            raise _NotTranscribed(ended.error_message)
        return policy.row

    async def _record(
        self, kind: PartKind, parts: Sequence[Part], rows: Sequence[PartOutcome], outcome: Outcome
    ) -> Outcome:
        """Join the parts' transcripts, and add them to the result: its row, and subtitles where there are times."""
        context = self.context
        passages = join_transcripts(parts, [row.outcome.transcript for row in rows])
        text = " ".join(passage.text for passage in passages if passage.text)
        cues = tuple(_in_order(parts, rows))
        costs = [outcome.cost_usd, *(row.outcome.cost_usd for row in rows)]
        bases = (basis_of(outcome), *(basis_of(row.outcome) for row in rows))
        checks = dict.fromkeys([*outcome.checks, *(check for row in rows for check in row.outcome.checks)])
        outcome = replace(
            outcome, cost_usd=total_usd(costs), cost_basis=weakest_basis(bases), checks=tuple(checks)
        )
        if kind is PartKind.INPUT:
            outcome = replace(outcome, input_transcript=text)
            if cues and outcome.transcript_file is not None:
                srt, vtt = subtitle_paths(outcome.transcript_file.path)
                files = [(srt, to_srt(cues).encode()), (vtt, to_vtt(cues).encode())]
                await context.on_disk(context.storage.write_many, files)
        else:
            outcome = replace(outcome, word_error_rate=word_error_rate(outcome.transcript, text))
        whole = Timeline((Span(start_s=parts[0].timeline.start_s, end_s=parts[-1].timeline.end_s),))
        joined = replace(rows[0].outcome, transcript=text, finished_at=datetime.now(UTC), cost_usd=None)
        await context.ledger.writer.record_part(_row(kind, 0, whole, joined, cues), None, outcome)
        return outcome


def word_error_rate(reference: str, transcript: str) -> float | None:
    """Return the words changed, left out or inserted, as a share of the reference's; None where it has none.

    Case, punctuation and the time marks of joined transcripts do not count.
    """
    import jiwer

    words = spoken_words(_TIME_MARK.sub("", reference))
    if not words:
        return None
    return round(float(jiwer.wer(" ".join(words), " ".join(spoken_words(transcript)))), 4)


def _known(recorded: Mapping[int, PartOutcome], turn: Turn, part: Part) -> PartOutcome | None:
    """Return the transcript's row, done or unfinished; None where there is none, or a purge has emptied it."""
    row = recorded.get(part.number)
    if row is None or not row.is_of(turn.fingerprint, part.timeline.start_s, part.timeline.end_s):
        return None
    is_usable = row.outcome.status is Status.SUCCEEDED or row.outcome.raw_reply is not None
    return row if is_usable else None


def _parts_of(sound: PreparedRecording) -> tuple[Part, ...]:
    """Return the parts to transcribe one by one: as the recording is sent, unless those are too long for it."""
    if sound.parts and all(part.timeline.duration_s <= MAX_TRANSCRIPTION_S for part in sound.parts):
        return sound.parts
    if sound.duration_s > MAX_TRANSCRIPTION_S:
        return sound.split(PART_S)
    whole = sound.timeline or Timeline((Span(start_s=0.0, end_s=sound.media.duration_s),))
    return (Part(number=1, timeline=whole, overlap_s=0.0),)


def _bytes_of(sound: PreparedRecording, part: Part) -> AudioPart:
    return sound.read() if part.timeline.duration_s == sound.duration_s else sound.read_part(part)


def _in_order(parts: Sequence[Part], rows: Sequence[PartOutcome]) -> list[Cue]:
    """Return the parts' cues; where two parts overlap, those of the second begin where those of the first end."""
    cues: list[Cue] = []
    for part, row in zip(parts, rows, strict=True):
        after_s = cues[-1].end_s if cues and part.overlap_s else 0.0
        cues += [cue for cue in row.cues if (cue.start_s + cue.end_s) / 2 >= after_s]
    return cues


def _row(
    kind: PartKind, number: int, timeline: Timeline, outcome: Outcome, cues: tuple[Cue, ...]
) -> PartOutcome:
    return PartOutcome(
        kind=kind,
        part=number,
        start_s=timeline.start_s,
        end_s=timeline.end_s,
        outcome=outcome,
        cues=cues,
    )
