"""Write the workbook's sheets `summary` and `settings`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from audiobatch.reports.manifest import cut
from audiobatch.reports.totals import Totals, quantile

if TYPE_CHECKING:
    import xlsxwriter
    from xlsxwriter.worksheet import Worksheet

_MINUTE_S = 60
_STATUS_COLOURS = {
    "succeeded": "#2E9E5B",
    "failed": "#D64545",
    "refused": "#E08A3C",
    "unknown": "#8B5CF6",
    "pending": "#9AA3AF",
}
_HOW_TO = (
    "Mark rows in the manifest's review column: ok, redo or reject; say why in review_note.",
    "Sort, filter and add columns as you like, but leave item_id and turn alone: they identify a row.",
    "Times are UTC; costs are in US dollars; columns that end in _s are seconds.",
    "Then: audiobatch review DIR --apply manifest.xlsx, and audiobatch retry DIR --review redo.",
)


def write_summary(
    book: xlsxwriter.Workbook, sheet: Worksheet, totals: Totals, *, title: str, notes: Sequence[str]
) -> None:
    """Write totals, cost by deployment, failures by type, checks by kind, marks, and two small charts."""
    tables = _Tables(book, sheet)
    sheet.set_column(0, 0, 34)
    sheet.set_column(1, 2, 16)
    sheet.hide_gridlines(2)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 1)
    tables.line(title, {"bold": True, "font_size": 16})
    for note in notes:
        tables.line(note, {"font_color": "#7C2D12"})
    for line in _HOW_TO:
        tables.line(line, {"font_color": "#4B5563"})
    tables.gap()
    statuses = totals.statuses.most_common()
    status_at = tables.add("Status", ["rows"], statuses)
    tables.add("Sizes", ["amount"], _sizes(totals))
    costs = [
        (name, rows, totals.cost_by_deployment.get(name))
        for name, rows in totals.rows_by_deployment.most_common()
    ]
    everything = ("all", sum(rows for _, rows, _ in costs), totals.cost_usd)
    cost_at = tables.add("Deployment", ["rows sent", "cost, USD"], [*costs, everything])
    tables.add("Failures by type", ["rows"], totals.error_types.most_common())
    tables.add("Checks by kind", ["rows"], totals.checks.most_common())
    tables.add("Marks", ["rows"], totals.reviews.most_common())
    if statuses:
        colours = [{"fill": {"color": _STATUS_COLOURS.get(name, "#6B7280")}} for name, _ in statuses]
        chart = _bar_chart(book, "Rows by status", start=status_at, column=1, colours=colours)
        sheet.insert_chart(status_at - 1, 4, chart)
    if any(cost for _, _, cost in costs):
        blue = [{"fill": {"color": "#2B6CB0"}}] * len(costs)
        chart = _bar_chart(book, "Cost by deployment, USD", start=cost_at, column=2, colours=blue)
        sheet.insert_chart(status_at + 13, 4, chart)


def write_settings(book: xlsxwriter.Workbook, sheet: Worksheet, settings: Mapping[str, object]) -> None:
    """Write each of the job's settings on a line, nested ones as `a.b`."""
    head = book.add_format({"bold": True, "bottom": 1})
    wrap = book.add_format({"text_wrap": True, "valign": "top", "num_format": "@"})
    name_format = book.add_format({"valign": "top"})
    sheet.set_column(0, 0, 34)
    sheet.set_column(1, 1, 90)
    sheet.freeze_panes(1, 0)
    sheet.set_landscape()
    sheet.fit_to_pages(1, 0)
    sheet.write_string(0, 0, "setting", head)
    sheet.write_string(0, 1, "value", head)
    for row, (name, value) in enumerate(flat(settings), start=1):
        sheet.write_string(row, 0, name, name_format)
        sheet.write_string(row, 1, cut(value)[0], wrap)


def flat(settings: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested settings as lines: mappings as `a.b`, lists of mappings as `a.1.b`, the rest as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
            numbered = {str(number): part for number, part in enumerate(value, start=1)}
            yield from flat(numbered, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield f"{prefix}{name}", ", ".join(str(part) for part in value)
        else:
            yield f"{prefix}{name}", "" if value is None else str(value)


def _sizes(totals: Totals) -> list[tuple[str, object]]:
    sizes: list[tuple[str, object]] = [
        ("items", totals.items),
        ("rows, one a turn", totals.rows),
        ("audio in, minutes", totals.input_audio_s / _MINUTE_S),
        ("audio out, minutes", totals.output_audio_s / _MINUTE_S),
        ("latency, median, s", quantile(totals.latencies_s, 0.5)),
        ("latency, 95 %, s", quantile(totals.latencies_s, 0.95)),
        *((f"{name.replace('_', ' ')} tokens", count) for name, count in totals.tokens.items()),
    ]
    if totals.perhaps_billed:
        sizes.append(("perhaps billed, calls", totals.perhaps_billed))
    if totals.rows_without_price:
        sizes.append(("succeeded, price not known", totals.rows_without_price))
    return sizes


class _Tables:
    """Tables one below the other; rows are written in order, since the workbook is streamed to disk."""

    def __init__(self, book: xlsxwriter.Workbook, sheet: Worksheet) -> None:
        self._book = book
        self._sheet = sheet
        self._row = 0
        head = {"bold": True, "bottom": 1, "font_color": "#1F2937"}
        self._head = book.add_format(head)
        self._number_head = book.add_format({**head, "align": "right"})
        self._count = book.add_format({"num_format": "#,##0"})
        self._amount = book.add_format({"num_format": "#,##0.00"})
        self._money = book.add_format({"num_format": "#,##0.000000"})

    def line(self, text: str, properties: Mapping[str, object]) -> None:
        """Write a line of text with these format properties."""
        self._sheet.write_string(self._row, 0, cut(text)[0], self._book.add_format(properties))
        self._row += 1

    def gap(self) -> None:
        """Leave a line empty."""
        self._row += 1

    def add(self, name: str, heads: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> int:
        """Write a table, if it has rows, and return the number of its first row of values."""
        start = self._row + 1
        if not rows:
            return start
        for column, text in enumerate((name, *heads)):
            self._sheet.write_string(self._row, column, text, self._number_head if column else self._head)
        for row, (label, *values) in enumerate(rows, start=start):
            self._sheet.write_string(row, 0, str(label))
            for column, value in enumerate(values, start=1):
                if value is not None:
                    number = self._count if isinstance(value, int) else self._amount
                    cell_format = self._money if "USD" in heads[column - 1] else number
                    self._sheet.write_number(row, column, float(value), cell_format)
        self._row = start + len(rows) + 1
        return start


def _bar_chart(
    book: xlsxwriter.Workbook, title: str, *, start: int, column: int, colours: Sequence[object]
) -> Any:
    end = start + len(colours) - 1
    chart = book.add_chart({"type": "bar"})
    chart.add_series(
        {
            "categories": ["summary", start, 0, end, 0],
            "values": ["summary", start, column, end, column],
            "points": list(colours),
            "data_labels": {"value": True},
            "gap": 60,
        }
    )
    chart.set_title({"name": title, "name_font": {"size": 12}})
    chart.set_legend({"none": True})
    chart.set_y_axis({"reverse": True, "line": {"none": True}})
    chart.set_x_axis({"visible": False, "major_gridlines": {"visible": False}})
    chart.set_size({"width": 520, "height": 240})
    return chart
