"""Write manifest.xlsx: the manifest for a reviewer.

Sheets: `manifest` (frozen header and id, filter, links, a `review` drop-down), `summary`, `settings`, and
`manifest 2`, … where Excel's limits require it. Cells are typed: text is always text, amounts and durations are
numbers, times are dates in UTC. There are no formulas and no macros. Rows are streamed to disk, so that memory does
not grow with the job.

Nothing is locked, since Excel can neither sort nor extend a protected sheet: `review` checks the ids.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

import xlsxwriter
from xlsxwriter.exceptions import XlsxFileError
from xlsxwriter.url import Url
from xlsxwriter.worksheet import Worksheet

from audiobatch.errors import StorageError
from audiobatch.reports.columns import COLUMNS, Kind, kind_of
from audiobatch.reports.links import INPUT_LINK, excel_target
from audiobatch.reports.manifest import cut, escape_controls, is_formula_like
from audiobatch.reports.review import REVIEWS
from audiobatch.reports.staging import draft_beside, replace_with
from audiobatch.reports.totals import Totals
from audiobatch.reports.workbook_summary import write_settings, write_summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from audiobatch.reports.manifest import ManifestRow

#: Background and text colour of each status and mark; dark on pale, readable in print.
_COLOURS = {
    "status": {
        "succeeded": ("#E3F4E8", "#14532D"),
        "failed": ("#FBE2E2", "#7F1D1D"),
        "refused": ("#FDEBD3", "#7C2D12"),
        "unknown": ("#EEE6FB", "#4C1D95"),
        "pending": ("#ECEEF1", "#374151"),
    },
    "review": {
        "ok": ("#E3F4E8", "#14532D"),
        "redo": ("#FFF3C4", "#713F12"),
        "reject": ("#FBE2E2", "#7F1D1D"),
    },
}


class Formats:
    """The cell formats of a workbook, each created once."""

    def __init__(self, book: xlsxwriter.Workbook) -> None:
        """Create the formats in this workbook."""
        top = {"valign": "top", "font_name": "Calibri", "font_size": 11}
        head = {"bold": True, "bg_color": "#1F2937", "font_color": "#FFFFFF", "valign": "vcenter"}
        self.header = book.add_format(head)
        self.number_header = book.add_format({**head, "align": "right", "indent": 1})
        self.text = book.add_format({**top, "num_format": "@"})
        self.quoted = book.add_format({**top, "num_format": "@", "quote_prefix": True})
        self.wrapped = book.add_format({**top, "num_format": "@", "text_wrap": True})
        self.wrapped_quoted = book.add_format(
            {**top, "num_format": "@", "text_wrap": True, "quote_prefix": True}
        )
        self.link = book.add_format({**top, "font_color": "#0B5CAD", "underline": 1})
        self.wrapped_link = book.add_format(
            {**top, "font_color": "#0B5CAD", "underline": 1, "text_wrap": True}
        )
        self.number = book.add_format(top)
        right = {**top, "align": "right", "indent": 1}
        self.by_kind = {
            Kind.COUNT: book.add_format({**right, "num_format": "#,##0"}),
            Kind.SECONDS: book.add_format({**right, "num_format": "#,##0.00"}),
            Kind.RATIO: book.add_format({**right, "num_format": "0.000"}),
            Kind.MONEY: book.add_format({**right, "num_format": "#,##0.000000"}),
        }
        self.time = book.add_format({**top, "num_format": "yyyy-mm-dd hh:mm:ss"})
        self.by_value = {
            column: {
                value: book.add_format({"bg_color": background, "font_color": colour})
                for value, (background, colour) in colours.items()
            }
            for column, colours in _COLOURS.items()
        }


_WIDTHS = {
    "item_id": 30,
    "input": 28,
    "prompt": 44,
    "transcript": 64,
    "input_transcript": 44,
    "audio_file": 32,
    "transcript_file": 32,
    "error_message": 44,
    "review_note": 36,
    "checks": 18,
    "model": 16,
    "deployment": 18,
}
_KIND_WIDTHS = {Kind.TIME: 19, Kind.TEXT: 12, Kind.PATH: 28}
#: Columns that are links, and the key of a row that has the target. A transcript is one only where it was cut.
_LINKED = {"input": INPUT_LINK, "audio_file": "audio_file", "transcript_file": "transcript_file"}
_WRAPPED = frozenset({"prompt", "transcript", "input_transcript", "error_message", "review_note"})
_LINE_POINTS = 15
_MOST_LINES = 6
_EXACT_INTEGERS = 10**15
_EXCEL_EPOCH_YEAR = 1900


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLimits:
    """The limits of one sheet; and of the links of all sheets, which stay in memory until the workbook is closed.

    Source: https://support.microsoft.com/office/excel-specifications-and-limits-1672b34d (2025-11-20).
    """

    rows: int = 1_048_576
    links: int = 65_530
    links_in_all: int = 65_530


EXCEL_LIMITS = SheetLimits()


class ManifestSheet:
    """A sheet of manifest rows: `add` each row, then `finish`."""

    def __init__(
        self,
        book: xlsxwriter.Workbook,
        name: str,
        columns: Sequence[str],
        formats: Formats,
        limits: SheetLimits,
        *,
        links_before: int = 0,
    ) -> None:
        """Create the sheet with its header; `links_before` is the number of links on earlier sheets."""
        self.rows = 0
        self.links = 0
        self.surplus_links = 0
        self.cut_cells = 0
        self.unlinked = 0
        self._links_left = limits.links_in_all - links_before
        self._columns = columns
        self._formats = formats
        self._limits = limits
        self._sheet = book.add_worksheet(name, _EscapingSheet)
        self._sheet.set_row(0, 22)
        for index, column in enumerate(columns):
            width = _WIDTHS.get(column) or _KIND_WIDTHS.get(kind_of(column), max(9, len(column) + 3))
            self._sheet.set_column(index, index, max(width, min(len(column) + 3, 24)))
            is_number = kind_of(column) in formats.by_kind
            self._sheet.write_string(0, index, column, formats.number_header if is_number else formats.header)
        frozen = columns.index("item_id") + 1 if "item_id" in columns[:3] else 0
        self._sheet.freeze_panes(1, frozen)
        self._sheet.set_landscape()
        self._sheet.fit_to_pages(1, 0)
        self._sheet.repeat_rows(0)

    def has_room_for(self, row: ManifestRow) -> bool:
        """Whether one more row, with its links, stays within the limits."""
        after = self.links + len(_LINKED) + 1  # its files, and the link of a cut transcript
        fits = after <= self._limits.links or after > self._links_left
        return self.rows + 1 < self._limits.rows and fits

    def add(self, row: ManifestRow) -> None:
        """Write one row of raw values."""
        self.rows += 1
        self._sheet.set_row(self.rows, self._height(row))
        for index, column in enumerate(self._columns):
            value = row.get(column)
            if value is not None and value != "":
                self._write(index, column, value, row)

    def finish(self) -> None:
        """Add the filter, the drop-down and the colours, which need the number of rows."""
        last = max(self.rows, 1)
        width = len(self._columns) - 1
        self._sheet.autofilter(0, 0, last, width)
        self._sheet.ignore_errors({"number_stored_as_text": f"A1:XFD{last + 1}"})
        for index, column in enumerate(self._columns):
            for value, cell_format in self._formats.by_value.get(column, {}).items():
                rule = {"type": "cell", "criteria": "==", "value": f'"{value}"', "format": cell_format}
                self._sheet.conditional_format(1, index, last, index, rule)
            if column == "review":
                self._sheet.data_validation(1, index, last, index, _DROP_DOWN)

    def _height(self, row: ManifestRow) -> int:
        lines = 1
        for column in _WRAPPED.intersection(self._columns):
            if isinstance(text := row.get(column), str):
                lines = max(lines, len(text) // (_WIDTHS[column] + 4) + text.count("\n", 0, 1000) + 1)
        return _LINE_POINTS * min(lines, _MOST_LINES) + 3

    def _write(self, index: int, column: str, value: object, row: ManifestRow) -> None:
        sheet, formats = self._sheet, self._formats
        if isinstance(value, bool):
            sheet.write_boolean(self.rows, index, value, formats.number)
        elif isinstance(value, (int, float, Decimal)) and _fits_a_number(value):
            cell_format = formats.by_kind.get(kind_of(column), formats.number)
            sheet.write_number(self.rows, index, float(value), cell_format)
        elif isinstance(value, date) and value.year >= _EXCEL_EPOCH_YEAR:
            sheet.write_datetime(self.rows, index, _naive_utc(value), formats.time)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            sheet.write_string(self.rows, index, " ".join(map(str, value)), formats.text)
        else:
            self._write_text(index, column, str(value), row)

    def _write_text(self, index: int, column: str, text: str, row: ManifestRow) -> None:
        formats = self._formats
        pointer = row.get("transcript_file") if column == "transcript" else ""
        shown, was_cut = cut(text, str(pointer or ""))
        self.cut_cells += was_cut
        linked = row.get(_LINKED[column]) if column in _LINKED else pointer if was_cut else None
        if linked:
            target = excel_target(linked)
            if target and self.links >= self._links_left:
                self.surplus_links += 1
            elif target:
                self.links += 1
                link_format = formats.wrapped_link if was_cut else formats.link
                self._sheet.write_url(self.rows, index, _RelativeLink(target, shown), link_format)
                return
            else:
                self.unlinked += 1
        if column in _WRAPPED or "\n" in shown:
            cell_format = formats.wrapped_quoted if is_formula_like(shown) else formats.wrapped
        else:
            cell_format = formats.quoted if is_formula_like(shown) else formats.text
        self._sheet.write_string(self.rows, index, shown, cell_format)


_DROP_DOWN: dict[str, Any] = {
    "validate": "list",
    "source": [*REVIEWS],
    "ignore_blank": True,
    "input_title": "Review",
    "input_message": "ok: approved. redo: make it again. reject: not wanted.",
    "error_title": "Not a mark",
    "error_message": f"Use one of: {', '.join(REVIEWS)}; or leave it empty.",
}


def _fits_a_number(value: float | Decimal) -> bool:
    """Whether Excel can store a number exactly: it has 15 digits."""
    return isfinite(value) and -_EXACT_INTEGERS < value < _EXACT_INTEGERS


def _naive_utc(time: date) -> date:
    if isinstance(time, datetime) and time.tzinfo is not None:
        return time.astimezone(UTC).replace(tzinfo=None)
    return time


class _EscapingSheet(Worksheet):  # type: ignore[misc, unused-ignore]
    """A sheet with our escapes: XlsxWriter's lose some texts (`_x0041_x0042_`) and fail on lone surrogates."""

    @staticmethod
    def _escape_control_characters(data: object) -> object:
        if not isinstance(data, str):  # XlsxWriter passes counts, too
            return data
        return escape_controls(data).replace("\r", "_x000D_")


