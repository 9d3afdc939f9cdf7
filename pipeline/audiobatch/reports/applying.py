"""A reviewer's file applied to a folder: checked against its rows, what it changes put on record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.model import Review
from audiobatch.reports.marks import REVIEWS, Mark, RefusedMark, RowKey, Standing
from audiobatch.reports.review import Change, changes, read_marks
from audiobatch.reports.rows import manifest_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger


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
