"""One sheet of manifest rows: typed cells, links, colours, the review drop-down, within Excel's limits.

`Formats` says how the workbook looks: fonts, number formats, and the colours of the words that a reviewer looks
for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

from xlsxwriter.url import Url
from xlsxwriter.worksheet import Worksheet

from audiobatch.reports.columns import Kind, kind_of
from audiobatch.reports.links import INPUT_LINK, excel_target
from audiobatch.reports.manifest import cut, escape_controls, is_formula_like
from audiobatch.reports.review import REVIEWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xlsxwriter

    from audiobatch.reports.manifest import ManifestRow

#: Background and ink of the words that a reviewer looks for; dark ink on pale ground, readable in print.
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
    """The cell formats of a workbook, each made once."""

    def __init__(self, book: xlsxwriter.Workbook) -> None:
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
        self.words = {
            column: {
                word: book.add_format({"bg_color": ground, "font_color": ink})
                for word, (ground, ink) in words.items()
            }
            for column, words in _COLOURS.items()
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
#: Columns that are links, and the key of a row that holds where to; the transcript's only where it was cut.
_LINKED = {"input": INPUT_LINK, "audio_file": "audio_file", "transcript_file": "transcript_file"}
_WRAPPED = frozenset({"prompt", "transcript", "input_transcript", "error_message", "review_note"})
_LINE_POINTS = 15
_MOST_LINES = 6
_EXACT_INTEGERS = 10**15
_EXCEL_EPOCH_YEAR = 1900


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLimits:
    """What one sheet can hold; and how many links all sheets, since each stays in memory until the workbook ends.

    Source: https://support.microsoft.com/office/excel-specifications-and-limits-1672b34d (2025-11-20).
    """

    rows: int = 1_048_576
    links: int = 65_530
    links_in_all: int = 65_530


EXCEL_LIMITS = SheetLimits()


class ManifestSheet:
    """Rows go in one after the other; `finish` adds what needs the last row's number."""

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
        """Args: `links_before`: on the workbook's sheets before this one."""
        self.rows = 0
        self.links = 0
        self.past_links = 0
        self.cut_cells = 0
        self.unlinked = 0
        self._links_left = limits.links_in_all - links_before
        self._columns = columns
        self._formats = formats
        self._limits = limits
        self._sheet = book.add_worksheet(name, _EscapingSheet)
        for place, column in enumerate(columns):
            width = _WIDTHS.get(column) or _KIND_WIDTHS.get(kind_of(column), max(9, len(column) + 3))
            self._sheet.set_column(place, place, max(width, min(len(column) + 3, 24)))
        self._sheet.set_row(0, 22)
        for place, column in enumerate(columns):
            is_number = kind_of(column) in formats.by_kind
            self._sheet.write_string(0, place, column, formats.number_header if is_number else formats.header)
        frozen = columns.index("item_id") + 1 if "item_id" in columns[:3] else 0
        self._sheet.freeze_panes(1, frozen)
        self._sheet.set_landscape()
        self._sheet.fit_to_pages(1, 0)
        self._sheet.repeat_rows(0)

    def has_room_for(self, row: ManifestRow) -> bool:
        """Whether one more row, with its links, stays within the limits."""
        wanted = len(_LINKED) + 1  # its files, and a cut transcript's own link
        after = self.links + wanted
        fits = after <= self._limits.links or after > self._links_left
        return self.rows + 1 < self._limits.rows and fits

    def add(self, row: ManifestRow) -> None:
        """Write one row of raw values."""
        self.rows += 1
        self._sheet.set_row(self.rows, self._height(row))
        for place, column in enumerate(self._columns):
            value = row.get(column)
            if value is not None and value != "":
                self._write(place, column, value, row)

    def finish(self) -> None:
        """Filter, drop-down and colours over all rows that were added."""
        last = max(self.rows, 1)
        width = len(self._columns) - 1
        self._sheet.autofilter(0, 0, last, width)
        self._sheet.ignore_errors({"number_stored_as_text": f"A1:XFD{last + 1}"})
        for place, column in enumerate(self._columns):
            for word, look in self._formats.words.get(column, {}).items():
                rule = {"type": "cell", "criteria": "==", "value": f'"{word}"', "format": look}
                self._sheet.conditional_format(1, place, last, place, rule)
            if column == "review":
                self._sheet.data_validation(1, place, last, place, _DROP_DOWN)

    def _height(self, row: ManifestRow) -> int:
        lines = 1
        for column in _WRAPPED.intersection(self._columns):
            if isinstance(text := row.get(column), str):
                lines = max(lines, len(text) // (_WIDTHS[column] + 4) + text.count("\n", 0, 1000) + 1)
        return _LINE_POINTS * min(lines, _MOST_LINES) + 3

    def _write(self, place: int, column: str, value: object, row: ManifestRow) -> None:
        at, sheet, formats = self.rows, self._sheet, self._formats
        if isinstance(value, bool):
            sheet.write_boolean(at, place, value, formats.number)
        elif isinstance(value, (int, float, Decimal)) and _fits_a_number(value):
            sheet.write_number(at, place, float(value), formats.by_kind.get(kind_of(column), formats.number))
        elif isinstance(value, date) and value.year >= _EXCEL_EPOCH_YEAR:
            sheet.write_datetime(at, place, _naive_utc(value), formats.time)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            sheet.write_string(at, place, " ".join(str(word) for word in value), formats.text)
        else:
            self._write_text(place, column, str(value), row)

    def _write_text(self, place: int, column: str, text: str, row: ManifestRow) -> None:
        formats = self._formats
        pointer = row.get("transcript_file") if column == "transcript" else ""
        shown, was_cut = cut(text, str(pointer or ""))
        self.cut_cells += was_cut
        target_of = row.get(_LINKED[column]) if column in _LINKED else pointer if was_cut else None
        if target_of:
            target = excel_target(target_of)
            if target and self.links >= self._links_left:
                self.past_links += 1
            elif target:
                self.links += 1
                look = formats.wrapped_link if was_cut else formats.link
                self._sheet.write_url(self.rows, place, _RelativeLink(target, shown), look)
                return
            else:
                self.unlinked += 1
        if column in _WRAPPED or "\n" in shown:
            look = formats.wrapped_quoted if is_formula_like(shown) else formats.wrapped
        else:
            look = formats.quoted if is_formula_like(shown) else formats.text
        self._sheet.write_string(self.rows, place, shown, look)


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
    """Excel keeps 15 digits; what needs more, or is no number, stays text."""
    return isfinite(value) and -_EXACT_INTEGERS < value < _EXACT_INTEGERS


def _naive_utc(moment: date) -> date:
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return moment.astimezone(UTC).replace(tzinfo=None)
    return moment


class _EscapingSheet(Worksheet):  # type: ignore[misc, unused-ignore]
    """XlsxWriter's own escapes lose some texts (`_x0041_x0042_`) and let lone surrogates fail; ours do not."""

    @staticmethod
    def _escape_control_characters(data: object) -> object:
        if not isinstance(data, str):  # counts and the like come this way too
            return data
        return escape_controls(data).replace("\r", "_x000D_")


class _RelativeLink(Url):  # type: ignore[misc, unused-ignore]
    """A link relative to the workbook, with the slashes of a URL: every office program follows those."""

    def __init__(self, target: str, shown: str) -> None:
        super().__init__("external:file")
        self.text = shown
        self._relative_target = target

    def _target(self) -> str:
        return self._relative_target
