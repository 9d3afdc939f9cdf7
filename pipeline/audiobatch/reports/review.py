"""Read the marks that a reviewer wrote into a workbook, a CSV or a page's export, and record them.

All three are tables with `item_id`, `turn`, `review`, `review_note` and, optionally, `version`. Rows are matched by
item and turn, never by row number. A row that cannot be right is refused with a reason; the others are accepted.
The file that is applied last decides.
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


#: The values of `review`: approved; send again; unwanted and never sent again.
REVIEWS = ("ok", "redo", "reject")
#: One row of the manifest.
RowKey = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMark:
    """The mark that the ledger has for a row.

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
        review: one of `REVIEWS`; empty where there is no mark.
        where: the row in the reviewer's file: `row 7`, `manifest 2, row 7`.
    """

    item_id: str
    turn: int
    review: str
    note: str = ""
    where: str = ""

    @property
    def key(self) -> RowKey:
        """The row that is marked."""
        return (self.item_id, self.turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedMark:
    """A row that is not applied, and the reason for the reviewer."""

    where: str
    item_id: str
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.where)}: {shown(self.item_id) or '(no item_id)'}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The marks in a file.

    Attributes:
        marks: one for every valid row, also for rows without a mark.
        refused: rows that are not accepted, each with its reason.
    """

    marks: tuple[Mark, ...]
    refused: tuple[RefusedMark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row whose mark or note changes."""

    mark: Mark
    before: RecordedMark

    def __str__(self) -> str:
        turn = f" turn {self.mark.turn}" if self.mark.turn > 1 else ""
        before, after = self.before.review or "no mark", self.mark.review or "no mark"
        change = f"{after}, new note" if before == after else f"{before} → {after}"
        return f"{shown(self.mark.item_id)}{turn}: {change}"


def read_marks(path: Path, known: Mapping[RowKey, RecordedMark]) -> Marks:
    """Read a reviewer's file and check each row against the job.

    Args:
        path: `.xlsx`, or a CSV with any separator, saved by any spreadsheet, or the page's `review.csv`.
        known: every row of the job, with its recorded mark.

    Raises:
        InputError: the file cannot be read, or has no `item_id` or no `review` column.
    """
    turns: dict[str, list[int]] = {}
    for item_id, turn in known:
        turns.setdefault(item_id, []).append(turn)
    accepted: dict[RowKey, Mark] = {}
    refused: list[RefusedMark] = []
    contradictory: set[RowKey] = set()
    for row in read_table(path):
        mark = _read_row(row, known, turns)
        if isinstance(mark, RefusedMark):
            refused.append(mark)
            continue
        earlier = accepted.get(mark.key)
        if earlier and (earlier.review, earlier.note) != (mark.review, mark.note):
            contradictory.add(mark.key)
            both = " and ".join(repr(either.review or "no mark") for either in (earlier, mark))
            reason = f"occurs twice, with different marks or notes ({both}; see {earlier.where})"
            refused.append(RefusedMark(where=mark.where, item_id=mark.item_id, reason=reason))
        else:
            accepted.setdefault(mark.key, mark)
    marks = tuple(mark for key, mark in accepted.items() if key not in contradictory)
    return Marks(marks=marks, refused=tuple(refused))


def changes(marks: Iterable[Mark], known: Mapping[RowKey, RecordedMark]) -> list[Change]:
    """List what applying the marks would change, in the file's order."""
    changed = []
    for mark in marks:
        before = known[mark.key]
        if (mark.review, mark.note) != (before.review, before.note):
            changed.append(Change(mark=mark, before=before))
    return changed


def _read_row(
    row: TableRow, known: Mapping[RowKey, RecordedMark], turns: Mapping[str, list[int]]
) -> Mark | RefusedMark:
    item_id = row.text("item_id")

    def refuse(reason: str) -> RefusedMark:
        return RefusedMark(where=row.where, item_id=item_id, reason=reason)

    if item_id not in turns:
        # Spaces come from typing; the apostrophe from a CSV that was opened and saved as a workbook.
        similar = [text for text in (item_id.strip(), unprotect(item_id)) if text in turns]
        if not similar:
            return refuse(_why_unknown(item_id))
        item_id = similar[0]
    turn = _turn(row.text("turn"), turns[item_id])
    if turn is None:
        numbers = ", ".join(map(str, sorted(turns[item_id])))
        return refuse(f"this item has no turn {row.text('turn') or '(empty)'}; its turns: {numbers}")
    recorded = known[item_id, turn]
    review = row.text("review").strip().lower() if "review" in row.cells else ""
    if review and review not in REVIEWS:
        return refuse(f"{row.text('review')!r} is not a mark; use {', '.join(REVIEWS)} or leave it empty")
    note = row.text("review_note").replace("\r\n", "\n").strip()
    version = row.text("version").strip()
    stale = version.isdigit() and recorded.version and int(version) != recorded.version
    if stale and (review, note) != ("", ""):
        return refuse(
            f"was marked on version {version}, and version {recorded.version} has replaced it: listen again"
        )
    if stale:  # an old file's empty cell says nothing about a later reply
        review, note = recorded.review, recorded.note
    return Mark(item_id=item_id, turn=turn, review=review, note=note, where=row.where)


def _turn(text: str, known: list[int]) -> int | None:
    text = text.strip()
    if not text:
        return known[0] if len(known) == 1 else None
    return int(text) if text.isdigit() and int(text) in known else None


def _why_unknown(item_id: str) -> str:
    if not item_id.strip():
        return "has no item_id"
    try:
        float(item_id.replace(",", "."))
    except ValueError:
        return "this job has no such item"
    return (
        "this job has no such item; if a spreadsheet turned the id into a number, mark manifest.xlsx instead"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewFile:
    """A file's marks compared with the recorded ones. Nothing is written yet.

    Attributes:
        marks: one for every valid row of the file, also for rows without a mark.
        changed: marks that differ from the recorded ones.
        refused: rows that are not accepted, with reasons.
        counts_after: how many rows will have each mark once the file is applied.
    """

    marks: tuple[Mark, ...]
    changed: tuple[Change, ...]
    refused: tuple[RefusedMark, ...]
    counts_after: Mapping[str, int]

    @property
    def rows(self) -> tuple[RowKey, ...]:
        """The valid rows of the file."""
        return tuple(mark.key for mark in self.marks)


def recorded_marks(ledger: Ledger, spec: JobSpec) -> dict[RowKey, RecordedMark]:
    """Return every row of the manifest with its recorded mark."""
    return {
        (row["item_id"], row["turn"]): RecordedMark(
            review=row.get("review") or "", note=row.get("review_note") or "", version=row.get("version") or 0
        )
        for chunk in manifest_rows(ledger.reader.recorded(), spec)
        for row in chunk
    }


def read_review_file(path: Path, ledger: Ledger, spec: JobSpec) -> ReviewFile:
    """Read a reviewer's file and compare it with the ledger.

    Raises:
        InputError: it cannot be read, or is not a table of marks.
    """
    known = recorded_marks(ledger, spec)
    read = read_marks(path, known)
    changed = changes(read.marks, known)
    counts = Counter(recorded.review for recorded in known.values())
    for change in changed:
        counts[change.before.review] -= 1
        counts[change.mark.review] += 1
    return ReviewFile(
        marks=read.marks,
        changed=tuple(changed),
        refused=read.refused,
        counts_after={review: counts[review] for review in REVIEWS if counts[review]},
    )


def record_marks(file: ReviewFile, ledger: Ledger) -> None:
    """Record the file's changes in the ledger; they replace earlier marks."""
    ledger.writer.put_reviews(
        {change.mark.key: Review(review=change.mark.review, note=change.mark.note) for change in file.changed}
    )
