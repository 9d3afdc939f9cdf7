"""Read a table that a reviewer edited: XLSX or CSV, whichever program saved it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from audiobatch.errors import InputError
from audiobatch.reports.manifest import read_manifest, unescape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: What a cell of a workbook can hold; a CSV's cells are all `str`.
Cell: TypeAlias = str | int | float | bool | Decimal | datetime | date | time | None

_WORKBOOKS = frozenset({".xlsx", ".xlsm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row: where the reviewer sees it (`row 7`, `manifest 2, row 7`), and its cells by column."""

    where: str
    cells: dict[str, Cell]

    def text(self, column: str) -> str:
        """Return a cell as text: whole numbers without `.0`, a missing cell as ""."""
        value = self.cells.get(column)
        if value is None:
            return ""
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return str(value)


def read_table(path: Path) -> Iterator[TableRow]:
    """Yield the rows of a manifest or review file, with the header's cells as column names.

    Every sheet of a workbook with an `item_id` column is read, in the order of the sheets. A formula has the value
    that it had when the file was saved.

    Raises:
        InputError: no such file, no table, or no `item_id` column.
    """
    return _read_workbook(path) if path.suffix.lower() in _WORKBOOKS else _read_csv(path)


def _read_csv(path: Path) -> Iterator[TableRow]:
    frame = read_manifest(path)
    columns = [str(name).strip() for name in frame.columns]
    if "item_id" not in columns:
        raise InputError(f"{path}: has no item_id column, so its rows cannot be told apart")
    for number, values in enumerate(frame.itertuples(index=False, name=None), start=2):
        yield TableRow(where=f"row {number}", cells=dict(zip(columns, values, strict=True)))


def _read_workbook(path: Path) -> Iterator[TableRow]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a workbook: {error}") from error
    has_items = False
    try:
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # a stored size may be wrong once another program has saved the file
            rows = sheet.iter_rows(values_only=True)
            columns = ["" if cell is None else unescaped(cell) for cell in next(rows, ())]
            names = [str(name).strip() for name in columns]
            if "item_id" not in names:
                continue
            has_items = True
            prefix = "" if sheet.title == "manifest" else f"{sheet.title}, "
            yield from _sheet_rows(rows, names, prefix)
    finally:
        book.close()
    if not has_items:
        raise InputError(f"{path}: no sheet has an item_id column, so its rows cannot be told apart")


def _sheet_rows(rows: Iterable[tuple[Cell, ...]], names: list[str], prefix: str) -> Iterator[TableRow]:
    for number, values in enumerate(rows, start=2):
        cells = {
            name: unescaped(value)
            for name, value in zip(names, values, strict=False)
            if name and value is not None
        }
        if cells:
            yield TableRow(where=f"{prefix}row {number}", cells=cells)


def unescaped(value: Cell) -> Cell:
    """Undo the `_xHHHH_` escapes of OOXML in a cell that is text."""
    return unescape_controls(value) if isinstance(value, str) and "_x" in value else value
