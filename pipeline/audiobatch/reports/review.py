"""The way back: marks that a reviewer wrote into a workbook, a CSV, or a page's export.

The three are one format: a table with `item_id`, `turn`, `review`, `review_note` and, where it is there,
`version`. Rows are known by item and turn, never by their place. A row that cannot be right is refused with a
reason, the others are taken. The file that was applied last holds, and `changes` says what that changes.

A file is applied to a folder: it is checked against the folder's rows, and what it changes is recorded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.errors import shown
from audiobatch.model import Review
from audiobatch.reports.manifest import unprotect
from audiobatch.reports.rows import manifest_rows
from audiobatch.reports.tables import TableRow, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a file says.

    Attributes:
        marks: one for every row that is valid, also for rows without a mark.
        refused: the rows that are not taken, each with its reason.
    """

    marks: tuple[Mark, ...]
    refused: tuple[RefusedMark, ...]

    def with_review(self, review: str) -> tuple[Mark, ...]:
        """The marks that say `ok`, `redo` or `reject`."""
        return tuple(mark for mark in self.marks if mark.review == review)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row whose mark or note becomes another."""

    mark: Mark
    was: Standing

    def __str__(self) -> str:
        turn = f" turn {self.mark.turn}" if self.mark.turn > 1 else ""
        if self.mark.review == self.was.review:
            return f"{shown(self.mark.item_id)}{turn}: {self.mark.review or 'no mark'}, new note"
        return f"{shown(self.mark.item_id)}{turn}: {self.was.review or 'no mark'} → {self.mark.review or 'no mark'}"


def read_marks(path: Path, known: Mapping[RowKey, Standing]) -> Marks:
    """Read a reviewer's file and check each row against the job.

    Args:
        path: `.xlsx`, or a CSV with any separator, saved by any spreadsheet, or the page's `review.csv`.
        known: every row of the job by (item_id, turn), with what is on record for it.

    Raises:
        InputError: the file cannot be read, or has no `item_id` or no `review` column.
    """
    turns: dict[str, list[int]] = {}
    for item_id, turn in known:
        turns.setdefault(item_id, []).append(turn)
    taken: dict[RowKey, Mark] = {}
    refused: list[RefusedMark] = []
    doubtful: set[RowKey] = set()
    for row in read_table(path):
        found = _read_row(row, known, turns)
        if isinstance(found, RefusedMark):
            refused.append(found)
            continue
        earlier = taken.get(found.key)
        if earlier and (earlier.review, earlier.note) != (found.review, found.note):
            doubtful.add(found.key)
            said = " and ".join(repr(mark.review or "no mark") for mark in (earlier, found))
            reason = f"is there twice, with different marks or notes ({said}; also {earlier.where})"
            refused.append(RefusedMark(where=found.where, item_id=found.item_id, reason=reason))
        else:
            taken.setdefault(found.key, found)
    marks = tuple(mark for key, mark in taken.items() if key not in doubtful)
    return Marks(marks=marks, refused=tuple(refused))


def changes(marks: Iterable[Mark], known: Mapping[RowKey, Standing]) -> list[Change]:
    """What applying the marks would change, in the file's order."""
    found = []
    for mark in marks:
        was = known[mark.key]
        if (mark.review, mark.note) != (was.review, was.note):
            found.append(Change(mark=mark, was=was))
    return found


def _read_row(
    row: TableRow, known: Mapping[RowKey, Standing], turns: Mapping[str, list[int]]
) -> Mark | RefusedMark:
    item_id = row.text("item_id")

    def refuse(reason: str) -> RefusedMark:
        return RefusedMark(where=row.where, item_id=item_id, reason=reason)

    if item_id not in turns:
        # Spaces come from typing; the apostrophe from a CSV that was opened and saved as a workbook.
        near = [text for text in (item_id.strip(), unprotect(item_id)) if text in turns]
        if not near:
            return refuse(_unknown(item_id))
        item_id = near[0]
    turn = _turn(row.text("turn"), turns[item_id])
    if turn is None:
        there = ", ".join(str(number) for number in sorted(turns[item_id]))
        return refuse(f"turn {row.text('turn') or '(empty)'} is none of this item's ({there})")
    standing = known[item_id, turn]
    review = row.text("review").strip().lower() if "review" in row.cells else ""
    if review and review not in REVIEWS:
        return refuse(f"{row.text('review')!r} is no mark; use {', '.join(REVIEWS)} or leave it empty")
    note = row.text("review_note").replace("\r\n", "\n").strip()
    version = row.text("version").strip()
    stale = version.isdigit() and standing.version and int(version) != standing.version
    if stale and (review, note) != ("", ""):
        return refuse(
            f"marked on version {version}, but version {standing.version} has been made since: listen again"
        )
    if stale:  # an old file's empty cell says nothing of a reply that came later
        review, note = standing.review, standing.note
    return Mark(item_id=item_id, turn=turn, review=review, note=note, where=row.where)


def _turn(text: str, there: list[int]) -> int | None:
    text = text.strip()
    if not text:
        return there[0] if len(there) == 1 else None
    return int(text) if text.isdigit() and int(text) in there else None


def _unknown(item_id: str) -> str:
    if not item_id.strip():
        return "has no item_id"
    try:
        float(item_id.replace(",", "."))
    except ValueError:
        return "is no item of this job"
    return "is no item of this job; if a spreadsheet turned the id into a number, mark manifest.xlsx instead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file says against what is on record. Nothing is written yet.

    Attributes:
        marks: of all rows of the file that are valid, also those without a mark.
        changed: what differs from the record.
        refused: rows that cannot be taken, with reasons.
        after: marks by kind as they are once this is applied.
    """

    marks: tuple[Mark, ...]
    changed: tuple[Change, ...]
    refused: tuple[RefusedMark, ...]
    after: Mapping[str, int]

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """The rows that the file speaks for."""
        return tuple(mark.key for mark in self.marks)


def standings(ledger: Ledger, spec: JobSpec) -> dict[RowKey, Standing]:
    """Every row of the manifest with what is on record for it."""
    return {
        (row["item_id"], row["turn"]): Standing(
            review=row.get("review") or "", note=row.get("review_note") or "", version=row.get("version") or 0
        )
        for chunk in manifest_rows(ledger.recorded(), spec)
        for row in chunk
    }


def read_file(path: Path, ledger: Ledger, spec: JobSpec) -> Reading:
    """Check a reviewer's file against the folder.

    Raises:
        InputError: it cannot be read, or is no table of marks.
    """
    known = standings(ledger, spec)
    read = read_marks(path, known)
    changed = changes(read.marks, known)
    after = Counter(standing.review for standing in known.values())
    for change in changed:
        after[change.was.review] -= 1
        after[change.mark.review] += 1
    return Reading(
        marks=read.marks,
        changed=tuple(changed),
        refused=read.refused,
        after={review: after[review] for review in REVIEWS if after[review]},
    )


def put_on_record(reading: Reading, ledger: Ledger) -> None:
    """What was applied last holds."""
    ledger.put_reviews(
        {
            change.mark.key: Review(review=change.mark.review, note=change.mark.note)
            for change in reading.changed
        }
    )


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
