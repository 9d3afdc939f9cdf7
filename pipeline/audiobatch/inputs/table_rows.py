"""The rows of a table as text, streamed: from CSV, Excel workbooks and JSON Lines.

A row is its number as a person counts it, its cells by column, and what is wrong with it; empty when nothing is.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections import Counter
from contextlib import closing
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import orjson

from audiobatch.errors import ConfigError
from audiobatch.inputs.table_bounds import MOST_COLUMNS, check_csv, check_workbook, too_large
from audiobatch.redaction import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Row: TypeAlias = tuple[int, dict[str, str], str]

_DELIMITERS = ",;\t|"
#: As many digits as the shortest whole number that 64 bits cannot hold.
_LONG_NUMBER = re.compile(rb"\d{19}")


def _rows_within(rows: Iterable[tuple[object, ...]], path: Path) -> Iterator[tuple[object, ...]]:
    for values in rows:
        if len(values) > MOST_COLUMNS:
            raise too_large(path, f"a row has {len(values):,} columns, more than {MOST_COLUMNS:,}")
        yield values


def open_lines(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror})") from failed


def json_lines(lines: Iterable[str | bytes], where: str) -> Iterator[Row]:
    """Each JSON object as a row of text; a line that is none is a row with its problem."""
    for number, line in enumerate(lines, 1):
        text = line.encode() if isinstance(line, str) else line
        text = text.removeprefix(b"\xef\xbb\xbf").strip()
        if not text:
            continue
        try:
            value = _parsed(text)
        except orjson.JSONDecodeError as failed:
            beginning = text.decode(errors="backslashreplace")[:200]
            yield number, {"prompt": beginning}, f"line {number} of {where} is not JSON: {failed}"
            continue
        if not isinstance(value, dict):
            yield number, {"prompt": str(value)[:200]}, f"line {number} of {where} is not a JSON object"
            continue
        yield number, {str(key): _cell(entry) for key, entry in value.items()}, ""


def _parsed(text: bytes) -> Any:
    """What a line of JSON holds, whole numbers of any length digit by digit.

    Raises:
        orjson.JSONDecodeError: it is none.
    """
    value = orjson.loads(text)
    # orjson makes a float of what 64 bits cannot hold: an id would lose its last digits.
    return json.loads(text.decode()) if _LONG_NUMBER.search(text) else value


def _cell(value: object) -> str:
    """A cell as text: whole numbers without `.0`, nothing for an empty cell, JSON for what is nested."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _as_json(value) if isinstance(value, (dict, list, bool)) else str(value)


def _as_json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number that 64 bits cannot hold
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def csv_rows(path: Path) -> Iterator[Row]:
    """Each row under the header, cells as they are written; short rows are filled up with empty cells.

    Raises:
        ConfigError: it cannot be read, or a row has more fields than the header: which of them belong together
            nobody can tell.
    """
    import pandas as pd

    delimiter = ","
    try:
        delimiter = _delimiter(path)
        check_csv(path, delimiter)
        # The header is read as a row: a row may then have no more fields than it. Told of a header, pandas takes
        # the surplus of the first rows for an index, and all cells move.
        reader = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            sep=delimiter,
            chunksize=1000,
            skip_blank_lines=True,
        )
        with reader as chunks:
            rows = (values for chunk in chunks for values in chunk.itertuples(index=False, name=None))
            columns = _csv_columns(next(rows, ()))
            _refuse_doubles(path, columns)
            for number, values in enumerate(rows, 2):
                texts = (value if isinstance(value, str) else "" for value in values)
                yield number, dict(zip(columns, texts, strict=True)), ""
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror})") from failed
    except UnicodeDecodeError as failed:
        raise ConfigError(f"{shown(path)}: is not UTF-8; save it as 'CSV UTF-8'") from failed
    except pd.errors.EmptyDataError:
        raise ConfigError(f"{shown(path)}: the table is empty") from None
    except (pd.errors.ParserError, ValueError) as failed:
        raise ConfigError(
            f"{shown(path)}: not a table that can be read: {str(failed).strip()}. A field that holds "
            f'{delimiter!r}, a quote or a line break needs double quotes around it: "Hello, world"'
        ) from failed


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(65_536)
    try:
        return csv.Sniffer().sniff(head.partition("\n")[0], _DELIMITERS).delimiter
    except csv.Error:
        return ","


def _csv_columns(header: tuple[str, ...]) -> list[str]:
    """The columns' names; one without a name is called after its place, so that its cells are not lost."""
    return [name.strip() or f"Unnamed: {place}" for place, name in enumerate(header)]


def _refuse_doubles(path: Path, header: list[str]) -> None:
    """Raises: ConfigError: two columns have one name, so that one would be taken for the other."""
    doubled = [name for name, times in Counter(header).items() if name and times > 1]
    if doubled:
        names = ", ".join(map(repr, doubled))
        raise ConfigError(
            f"{shown(path)}: more than one column is called {names}; give each a name of its own"
        )


def xlsx_rows(path: Path) -> Iterator[Row]:
    """Each row of the first sheet that holds anything, formulas with the value they had when it was saved.

    Raises:
        ConfigError: it cannot be read, or is damaged.
    """
    rows = _sheet_values(path)
    header = [_excel_cell(value).strip() for value in next(rows, ())]
    if not any(header):
        raise ConfigError(f"{shown(path)}: the first sheet is empty")
    _refuse_doubles(path, header)
    for number, values in enumerate(rows, 2):
        if any(value is not None for value in values):
            cells = zip_longest(header, values[: len(header)])  # a row ends with its last cell
            yield number, {name: _excel_cell(value) for name, value in cells if name}, ""


def _excel_cell(value: object) -> str:
    """A cell as text, with plain line breaks. What XML cannot carry stands as `_xHHHH_` in it, CR as `_x000D_`."""
    if not isinstance(value, str):
        return _cell(value)
    if "_x" in value:
        from openpyxl.utils.escape import unescape

        # A character beyond 16 bits is two escapes; half of one is no character.
        utf16 = unescape(value).encode("utf-16-le", "surrogatepass")
        value = str(utf16, "utf-16-le", "replace")
    return value.replace("\r\n", "\n")


#: What openpyxl lets through when a workbook's archive, the XML in it or what that says is damaged.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(SyntaxError, ValueError, TypeError, AttributeError, LookupError),
)


def _sheet_values(path: Path) -> Iterator[tuple[object, ...]]:
    """The cells of the first sheet, row by row; both opening it and each row can show that it is damaged."""
    from openpyxl import load_workbook

    try:
        with path.open("rb") as file:
            check_workbook(file, path)
            with closing(load_workbook(file, read_only=True, data_only=True)) as book:
                for sheet in book.worksheets[:1]:
                    sheet.reset_dimensions()  # a stored size may be wrong: rows beyond it would be lost
                    yield from _rows_within(sheet.iter_rows(values_only=True), path)
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror or failed})") from failed
    except _DAMAGE as failed:
        raise ConfigError(
            f"{shown(path)}: not an Excel workbook that can be read: {str(failed) or type(failed).__name__}. It "
            "may be damaged or have a password: open it in Excel and save it anew as .xlsx"
        ) from failed
