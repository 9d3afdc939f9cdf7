"""Limit the size of tables: a small file can unpack to gigabytes, or contain a row that exceeds the memory.

The checks run before a reader parses anything, and again for each row.
"""

from __future__ import annotations

import csv
import threading
import zipfile
from typing import IO, TYPE_CHECKING

from audiobatch.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_UNPACKED_BYTES = 1 << 30
#: Excel's own. Source: support.microsoft.com, "Excel specifications and limits", checked 2026-11-30.
MOST_COLUMNS = 16_384
LARGEST_CELL_BYTES = 1 << 20
#: Of JSON Lines, and of a CSV between two line breaks.
LARGEST_LINE_BYTES = 64 << 20

_BLOCK_BYTES = 1 << 20
#: `csv.field_size_limit` is one setting for the whole process.
_field_limit = threading.Lock()


def lines_within(file: IO[bytes], where: object) -> Iterator[bytes]:
    """Yield the lines of a file.

    Raises:
        ConfigError: a line is too long.
    """
    while line := file.readline(LARGEST_LINE_BYTES + 1):
        if len(line) > LARGEST_LINE_BYTES:
            raise too_large(where, f"a line is longer than {LARGEST_LINE_BYTES >> 20} MB")
        yield line


def check_csv(path: Path, delimiter: str) -> None:
    """Check that no row has too many columns and no cell is too large, with one row in memory.

    Raises:
        ConfigError: the table is too large.
        OSError: the file cannot be read.
    """
    with _field_limit, path.open("rb") as file:
        before = csv.field_size_limit(LARGEST_CELL_BYTES)
        try:
            lines = (line.decode("utf-8-sig", "replace") for line in lines_within(file, path))
            for row in csv.reader(lines, delimiter=delimiter):
                if len(row) > MOST_COLUMNS:
                    raise too_large(path, f"a row has {len(row):,} columns, more than {MOST_COLUMNS:,}")
        except csv.Error as failed:
            if "field larger" in str(failed):
                raise too_large(path, _CELL) from None
            # The reader reports all other errors.
        finally:
            csv.field_size_limit(before)


def check_workbook(file: IO[bytes], path: Path) -> None:
    """Check the unpacked size of a workbook, and that no text in it is too large.

    Raises:
        ConfigError: the workbook is too large.
        zipfile.BadZipFile: the file is not a zip archive.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > LARGEST_UNPACKED_BYTES:
            raise too_large(path, f"it unpacks to more than {LARGEST_UNPACKED_BYTES >> 30} GiB")
        for member in members:
            if member.filename.endswith(".xml"):
                with archive.open(member) as part:
                    if _longest_text(part) > LARGEST_CELL_BYTES:
                        raise too_large(path, _CELL)


def check_row(cells: dict[str, str], where: object) -> None:
    """Check the size of a row.

    Raises:
        ConfigError: it has too many columns, or too large a cell.
    """
    if len(cells) > MOST_COLUMNS:
        raise too_large(where, f"a row has {len(cells):,} columns, more than {MOST_COLUMNS:,}")
    if any(len(cell) > LARGEST_CELL_BYTES for cell in cells.values()):
        raise too_large(where, _CELL)


def too_large(where: object, what: str) -> ConfigError:
    """Return the error for a table that exceeds a limit."""
    return ConfigError(f"{shown(where)}: the table is too large: {what}. Split it, or name the files by path")


_CELL = f"a cell has more than {LARGEST_CELL_BYTES >> 20} MB"


def _longest_text(part: IO[bytes]) -> int:
    """Return the length of the longest stretch of XML without a `<`; no cell's text is longer. Read in blocks."""
    longest = run = 0
    while block := part.read(_BLOCK_BYTES):
        first, last = block.find(b"<"), block.rfind(b"<")
        if first < 0:
            run += len(block)
        else:
            longest = max(longest, run + first)
            run = len(block) - last
        longest = max(longest, run)
        if longest > LARGEST_CELL_BYTES:
            break
    return longest
