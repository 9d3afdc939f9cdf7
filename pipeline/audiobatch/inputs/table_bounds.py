"""How large a table may be in memory: a small file can unpack to gigabytes, or hold a row that no machine takes.

Looked at before a reader builds anything of it, and again row by row.
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
#: The limit of Python's reader is one for the whole process.
_field_limit = threading.Lock()


def lines_within(file: IO[bytes], where: object) -> Iterator[bytes]:
    """The lines of a file. Raises: ConfigError: one is too long."""
    while line := file.readline(LARGEST_LINE_BYTES + 1):
        if len(line) > LARGEST_LINE_BYTES:
            raise too_large(where, f"a line is longer than {LARGEST_LINE_BYTES >> 20} MB")
        yield line


def check_csv(path: Path, delimiter: str) -> None:
    """See that no row has too many columns and no cell is too large, in memory for one row.

    Raises:
        ConfigError: one has, or is.
        OSError: it cannot be read.
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
            # All else is for the reader to say.
        finally:
            csv.field_size_limit(before)


def check_workbook(file: IO[bytes], path: Path) -> None:
    """See what a workbook unpacks to, and that no text in it is too large.

    Raises:
        ConfigError: it is too much.
        zipfile.BadZipFile: it is no archive.
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
    """Raises: ConfigError: a row is too large."""
    if len(cells) > MOST_COLUMNS:
        raise too_large(where, f"a row has {len(cells):,} columns, more than {MOST_COLUMNS:,}")
    if any(len(cell) > LARGEST_CELL_BYTES for cell in cells.values()):
        raise too_large(where, _CELL)


def too_large(where: object, what: str) -> ConfigError:
    return ConfigError(f"{shown(where)}: is too large a table: {what}. Split it, or name the files by path")


_CELL = f"a cell holds more than {LARGEST_CELL_BYTES >> 20} MB"


def _longest_text(part: IO[bytes]) -> int:
    """The longest stretch of XML between two marks, which no cell's text is longer than; in memory for a block."""
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
