"""Words written down by the transcription service: what recordings say, and what replies can be heard to say.

They are added to a result that is recorded already. Each call is journalled, limited, paid for and recorded
like any other; a long recording takes one for each of its parts. Where the service will not, the result stays as
it is, without them, and the next run tries again.
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
from audiobatch.calls.record import keep_in_spool
from audiobatch.calls.turn import TurnCall
from audiobatch.config.prices import total_usd
from audiobatch.config.transcription_rules import LONGEST_S, wanted_of
from audiobatch.errors import AudioBatchError, BadReply, InputError, StorageError, Unfinished, redacted_bytes
from audiobatch.inputs.recording import open_bytes
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
    from audiobatch.inputs.recording import SoundInput
    from audiobatch.ledger.ledger import Attempt, AttemptEnd
    from audiobatch.model import AudioPart, Item, Outcome, Reply, Request

log = logging.getLogger(__name__)

_TIME_MARK = re.compile(r"\[\d+:\d\d:\d\d\] ")


@dataclass(kw_only=True)  # without slots: `super` needs the class as it is written
class TranscriptionCall(TurnCall):
    """One part's words on their way.

    Attributes:
        kept: the words, recorded; None while they are not.
    """

    kind: PartKind
    part: Part
    kept: PartOutcome | None = None

    def _request(self) -> Request:
        item_id = f"{transcription_id(self.item.item_id, self.kind)}{self.part.number}"
        return replace(super()._request(), item_id=item_id, system="", text="", voice="", format="")

    def _attempt(self, deployment: str) -> Attempt:
        return replace(super()._attempt(deployment), part=self.part.number)

    async def _keep(self, reply: Reply, attempt: Attempt) -> Outcome:
        outcome, end = self._succeeded(reply, attempt)
        self.kept = self._words(reply, outcome)
        try:
            await self.context.ledger.record_part(self.kept, end)
        except StorageError as failed:
            await keep_in_spool(self.context, self.kept.outcome, end, [], {}, because=failed, part=self.kept)
            raise
        return self.kept.outcome

    def _words(self, reply: Reply, outcome: Outcome) -> PartOutcome:
        timeline = self.part.timeline
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
        return _row(self.kind, self.part.number, timeline, outcome, cues)

    async def _keep_unfinished(self, failed: Unfinished, end: AttemptEnd) -> Outcome:
        """The body is kept with a row of its own; whoever asks for these words next finishes them from it."""
        context = self.context
        body, place = redacted_bytes(failed.raw), self._body_path()
        row = _row(self.kind, self.part.number, self.part.timeline, self._unfinished(failed), ())
        try:
            (saved,) = await context.on_disk(context.storage.write_many, [(place, body)])
            await context.ledger.record_part(replace(row, outcome=replace(row.outcome, raw_reply=saved)), end)
        except StorageError as unwritten:
            roles = {"raw_reply": place}
            await keep_in_spool(
                context, row.outcome, end, [(place, body)], roles, because=unwritten, part=row
            )
            raise
        self._stop_for(failed)
        raise _NoWords(failed.message) from failed

    def _body_path(self) -> str:
        item_id = transcription_id(self.item.item_id, self.kind)
        return output_path(
            item_id, folder="parts", ending=".json", turn=self.turn.number, part=self.part.number
        )

    async def finish(self, unfinished: PartOutcome) -> None:
        """Make the words of a body that was kept; nothing is sent.

        Raises:
            BadReply: it holds none after all.
        """
        from audiobatch.transports.transcriptions import decode  # brings the service's client

        context, outcome = self.context, unfinished.outcome
        assert outcome.raw_reply is not None
        reply = decode(await context.on_disk(context.storage.read, outcome.raw_reply.path), {}, 0.0)
        done = replace(outcome, status=Status.SUCCEEDED, error_type=None, error_message="", raw_reply=None)
        self.kept = self._words(reply.without_secrets(), done)
        await context.ledger.record_part(self.kept)
        await context.on_disk(context.storage.delete, outcome.raw_reply.path)
        context.stats.finished += 1

    async def _failed(self, failed: AudioBatchError, end: AttemptEnd | None = None) -> Outcome:
        """The result stays as it is."""
        if end is not None:
            await self.context.ledger.record_end(end)
        raise _NoWords(failed.message) from failed


class _NoWords(Exception):
    """The words could not be had in this run."""


@dataclass(slots=True, kw_only=True)
class TranscriptionPass:
    """The words of one item's results."""

    context: CallContext
    item: Item
    sound: SoundInput | None

    async def add_to(self, outcome: Outcome) -> Outcome:
        """The outcome with the words that it lacks, recorded; or as it was, where they could not be had.

        Raises:
            Stopping: the run is stopping.
            StorageError: the output cannot be written.
        """
        written = await self.context.on_disk(self.context.ledger.written_down, outcome.item_id)
        for kind in wanted_of(outcome, self.item.source, self.context.spec, written):
            try:
                outcome = await self._add(kind, outcome)
            except (_NoWords, NoDeployment, Deferred, InputError, BadReply) as failed:
                self.context.stats.unheard += 1
                log.warning("%s turn %d: no %s words: %s", outcome.item_id, outcome.turn, kind, failed)
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
            sound = await context.on_disk(open_bytes, data, PurePosixPath(outcome.audio.path).name)
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
        self, kind: PartKind, turn: Turn, model: str, sound: SoundInput, outcome: Outcome
    ) -> Outcome:
        context = self.context
        parts = await context.on_disk(_parts_of, sound)
        found = await context.on_disk(
            context.ledger.parts_of, outcome.item_id, outcome.turn, outcome.version, kind
        )
        rows = [
            known
            if (known := _known(found, turn, part)) is not None and known.outcome.status is Status.SUCCEEDED
            else await self._ask(kind, part, sound, turn, model, outcome, known)
            for part in parts
        ]
        return await context.settle(self._record(kind, parts, rows, outcome))

    async def _ask(  # noqa: PLR0917
        self,
        kind: PartKind,
        part: Part,
        sound: SoundInput,
        turn: Turn,
        model: str,
        outcome: Outcome,
        known: PartOutcome | None,
    ) -> PartOutcome:
        context = self.context
        key = (outcome.item_id, turn.number, turn.fingerprint)
        writing = TranscriptionCall(
            context=context,
            item=replace(
                self.item,
                model=model,
                deployment=model,
                max_completion_tokens=None,
                temperature=None,
                seed=None,
            ),
            turn=turn,
            history=(),
            sound=await context.on_disk(_bytes_of, sound, part),
            bound=model,
            before=replace(outcome, status=Status.PENDING, fingerprint=""),
            tries=Tries(
                retry_unknown=context.spec.on_unknown == "retry",
                unknown_before=context.unknown_before.get(key, 0),
            ),
            kind=kind,
            part=part,
        )
        if known is not None:
            await context.settle(writing.finish(known))
        else:
            await writing.run()
        assert writing.kept is not None
        return writing.kept

    async def _record(
        self, kind: PartKind, parts: Sequence[Part], rows: Sequence[PartOutcome], outcome: Outcome
    ) -> Outcome:
        """Put the parts' words together, and into the result: its row, and subtitles where there are times."""
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
        words = replace(rows[0].outcome, transcript=text, finished_at=datetime.now(UTC), cost_usd=None)
        await context.ledger.record_part(_row(kind, 0, whole, words, cues), None, outcome)
        return outcome


