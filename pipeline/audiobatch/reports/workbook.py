"""manifest.xlsx: the manifest as a person reviews it.

Sheets: `manifest` (frozen header and id, filter, links, a `review` drop-down), `summary`, `settings`, and
`manifest 2`, … where Excel's limits ask for it. Cells are typed: text is text whatever it begins with,
amounts and durations are numbers, times are dates in UTC. There are no formulas and no macros. Rows stream to
disk, so memory stays flat.

Nothing is locked: Excel can neither sort nor extend a protected sheet. `review` checks the ids on the way
back.
"""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xlsxwriter
from xlsxwriter.exceptions import XlsxFileError

from audiobatch.errors import StorageError
from audiobatch.reports.columns import COLUMNS
from audiobatch.reports.sheets import EXCEL_LIMITS, Formats, ManifestSheet, SheetLimits
from audiobatch.reports.staging import Placed, draft_beside, place
from audiobatch.reports.totals import Totals
from audiobatch.reports.workbook_summary import write_settings, write_summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from audiobatch.reports.manifest import ManifestRow


class _Draft(io.FileIO):
    """A file that fails once: an archive that could not be written tries again when it is thrown away."""

    _failed = False
    _at = 0

    @property
    def _is_gone(self) -> bool:
        return self._failed or self.closed

    def write(self, data: Buffer) -> int:
        left = memoryview(data).cast("B")
        size_bytes = len(left)
        try:
            while left and not self._is_gone:
                left = left[super().write(left) :]
        except OSError:
            self._failed = True
            raise
        self._at += size_bytes
        return size_bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if self._is_gone else super().seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at if self._is_gone else super().tell()

    def flush(self) -> None:
        if not self._is_gone:
            super().flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWorkbook:
    """What was written.

    Attributes:
        path: the file; beside the one asked for when that is open in another program.
        rows: manifest rows in it.
        notes: what was split, cut or put elsewhere, one sentence each; also on the summary sheet.
    """

    path: Path
    rows: int
    notes: tuple[str, ...]


def write_workbook(
    chunks: Iterable[Sequence[ManifestRow]],
    path: Path,
    *,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    settings: Mapping[str, object] | None = None,
    title: str = "",
    limits: SheetLimits = EXCEL_LIMITS,
) -> WrittenWorkbook:
    """Write the workbook beside `path` and move it there when it is whole.

    Args:
        chunks: manifest rows of raw values, in order, in chunks.
        path: where `manifest.xlsx` belongs; the links in it are relative to this file's folder.
        extra_columns: `in.<name>`, `reply.<name>` and a reviewer's own columns, after ours.
        columns: exactly these columns instead, as `choose_columns` made them.
        settings: the job's settings for the third sheet; nested mappings become `a.b`. No secrets.
        title: the job's name on the summary.
        limits: Excel's, unless a test wants smaller ones.

    Raises:
        StorageError: the folder cannot be written.
    """
    names = list(columns) if columns is not None else [*COLUMNS, *extra_columns]
    with draft_beside(path) as draft:
        try:
            with _Draft(draft, "w") as file:
                rows, notes = _write(
                    chunks,
                    file,
                    names,
                    settings=settings or {},
                    title=title or path.parent.name,
                    limits=limits,
                )
        except XlsxFileError as failed:
            raise StorageError(f"{path.name} could not be written: {failed}") from failed
        placed: Placed = place(draft, path)
    return WrittenWorkbook(path=placed.path, rows=rows, notes=(*notes, *placed.notes))


def _write(
    chunks: Iterable[Sequence[ManifestRow]],
    draft: _Draft,
    names: list[str],
    *,
    settings: Mapping[str, object],
    title: str,
    limits: SheetLimits,
) -> tuple[int, list[str]]:
    options: dict[str, Any] = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
        "nan_inf_to_errors": False,
    }
    totals = Totals()
    with closing(xlsxwriter.Workbook(draft, options)) as book:
        formats = Formats(book)
        sheet = ManifestSheet(book, "manifest", names, formats, limits)
        summary = book.add_worksheet("summary")
        settings_sheet = book.add_worksheet("settings")
        sheets = [sheet]
        for chunk in totals.watching(chunks):
            for row in chunk:
                if not sheet.has_room_for(row):
                    sheet.finish()
                    links = sum(one.links for one in sheets)
                    name = f"manifest {len(sheets) + 1}"
                    sheet = ManifestSheet(book, name, names, formats, limits, links_before=links)
                    sheets.append(sheet)
                sheet.add(row)
        sheet.finish()
        notes = _notes(sheets)
        write_summary(book, summary, totals, title=title, notes=notes)
        write_settings(book, settings_sheet, settings)
    return totals.rows, notes


def _notes(sheets: Sequence[ManifestSheet]) -> list[str]:
    notes = []
    if len(sheets) > 1:
        last = f"manifest {len(sheets)}"
        notes.append(
            f"{sum(sheet.rows for sheet in sheets)} rows or their links are more than one sheet can hold: "
            f"they are split over {len(sheets)} sheets, manifest to {last}."
        )
    if cuts := sum(sheet.cut_cells for sheet in sheets):
        notes.append(
            f"{cuts} cells held more than the 32 767 characters that Excel can show; each ends with "
            "[cut: …]. manifest.csv has the whole text."
        )
    if past := sum(sheet.past_links for sheet in sheets):
        linked = sum(sheet.links for sheet in sheets)
        notes.append(
            f"The first {linked:,} files are linked; {past:,} more paths are plain text, to spare memory."
        )
    if unlinked := sum(sheet.unlinked for sheet in sheets):
        notes.append(f"{unlinked} paths are too odd or too long for a link of Excel's and are plain text.")
    return notes
