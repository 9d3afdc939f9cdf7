"""Which results stand and which are made again, by a reviewer's marks: one rule for the plan and the workers.

| a turn marked | is |
|---|---|
| `ok` | never replaced while it has its reply, whatever changed, unless `--force` |
| `reject` | never sent |
| `redo` | sent by `retry --review redo`, with its note if asked for; by nothing else |

A redo with a note has a fingerprint of its own, and is recorded under the plain one, too (`kept_as`): a later run
accepts it and buys nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audiobatch.model import Status
from audiobatch.planning.items import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audiobatch.ledger.ledger import Recorded
    from audiobatch.model import Outcome, Turn

_STEERED = (
    "A reviewer listened to an earlier reply to this and asked for a change. "
    "Follow it, whatever else is asked:\n{note}"
)


def is_done(outcome: Outcome | None, turn: Turn, kept_as: str | None) -> bool:
    """Whether a turn's result is there."""
    return (
        outcome is not None
        and outcome.status is Status.SUCCEEDED
        and turn.fingerprint in {outcome.fingerprint, kept_as}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run may replace.

    Attributes:
        reviews: only turns with one of these marks are sent, and all of them; empty: marks only protect.
        with_notes: a mark's note goes along with the request.
        force: approved results may be replaced too.
    """

    reviews: frozenset[str] = frozenset()
    with_notes: bool = False
    force: bool = False

    def stands(self, one: Recorded, turn: Turn) -> bool:
        """Whether a turn is left as it is."""
        outcome = one.outcomes.get(turn.number)
        mark = one.reviews.get(turn.number)
        review = mark.review if mark else ""
        approved = review == "ok" and outcome is not None and outcome.status is Status.SUCCEEDED
        if approved and not self.force:
            return True
        if self.reviews:
            return review not in self.reviews
        return review == "reject" or is_done(outcome, turn, one.kept_as.get(turn.number))

    def asked(self, one: Recorded, turn: Turn) -> Turn:
        """The turn as it is asked in this run: with the reviewer's note, where that is wanted."""
        mark = one.reviews.get(turn.number)
        if not (self.reviews and self.with_notes and mark and mark.note):
            return turn
        return replace(
            turn,
            note=mark.note,
            fingerprint=digest({"turn": turn.fingerprint, "note": mark.note}),
            kept_as=turn.fingerprint,
        )


def marked(records: Iterable[Recorded], reviews: frozenset[str]) -> int:
    """How many items have a turn with one of these marks, among all inputs that were ever found."""
    return sum(any(one.review in reviews for one in record.reviews.values()) for record in records)


def system_of(system: str, turn: Turn) -> str:
    """The system prompt of a turn's request, with the note that steers it."""
    return f"{system}\n\n{_STEERED.format(note=turn.note)}".strip() if turn.note else system


def text_of(turn: Turn) -> str:
    """What the user says in a turn's request: its text, and which fields the answer is to hold."""
    parts = (turn.text, turn.answer.instruction if turn.answer else "")
    return "\n\n".join(part for part in parts if part)
