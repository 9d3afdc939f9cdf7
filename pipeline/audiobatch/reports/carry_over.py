"""Carry a reviewer's additions over to the next manifest: own columns, and marks that are not applied yet.

Before a manifest is written again, an `AdditionsReader` reads the old files for everything that audiobatch did not
write. `merge_additions` adds it to the new rows by item and turn, never by row number. A formula is carried over as
the value that it had.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.errors import InputError
from audiobatch.model import Review
from audiobatch.reports.columns import is_own
from audiobatch.reports.review import REVIEWS, RowKey
from audiobatch.reports.tables import Cell, TableRow, read_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from audiobatch.reports.manifest import ManifestRow

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMark:
    """A mark in a file that is not applied yet; `version` is that of the reply, empty where the file has none."""

    review: str
    note: str
    version: str


@dataclass(slots=True, kw_only=True)
class Additions:
    """What a reviewer added to the manifests.

    Attributes:
        columns: the added columns, in the order in which they were found.
        values: their cells by row; rows without any are left out.
        marks: marks and notes by row.
        notes: files that could not be read, one sentence each.
    """

    columns: list[str] = field(default_factory=list)
    values: dict[RowKey, dict[str, Cell]] = field(default_factory=dict)
    marks: dict[RowKey, PendingMark] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class AdditionsReader:
    """Reads the manifests of a folder, and reads one again only after somebody else changed it.

    A long run rewrites its manifest every few seconds: that costs nothing here. A reviewer's save in between is
    noticed, and what audiobatch wrote itself is never taken for a reviewer's addition.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Name the manifests to read; none of them has to exist."""
        self._paths = tuple(paths)
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._additions = Additions()

    def read(self) -> Additions:
        """Return all additions so far; call it just before a manifest is written."""
        changed = [path for path in self._paths if _stamp(path) not in (None, self._seen.get(path))]
        self._seen.update({path: _stamp(path) for path in changed})
        self._additions.notes.clear()
        read_additions(changed, self._additions)
        return self._additions

    def mark_written(self, path: Path) -> None:
        """Record that audiobatch wrote this file as it is now."""
        self._seen[path] = _stamp(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def read_additions(paths: Iterable[Path], additions: Additions | None = None) -> Additions:
    """Collect additions from the manifests that exist; the file changed last wins cell by cell.

    A file that cannot be read becomes a note, never an error: the run's own results must still be written.

    Args:
        paths: manifests, as CSV or workbook.
        additions: what earlier reads found; it is extended. None: start with nothing.
    """
    additions = Additions() if additions is None else additions
    existing = sorted((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    for path in existing:
        try:
            for row in read_table(path):
                _collect(row, additions)
        except InputError as error:
            _LOG.warning("%s", error)
            additions.notes.append(
                f"{path.name} could not be read; what was added to it is not carried over."
            )
    return additions


def drop_settled_marks(
    additions: Additions, past: Collection[tuple[str, int, int, Review]], settled: Collection[RowKey]
) -> Additions:
    """Remove marks that were applied before, and marks of rows for which a later file was applied.

    Args:
        additions: what was read; it is changed.
        past: every recorded mark, also of earlier versions: item, turn, version, mark.
        settled: rows for which the file that was applied last decides.
    """
    known = {(item_id, turn, str(version), mark) for item_id, turn, version, mark in past}

    def is_new(key: RowKey, mark: PendingMark) -> bool:
        review = Review(review=mark.review, note=mark.note)
        return key not in settled and (*key, mark.version, review) not in known

    additions.marks = {key: mark for key, mark in additions.marks.items() if is_new(key, mark)}
    return additions


def merge_additions(
    chunks: Iterable[Sequence[ManifestRow]], additions: Additions
) -> Iterator[list[ManifestRow]]:
    """Add the additions to the rows; write them with `extra_columns=[…, *additions.columns]`.

    A recorded mark is never replaced. A file's mark fills an empty one, if it was made on this version of the
    reply.
    """
    for chunk in chunks:
        yield [_merged(row, additions) for row in chunk]


def _merged(row: ManifestRow, additions: Additions) -> ManifestRow:
    turn = row.get("turn")
    key = (str(row.get("item_id")), turn if isinstance(turn, int) else 1)
    added = additions.values.get(key)
    mark = additions.marks.get(key)
    if added is None and mark is None:
        return row
    merged: dict[str, object] = {**row, **(added or {})}
    if mark and mark.version in ("", str(row.get("version") or "")):
        if not row.get("review"):
            merged["review"] = mark.review
        if not row.get("review_note"):
            merged["review_note"] = mark.note
    return merged


def _collect(row: TableRow, additions: Additions) -> None:
    turn = row.text("turn").strip() or "1"
    if not turn.isdigit() or not row.text("item_id"):
        return
    key = (row.text("item_id"), int(turn))
    for column in row.cells:
        is_new = column and not is_own(column) and column not in additions.columns
        if is_new and not column.startswith("Unnamed: "):
            additions.columns.append(column)
    added = {column: row.cells.get(column) for column in additions.columns if column in row.cells}
    if added:
        additions.values.setdefault(key, {}).update(added)
    review, note = row.text("review").strip().lower(), row.text("review_note").strip()
    if review in REVIEWS or note:
        additions.marks[key] = PendingMark(
            review=review if review in REVIEWS else "", note=note, version=row.text("version").strip()
        )
    elif "review" in row.cells:
        additions.marks.pop(key, None)
