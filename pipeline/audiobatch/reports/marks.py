"""A reviewer's mark on one row, whichever file it was written in."""

from __future__ import annotations

from dataclasses import dataclass

from audiobatch.redaction import shown

#: What `review` may say: approved; make it again; not wanted and not made again.
REVIEWS = ("ok", "redo", "reject")

#: One row of the manifest.
RowKey = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is on record for a row before new marks come.

    Attributes:
        version: of the reply that the row shows; 0 where there is none yet.
    """

    review: str = ""
    note: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One row as the reviewer left it.

    Attributes:
        review: one of `REVIEWS`, or empty: no mark (any more).
        where: the row in the reviewer's file, as the program shows it: `row 7`, `manifest 2, row 7`.
    """

    item_id: str
    turn: int
    review: str
    note: str = ""
    where: str = ""

    @property
    def key(self) -> RowKey:
        return (self.item_id, self.turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedMark:
    """A row that is not applied, and why, in words for the reviewer."""

    where: str
    item_id: str
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.where)}: {shown(self.item_id) or '(no item_id)'}: {self.reason}"