class _RelativeLink(Url):  # type: ignore[misc, unused-ignore]
    """A link relative to the workbook, with the slashes of a URL, which every office program follows."""

    def __init__(self, target: str, shown: str) -> None:
        super().__init__("external:file")
        self.text = shown
        self._relative_target = target

    def _target(self) -> str:
        return self._relative_target


class _Draft(io.FileIO):
    """A file whose writes fail once: a zip archive that could not be written tries again when it is deleted."""

    _failed = False
    _at = 0

    @property
    def _discards(self) -> bool:
        return self._failed or self.closed

    def write(self, data: Buffer) -> int:
        left = memoryview(data).cast("B")
        size_bytes = len(left)
        try:
            while left and not self._discards:
                left = left[super().write(left) :]
        except OSError:
            self._failed = True
            raise
        self._at += size_bytes
        return size_bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if self._discards else super().seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at if self._discards else super().tell()

    def flush(self) -> None:
        if not self._discards:
            super().flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenWorkbook:
    """A workbook that was written.

    Attributes:
        path: the file; beside the one asked for where another program holds that open.
        rows: manifest rows in it.
        notes: what was split, cut or written elsewhere, one sentence each; also on the summary sheet.
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
    """Write the workbook beside `path`, and move it there once it is complete.

    Args:
        chunks: manifest rows of raw values, in order, in chunks.
        path: the workbook; the links in it are relative to its folder.
        extra_columns: `in.<name>`, `reply.<name>` and a reviewer's own columns, which come last.
        columns: exactly these columns instead, as `choose_columns` returns them.
        settings: the job's settings for the sheet `settings`; nested mappings become `a.b`. No secrets.
        title: the job's name on the summary.
        limits: Excel's by default.

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
        written = replace_with(draft, path)
    return WrittenWorkbook(path=written.path, rows=rows, notes=(*notes, *written.notes))


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
        for chunk in totals.count(chunks):
            for row in chunk:
                if not sheet.has_room_for(row):
                    sheet.finish()
                    links = sum(full.links for full in sheets)
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
            f"{sum(sheet.rows for sheet in sheets)} rows and their links exceed the limits of one sheet: "
            f"they are split over {len(sheets)} sheets, manifest to {last}."
        )
    if cuts := sum(sheet.cut_cells for sheet in sheets):
        notes.append(
            f"{cuts} cells held more than the 32 767 characters that Excel can show; each ends with "
            "[cut: …]. manifest.csv has the whole text."
        )
    if surplus := sum(sheet.surplus_links for sheet in sheets):
        linked = sum(sheet.links for sheet in sheets)
        notes.append(
            f"The first {linked:,} files are linked; {surplus:,} more paths are plain text, to save memory."
        )
    if unlinked := sum(sheet.unlinked for sheet in sheets):
        notes.append(f"{unlinked} paths cannot be a link in Excel and are plain text.")
    return notes
