"""Reviewers' marks in the ledger: each is of one version of one turn's reply, or of its having none.

So a mark needs no clearing when its turn is made again, a failed redo leaves it standing, and the marks of
earlier versions stay with them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from audiobatch.ledger.schema import marks
from audiobatch.model import Review, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from audiobatch.model import Outcome

_KEY = ("item_id", "turn", "version", "replied")


def made_on(outcome: Outcome | None) -> tuple[int, int]:
    """What marks on this outcome are of: (version, 1 if there is a reply, else 0)."""
    if outcome is None:
        return 1, 0
    return outcome.version, int(outcome.status is Status.SUCCEEDED)


def mark_rows(
    recorded: Callable[[str, int], Outcome | None], reviews: Mapping[tuple[str, int], Review]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to write for these marks, and the keys of those to delete because they say nothing."""
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for (item_id, turn), review in reviews.items():
        key = dict(zip(_KEY, (item_id, turn, *made_on(recorded(item_id, turn))), strict=True))
        if review.review or review.note:
            kept.append({**key, "review": review.review, "note": review.note, "marked_at": now})
        else:
            dropped.append({f"which_{name}": value for name, value in key.items()})
    return kept, dropped


def reviews_of(
    connection: Connection, item_ids: Sequence[str], outcomes: Mapping[str, Mapping[int, Outcome]]
) -> dict[str, dict[int, Review]]:
    """The marks that stand, by item and turn: those of the versions that are recorded now."""
    found: dict[str, dict[int, Review]] = {}
    query = select(marks).where(marks.c.item_id.in_(item_ids))
    for row in connection.execute(query).mappings():
        outcome = outcomes.get(row["item_id"], {}).get(row["turn"])
        if (row["version"], row["replied"]) == made_on(outcome):
            mark = Review(review=row["review"], note=row["note"])
            found.setdefault(row["item_id"], {})[row["turn"]] = mark
    return found


def past_marks(connection: Connection) -> set[tuple[str, int, int, Review]]:
    """Every mark, also of versions that are no more."""
    return {
        (row["item_id"], row["turn"], row["version"], Review(review=row["review"], note=row["note"]))
        for row in connection.execute(select(marks)).mappings()
    }
