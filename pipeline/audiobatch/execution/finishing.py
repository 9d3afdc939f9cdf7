"""Finishes replies that were paid for, and that this machine could not process when they came.

It happens when a run begins, before it decides what to send: a stored body becomes files and an outcome as its
reply would have then, and nothing is sent for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from audiobatch.calls.answer_repair import check_answer
from audiobatch.calls.long_recording import JOINED_FORMAT, part_path
from audiobatch.errors import ServiceError, StorageError, Unfinished, shown
from audiobatch.inputs.sound_settings import finish_of
from audiobatch.ledger.rows import PartOutcome
from audiobatch.model import AudioPart, CostBasis, Outcome, PartKind, Request, SourceKind, Status, Usage
from audiobatch.planning.items import build_item
from audiobatch.storage.artifacts import make, raw_path, save
from audiobatch.transports.stored_body import own_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.model import Item, Reply, SavedFile, Turn
    from audiobatch.storage.local import Storage

log = logging.getLogger(__name__)


def finish_unfinished(
    ledger: Ledger, storage: Storage, spec: JobSpec, targets: Sequence[Target]
) -> tuple[int, Unfinished | None]:
    """Finish every reply that can be finished. Blocks.

    Args:
        ledger: with the outcomes that are unfinished.
        storage: with the stored bodies.
        spec: the job.
        targets: with the prices of the deployments.

    Returns:
        How many replies, and why the first of the others could not be; None where there are no others.

    Raises:
        StorageError: the output or the ledger cannot be written.
    """
    work = _Finishing(ledger, storage, spec, {target.name: target for target in targets})
    turns, parts = ledger.reader.unfinished()
    ends = [
        *(work.finish(part.outcome, partial(work.part, part)) for part in parts),
        *(work.finish(turn, partial(work.turn, turn)) for turn in turns if turn.raw_reply is not None),
    ]
    still_open = {(part.outcome.item_id, part.outcome.turn) for part in ledger.reader.unfinished()[1]}
    for turn in ledger.reader.unfinished()[0]:
        if turn.raw_reply is None and (turn.item_id, turn.turn) not in still_open:
            ledger.writer.record_outcome(_reopened(turn)).wait()  # its other parts are sent
    return ends.count(None), next((failed for failed in ends if failed is not None), None)


@dataclass(frozen=True, slots=True)
class _Finishing:
    """Finishes one reply at a time."""

    ledger: Ledger
    storage: Storage
    spec: JobSpec
    targets: Mapping[str, Target]

    def finish(self, outcome: Outcome, work: Callable[[], None]) -> Unfinished | None:
        """Do the work for one reply; return why it failed, or None."""
        assert outcome.raw_reply is not None
        try:
            work()
        except StorageError:
            raise
        except Exception as failed:
            log.exception("%s turn %d: cannot be finished", outcome.item_id, outcome.turn)
            body = shown(outcome.raw_reply.path)
            return Unfinished(
                f"{shown(outcome.item_id)}: a reply that is paid for ({body}) still cannot be worked on: "
                f"{failed!r}. Nothing was sent. Run again when that is repaired; --redo buys a new one",
                is_disk_trouble=isinstance(failed, OSError),
            )
        return None

    def turn(self, outcome: Outcome) -> None:
        """Finish a turn that went out in one request."""
        assert outcome.raw_reply is not None
        item, turn = self._sent_turn(outcome)
        try:
            reply = self._reply(outcome, item, turn)
            saved = save(self.storage, item, turn, reply, None, finish_of(self.spec))
        except ServiceError as failed:
            bad = replace(
                outcome, status=Status.FAILED, error_type=failed.error_type, error_message=failed.message
            )
            self.ledger.writer.record_outcome(bad).wait()
            return
        done = replace(
            self._succeeded(outcome, reply),
            audio=saved.audio,
            transcript_file=saved.transcript,
            audio_duration_s=saved.made.audio_duration_s,
            checks=saved.made.checks,
        )
        if check_answer(turn, reply.transcript_or_text) is None:
            self.ledger.writer.record_outcome(done).wait()
        else:  # it is repaired, as it would have been then
            answer = PartOutcome(kind=PartKind.ANSWER, part=1, start_s=0.0, end_s=0.0, outcome=done)
            self.ledger.writer.record_part(answer).wait()
            self.ledger.writer.record_outcome(_reopened(outcome)).wait()
        self.storage.delete(outcome.raw_reply.path)

    def part(self, part: PartOutcome) -> None:
        """Finish a part of a long recording's turn."""
        outcome = part.outcome
        assert outcome.raw_reply is not None
        item, turn = self._sent_turn(outcome)
        plain = replace(turn, format=JOINED_FORMAT)
        try:
            reply = self._reply(outcome, item, plain)
            made = make(item, plain, reply)
        except ServiceError as failed:
            self._fail_part(part, outcome.raw_reply, failed)
            return
        path = part_path(item, turn, part.part, f".{JOINED_FORMAT}")
        files = [(path, data) for made_path, data in made.files if made_path == made.audio_path]
        saved = self.storage.write_many(files)
        done = replace(
            self._succeeded(outcome, reply),
            audio=saved[0] if saved else None,
            audio_duration_s=made.audio_duration_s,
            checks=made.checks,
        )
        self.ledger.writer.record_part(replace(part, outcome=done)).wait()
        self.storage.delete(outcome.raw_reply.path)

    def _fail_part(self, part: PartOutcome, body: SavedFile, failed: ServiceError) -> None:
        """Record that a part's reply is unusable after all: it fails its turn, as it would have then."""
        outcome, data = part.outcome, self.storage.read(body.path)
        bad = replace(
            outcome,
            status=Status.FAILED,
            error_type=failed.error_type,
            error_message=f"part {part.part}: {failed.message}",
            raw_reply=self.storage.write(raw_path(outcome.item_id, outcome.turn, data), data),
        )
        self.ledger.writer.record_part(replace(part, outcome=replace(bad, raw_reply=None)), None, bad).wait()
        self.storage.delete(body.path)

    def _sent_turn(self, outcome: Outcome) -> tuple[Item, Turn]:
        """Return the turn as it was sent, whatever the job says today."""
        (recorded,) = self.ledger.reader.recorded_of([outcome.item_id])
        item = build_item(recorded.source, self.spec)
        turn = next((turn for turn in item.turns if turn.number == outcome.turn), item.turns[-1])
        sent = replace(
            turn,
            number=outcome.turn,
            text=outcome.prompt,
            voice=outcome.voice,
            format=outcome.format,
            modalities=("text", "audio") if outcome.format else ("text",),
        )
        return item, sent

    def _reply(self, outcome: Outcome, item: Item, turn: Turn) -> Reply:
        from audiobatch.transports.chat_reply import reply_of  # brings the service's client

        assert outcome.raw_reply is not None
        body = self.storage.read(outcome.raw_reply.path)
        note = own_fields(body)
        has_recording = item.source.kind is SourceKind.RECORDING and turn.number == 1
        request = Request(
            item_id=outcome.item_id,
            turn=turn.number,
            system="",
            history=(),
            text="",
            audio=AudioPart(data=b"", format="wav", duration_s=0.0) if has_recording else None,
            modalities=turn.modalities,
            voice=turn.voice,
            format=turn.format,
        )
        reply = reply_of(body, {}, note.get("latency_s", 0.0), request)
        if note:
            reply = replace(
                reply,
                usage=_usage(note["usage"]),
                input_usage=_usage(note["input_usage"]),
                audio_format=note["audio_format"] or reply.audio_format,
                transcript=note["transcript"],
                input_transcript=note["input_transcript"],
                repaired=note["repaired"],
            )
        return replace(reply, request_id=outcome.request_id or None).without_secrets()

    def _succeeded(self, outcome: Outcome, reply: Reply) -> Outcome:
        """Make the outcome of the reply, without its files."""
        cost, basis = outcome.cost_usd, outcome.cost_basis
        if outcome.usage is None and cost is None and (target := self.targets.get(outcome.deployment)):
            cost = target.reply_usd(reply)
            basis = CostBasis.UNKNOWN if cost is None else CostBasis.USAGE
        return replace(
            outcome,
            status=Status.SUCCEEDED,
            error_type=None,
            error_message="",
            raw_reply=None,
            finished_at=datetime.now(UTC),
            transcript=reply.transcript_or_text,
            input_transcript=reply.input_transcript,
            latency_s=reply.latency_s or None,
            usage=outcome.usage or reply.usage,
            cost_usd=cost,
            cost_basis=basis,
            finish_reason=reply.finish_reason,
            audio_id=reply.audio_id,
            audio_expires_at=reply.audio_expires_at,
        )


def _usage(counts: Mapping[str, int] | None) -> Usage | None:
    return Usage(**counts) if counts else None


def _reopened(outcome: Outcome) -> Outcome:
    """Return the outcome as it was before its call, so that the next call is made."""
    return replace(outcome, status=Status.PENDING, error_type=None, error_message="", raw_reply=None)
