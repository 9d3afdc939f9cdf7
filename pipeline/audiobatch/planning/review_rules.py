"""Decide by a reviewer's marks which results are left and which are sent again, for the plan and for workers.

| mark of a turn | the turn is |
|---|---|
| `ok` | never replaced while it has its reply, whatever changed, except with `--force` |
| `reject` | never sent |
| `redo` | sent only by `retry --review redo`, and with `--with-notes` together with its note |

A redo with a note has a fingerprint of its own. It is recorded under the plain one, too (`kept_as`), so that a
later run accepts it and sends nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from audiobatch.model import Status
from audiobatch.planning.items import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audiobatch.ledger.reader import Recorded
    from audiobatch.model import Outcome, Turn

_WITH_NOTE = (
    "A reviewer listened to an earlier reply to this and asked for a change. "
    "Follow it, whatever else is asked:\n{note}"
)


def is_done(outcome: Outcome | None, turn: Turn, kept_as: str | None) -> bool:
    """Whether a turn has the reply to just this request."""
    return (
        outcome is not None
        and outcome.status is Status.SUCCEEDED
        and turn.fingerprint in {outcome.fingerprint, kept_as}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run may replace.

    Attributes:
        reviews: send all turns with one of these marks and no others; empty: marks only protect results.
        with_notes: send a mark's note with the request.
        force: replace approved results, too.
    """

    reviews: frozenset[str] = frozenset()
    with_notes: bool = False
    force: bool = False

    def leaves(self, record: Recorded, turn: Turn) -> bool:
        """Whether a turn is left as it is, and not sent."""
        outcome = record.outcomes.get(turn.number)
        mark = record.reviews.get(turn.number)
        review = mark.review if mark else ""
        approved = review == "ok" and outcome is not None and outcome.status is Status.SUCCEEDED
        if approved and not self.force:
            return True
        if self.reviews:
            return review not in self.reviews
        return review == "reject" or is_done(outcome, turn, record.kept_as.get(turn.number))

    def apply_note(self, record: Recorded, turn: Turn) -> Turn:
        """Return the turn with its mark's note, if notes are sent."""
        mark = record.reviews.get(turn.number)
        if not (self.reviews and self.with_notes and mark and mark.note):
            return turn
        return replace(
            turn,
            note=mark.note,
            fingerprint=digest({"turn": turn.fingerprint, "note": mark.note}),
            kept_as=turn.fingerprint,
        )


def count_marked(records: Iterable[Recorded], reviews: frozenset[str]) -> int:
    """Count the items that have a turn with one of these marks."""
    return sum(any(mark.review in reviews for mark in record.reviews.values()) for record in records)


def system_of(system: str, turn: Turn) -> str:
    """Return the system prompt of a turn's request, with the reviewer's note."""
    return f"{system}\n\n{_WITH_NOTE.format(note=turn.note)}".strip() if turn.note else system


def text_of(turn: Turn) -> str:
    """Return the user's message in a turn's request: its text, and the instruction for the answer's fields."""
    parts = (turn.text, turn.answer.instruction if turn.answer else "")
    return "\n\n".join(part for part in parts if part)
