"""A reply that does not hold the fields that were asked for is asked to be put right, once.

The repair is a second call of the same turn: what was said so far, the answer as it came, and what is wrong with
it. Both calls are paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.answers import AnswerInvalid
from pipeline.limits.retry import AskAgain
from pipeline.model import Exchange, PriorReply

if TYPE_CHECKING:
    from pipeline.model import Reply, Request, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """An answer that did not fit, and why."""

    words: str
    problem: str

    def request(self, first: Request, turn: Turn) -> Request:
        """The second request, made of the first."""
        assert turn.answer is not None
        said = Exchange(
            text=first.text,
            audio=first.audio,
            # Fields are answered in text.
            reply=PriorReply(audio_id=None, audio_expires_at=None, text=self.words, spoken_tokens=0),
        )
        return replace(
            first,
            history=(*first.history, said),
            text=turn.answer.repair_instruction(self.problem),
            audio=None,
        )


def check_answer(turn: Turn, reply: Reply, repair: Repair | None) -> Repair | None:
    """What is to be put right in a reply; None where nothing is.

    Args:
        repair: the one that this reply comes from, if it does.

    Raises:
        AnswerInvalid: it was asked to be put right, and still does not fit.
    """
    if turn.answer is None:
        return None
    try:
        turn.answer.parse(reply.words)
    except AnswerInvalid as wrong:
        if repair is None:
            return Repair(words=reply.words, problem=wrong.message)
        message = f"the answer does not hold the fields, also after a second try: {wrong.message}"
        raise AnswerInvalid(message, raw=reply.words.encode(), request_id=reply.request_id) from wrong
    return None


def ask_again(repair: Repair, reply: Reply) -> AskAgain:
    """What makes the turn's next call."""
    return AskAgain(f"the answer does not hold the fields: {repair.problem}", request_id=reply.request_id)