def word_error_rate(said: str, heard: str) -> float | None:
    """Words changed, left out or put in, as a share of the words said; None where nothing was said.

    Case, punctuation and the time marks of joined transcripts do not count.
    """
    import jiwer

    wanted = spoken_words(_TIME_MARK.sub("", said))
    if not wanted:
        return None
    return round(float(jiwer.wer(" ".join(wanted), " ".join(spoken_words(heard)))), 4)


def _known(found: Mapping[int, PartOutcome], turn: Turn, part: Part) -> PartOutcome | None:
    """What is recorded of these very words: had, or paid for and not finished; a purge may have taken either."""
    row = found.get(part.number)
    if row is None or not row.is_of(turn.fingerprint, part.timeline.start_s, part.timeline.end_s):
        return None
    is_there = row.outcome.status is Status.SUCCEEDED or row.outcome.raw_reply is not None
    return row if is_there else None


def _parts_of(sound: SoundInput) -> tuple[Part, ...]:
    """The stretches to write down one by one: as the recording is sent, unless those are too long for it."""
    if sound.parts and all(part.timeline.duration_s <= LONGEST_S for part in sound.parts):
        return sound.parts
    if sound.duration_s > LONGEST_S:
        return sound.in_parts(PART_S)
    whole = sound.timeline or Timeline((Span(start_s=0.0, end_s=sound.media.duration_s),))
    return (Part(number=1, timeline=whole, overlap_s=0.0),)


def _bytes_of(sound: SoundInput, part: Part) -> AudioPart:
    return sound.whole() if part.timeline.duration_s == sound.duration_s else sound.of(part)


def _in_order(parts: Sequence[Part], rows: Sequence[PartOutcome]) -> list[Cue]:
    """The parts' cues; where two parts overlap, those of the second begin where those of the first end."""
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
