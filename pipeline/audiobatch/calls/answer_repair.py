"""An answer without the required fields is sent back once, for the service to correct it.

The repair is a second call of the same turn: the conversation so far, the answer as it came, and what is wrong with
it. Both calls are paid for, so the first answer is recorded at once: where a run ends before the second call, the
next run makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audiobatch.answer_schema import AnswerInvalid
from audiobatch.calls.record import spool_files
from audiobatch.errors import RETRYABLE, StorageError
from audiobatch.ledger.rows import PartOutcome
from audiobatch.limits.retry import AskAgain
from audiobatch.model import Exchange, PartKind, PriorReply, Status, next_version

if TYPE_CHECKING:
    from audiobatch.calls.context import CallContext
    from audiobatch.ledger.rows import AttemptEnd
    from audiobatch.model import Outcome, Reply, Request, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRepair:
    """An answer that lacks the required fields, and what is wrong with it."""

    answer: str
    problem: str

    def request(self, first: Request, turn: Turn) -> Request:
        """Make the second request out of the first."""
        assert turn.answer is not None
        said = Exchange(
            text=first.text,
            audio=first.audio,
            # Fields are answered in text.
            reply=PriorReply(audio_id=None, audio_expires_at=None, text=self.answer, spoken_tokens=0),
        )
        return replace(
            first,
            history=(*first.history, said),
            text=turn.answer.repair_instruction(self.problem),
            audio=None,
        )


def check_answer(
    turn: Turn, answer: str, repair: AnswerRepair | None = None, request_id: str | None = None
) -> AnswerRepair | None:
    """Return the repair that an answer needs; None where it holds the required fields.

    Args:
        turn: says which fields, if any.
        answer: the reply's text.
        repair: the one that this answer comes from, if it does.
        request_id: of the answer, for the error.

    Raises:
        AnswerInvalid: it was sent back once, and still lacks fields.
    """
    if turn.answer is None:
        return None
    try:
        turn.answer.parse(answer)
    except AnswerInvalid as wrong:
        if repair is None:
            return AnswerRepair(answer=answer, problem=wrong.message)
        message = f"the answer does not hold the fields, also after a second try: {wrong.message}"
        raise AnswerInvalid(message, raw=answer.encode(), request_id=request_id) from wrong
    return None


def send_again(repair: AnswerRepair, reply: Reply) -> AskAgain:
    """Return the error that makes the retry layer send the repair."""
    return AskAgain(f"the answer does not hold the fields: {repair.problem}", request_id=reply.request_id)


async def record_answer(context: CallContext, outcome: Outcome, end: AttemptEnd) -> None:
    """Record an answer that is to be repaired, together with the end of its call.

    Raises:
        StorageError: the output cannot be written; the answer is in the spool.
    """
    answer = PartOutcome(kind=PartKind.ANSWER, part=1, start_s=0.0, end_s=0.0, outcome=outcome)
    try:
        await context.ledger.writer.record_part(answer, end)
    except StorageError as failed:
        await spool_files(context, outcome, end, [], {}, cause=failed, part=answer)
        raise


async def recorded_answer(
    context: CallContext, item_id: str, turn: Turn, before: Outcome | None
) -> Outcome | None:
    """Return an answer that was to be repaired when its run ended; None where there is none.

    Args:
        context: of the run, for its ledger.
        item_id: of the turn's item.
        turn: that was answered.
        before: what is recorded of the turn; a final failure was the end of that answer.
    """
    version = next_version(before)
    found = await context.on_disk(
        context.ledger.reader.parts_of, item_id, turn.number, version, PartKind.ANSWER
    )
    if 1 not in found:
        return None
    answer = found[1].outcome
    if answer.fingerprint != turn.fingerprint or not answer.transcript:
        return None
    failed = before is not None and before.status is Status.FAILED and before.error_type not in RETRYABLE
    return None if failed and before and before.finished_at >= answer.finished_at else answer
