"""What a reviewer added to a manifest outlives the next run: own columns, and marks not yet applied.

Before a manifest is written again, a `Keeper` takes from the old ones what is not ours; `merge_kept` puts it on
the new rows by item and turn, never by place. Formulas are kept as the values they had.
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
class Unapplied:
    """A mark that stands in a file and was not applied, with the version it was made on (empty: not said)."""

    review: str
    note: str
    version: str


@dataclass(slots=True, kw_only=True)
class Kept:
    """A reviewer's additions.

    Attributes:
        columns: the added columns, in the order in which they were found.
        values: their cells by row; rows without any are left out.
        marks: marks and notes by row.
        notes: files that could not be read, one sentence each.
    """

    columns: list[str] = field(default_factory=list)
    values: dict[RowKey, dict[str, Cell]] = field(default_factory=dict)
    marks: dict[RowKey, Unapplied] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Keeper:
    """Knows the manifests of a folder, and reads one again only when someone else has changed it.

    So a manifest that is rewritten every few seconds in a long run costs nothing here, a reviewer's save in
    between is noticed, and what we wrote ourselves never passes for a reviewer's wish.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._kept = Kept()

    def now(self) -> Kept:
        """All additions so far; call it just before a manifest is written."""
        changed = [path for path in self._paths if _stamp(path) not in (None, self._seen.get(path))]
        self._seen.update({path: _stamp(path) for path in changed})
        self._kept.notes.clear()
        read_kept(changed, self._kept)
        return self._kept

    def wrote(self, path: Path) -> None:
        """Say that this file is as we left it."""
        self._seen[path] = _stamp(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def read_kept(paths: Iterable[Path], kept: Kept | None = None) -> Kept:
    """Collect additions from the manifests that are there; the file changed last wins cell by cell.

    A file that cannot be read is noted, never an error: the run's own results must still be written.
    """
    kept = Kept() if kept is None else kept
    there = sorted((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    for path in there:
        try:
            for row in read_table(path):
                _take(row, kept)
        except InputError as error:
            _LOG.warning("%s", error)
            kept.notes.append(f"{path.name} could not be read; what was added to it is not carried over.")
    return kept


def without_applied(
    kept: Kept, past: Collection[tuple[str, int, int, Review]], settled: Collection[RowKey]
) -> Kept:
    """The additions without marks that are no news: applied once, or of rows that a file was applied for since.

    Args:
        past: every mark on record, also of earlier versions: item, turn, version, what it said.
        settled: rows for which what was applied last holds.
    """
    known = {(item_id, turn, str(version), mark) for item_id, turn, version, mark in past}

    def is_news(key: RowKey, mark: Unapplied) -> bool:
        said = Review(review=mark.review, note=mark.note)
        return key not in settled and (*key, mark.version, said) not in known

    kept.marks = {key: mark for key, mark in kept.marks.items() if is_news(key, mark)}
    return kept


def merge_kept(chunks: Iterable[Sequence[ManifestRow]], kept: Kept) -> Iterator[list[ManifestRow]]:
    """The same rows with the additions on them; write them with `extra_columns=[…, *kept.columns]`.

    A mark on record stands; a mark from a file fills an empty one, if it was made on this version of the reply.
    """
    for chunk in chunks:
        yield [_merged(row, kept) for row in chunk]


def _merged(row: ManifestRow, kept: Kept) -> ManifestRow:
    turn = row.get("turn")
    key = (str(row.get("item_id")), turn if isinstance(turn, int) else 1)
    added = kept.values.get(key)
    mark = kept.marks.get(key)
    if added is None and mark is None:
        return row
    merged: dict[str, object] = {**row, **(added or {})}
    if mark and mark.version in ("", str(row.get("version") or "")):
        if not row.get("review"):
            merged["review"] = mark.review
        if not row.get("review_note"):
            merged["review_note"] = mark.note
    return merged


def _take(row: TableRow, kept: Kept) -> None:
    turn = row.text("turn").strip() or "1"
    if not turn.isdigit() or not row.text("item_id"):
        return
    key = (row.text("item_id"), int(turn))
    for column in row.cells:
        if (
            column
            and not is_own(column)
            and column not in kept.columns
            and not column.startswith("Unnamed: ")
        ):
            kept.columns.append(column)
    added = {column: row.cells.get(column) for column in kept.columns if column in row.cells}
    if added:
        kept.values.setdefault(key, {}).update(added)
    review, note = row.text("review").strip().lower(), row.text("review_note").strip()
    if review in REVIEWS or note:
        mark = Unapplied(
            review=review if review in REVIEWS else "", note=note, version=row.text("version").strip()
        )
        kept.marks[key] = mark
    elif "review" in row.cells:
        kept.marks.pop(key, None)
