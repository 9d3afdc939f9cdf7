"""Write and read manifest.csv: one row for each item and turn, for every program that reads CSV.

UTF-8 with BOM (without it Excel guesses an old code page), comma, CRLF, quotes where needed (RFC 4180).
`protect` makes text safe, and `read_manifest` restores it. Numbers are plain: no exponent, a full
stop, no other separator. Times are ISO 8601 in UTC. Empty means "not used" or "not known".

A row's values are raw: `str`, `int`, `float`, `Decimal`, an aware `datetime`, a tuple of strings, or None.

A cell can be dangerous in two ways. The program that opens the file evaluates a text that begins like a formula.
And some readers refuse a file with a control character or half of a surrogate pair. Both are escaped by rules that
can be undone exactly:

    what the text has                             what the CSV cell has
    ------------------------------------------    -----------------------------------------------
    `= + - @` first, or tab, CR, LF, also after   one `'` before it
    spaces, quotes or `'` (and full-width forms)
    a control character but tab, CR, LF           `_x001B_`, its UTF-16 code as OOXML writes it
    a lone surrogate, U+FFFE, U+FFFF              `_xD800_`, the same
    literally `_x001B_`                           `_x005F_x001B_`, the same

`unprotect(protect(text)) == text` for every string that Python can hold, and text without these is unchanged:
an apostrophe before an ordinary word is just an apostrophe.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from audiobatch.errors import InputError
from audiobatch.reports.columns import COLUMNS, choose_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "ManifestRow", "cell_text", "choose_columns", "read_manifest", "write_csv"]
ManifestRow: TypeAlias = Mapping[str, object]
_BOM = "\ufeff"
_DECIMALS = 6


def write_csv(
    chunks: Iterable[Sequence[ManifestRow]],
    out: IO[Any],
    *,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """Write rows chunk by chunk, so that memory does not grow with the job.

    Args:
        chunks: lists of rows in input order; some hundreds to some thousands a chunk are best.
        out: a binary file, or a text file opened with `newline=""` and UTF-8. It is not closed.
        extra_columns: the job's `in.<name>` and `reply.<name>` columns and a reviewer's own, after ours.
        columns: exactly these columns instead (`choose_columns` makes the list).

    Returns:
        How many rows were written.
    """
    import pandas as pd  # takes a second, which the start of a run need not wait for

    names = list(columns) if columns is not None else [*COLUMNS, *extra_columns]
    header = pd.DataFrame([], columns=[protect(name) for name in names], dtype=object)
    _append(header, out, with_header=True)
    written = 0
    for chunk in chunks:
        if not chunk:
            continue
        cells = {index: [cell_text(row.get(name)) for row in chunk] for index, name in enumerate(names)}
        _append(pd.DataFrame(cells, dtype=object), out, with_header=False)
        written += len(chunk)
    return written


def _append(frame: pd.DataFrame, out: IO[Any], *, with_header: bool) -> None:
    # CRLF also makes Python's csv quote a lone CR, which it otherwise leaves bare.
    text = frame.to_csv(index=False, header=with_header, lineterminator="\r\n")
    if with_header:
        text = _BOM + text
    out.write(text if isinstance(out, io.TextIOBase) else text.encode("utf-8"))


def cell_text(value: object) -> str:  # noqa: PLR0911 - a return for each type of value
    """Return a raw value as the text of a CSV cell, safe to open."""
    if value is None:
        return ""
    if isinstance(value, str):
        return protect(value) if value else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return plain_number(value)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else ""
    if isinstance(value, datetime):
        return iso_utc(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Iterable):
        return protect(" ".join(map(str, value)))
    return protect(str(value))


def plain_number(value: float) -> str:
    """Return a float without exponent, with six decimals at most; empty where it is not finite."""
    if not math.isfinite(value):
        return ""
    return f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".") or "0"


def iso_utc(time: datetime) -> str:
    """Return `2026-03-01T12:00:00.250Z`; a time without a zone is a reviewer's own and is not converted."""
    if time.tzinfo is None:
        return time.isoformat(sep=" ")
    return time.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def read_manifest(path: Path | str) -> pd.DataFrame:
    """Read a manifest, or a copy that a spreadsheet saved, as the text that was written.

    Every cell is `str`, and no type is guessed: `007`, `NA` and `1e5` stay text; empty cells are "".
    A spreadsheet may have changed the separator (`;`, tab) or the encoding; both are recognised.

    Raises:
        InputError: the file is missing, or is not a table.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_csv(raw, path)


def parse_csv(raw: bytes, path: Path | str) -> pd.DataFrame:
    """Read a manifest from bytes; `path` names them in errors.

    Raises:
        InputError: they are not a table.
    """
    import pandas as pd

    text = _decode(raw)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # a line for Excel alone
        separator, text = first.strip()[4:5] or ",", rest
    else:
        separator = max(",;\t", key=first.count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a surplus cell must not be lost
            frame = pd.read_csv(
                io.StringIO(text, newline=""),
                sep=separator,
                dtype=object,
                keep_default_na=False,
                na_filter=False,
                index_col=False,
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise InputError(f"{path}: is not a CSV table: {error}") from error
    cells = {index: _texts(frame.iloc[:, index]) for index in range(len(frame.columns))}
    table = pd.DataFrame(cells, dtype=object)
    table.columns = pd.Index([unprotect(str(name)) for name in frame.columns], dtype=object)
    return table


def _texts(cells: Iterable[object]) -> list[str]:
    return [unprotect(cell) if isinstance(cell, str) else "" for cell in cells]


def _decode(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")  # what Excel's plain "CSV" is on Windows in the West


#: A cell of an XLSX file holds this many UTF-16 units.
#: Source: https://support.microsoft.com/office/excel-specifications-and-limits-1672b34d (2025-11-20).
CELL_LIMIT_UTF16 = 32_767
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_ESCAPED = re.compile(rf"[{_CONTROL}\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{{4}}_)")
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
# What a program may skip before it looks for a formula: spaces, quotes, and characters of no width.
_SKIPPED = r"\s'\"`´‘’“”„«»\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_FORMULA = re.compile(rf"[{_SKIPPED}]*?[=+\-@\t\r\n\u2212\ufe62\ufe63\ufe66\ufe6b＝＋－＠]")
_SAFE_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def is_formula_like(text: str) -> bool:
    """Whether some spreadsheet might evaluate a cell with this text.

    Putting `'` before a text never changes the answer: that is what makes `protect` reversible.
    """
    return _FORMULA.match(text) is not None


def protect(text: str) -> str:
    """Escape a text so that no spreadsheet evaluates it and every reader accepts it."""
    if not text.isprintable() or "_x" in text:
        text = escape_controls(text)
    if text and text[0] not in _SAFE_FIRST and is_formula_like(text):
        return "'" + text
    return text


def unprotect(text: str) -> str:
    """Undo `protect`; text that it would not have changed comes back unchanged."""
    if text.startswith("'") and is_formula_like(text[1:]):
        text = text[1:]
    return unescape_controls(text) if "_x" in text else text


def escape_controls(text: str) -> str:
    """Write every character that a text file should not contain as `_xHHHH_`."""
    return _ESCAPED.sub(lambda match: f"_x{ord(match[0]):04X}_", text)


def unescape_controls(text: str) -> str:
    """Undo `escape_controls`."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def cut(text: str, pointer: str = "", *, limit_utf16: int = CELL_LIMIT_UTF16) -> tuple[str, bool]:
    """Cut a text to the size of one XLSX cell.

    A cut text ends with a marker that gives its full length and, if `pointer` names a file with the whole text,
    that path. Characters outside the BMP count twice and are never halved.

    Returns:
        The text, and whether it was cut.
    """
    units = len(text)
    if units * 2 > limit_utf16:
        units += sum(character > "\uffff" for character in text)
    if units <= limit_utf16:
        return text, False
    where = f", whole in {pointer}" if pointer and len(pointer) < limit_utf16 // 4 else ""
    marker = f" … [cut: {len(text)} characters{where}]"
    room = limit_utf16 - utf16_length(marker)
    head = text.encode("utf-16-le", "surrogatepass")[: room * 2]
    if 0xD8 <= head[-1] <= 0xDB:  # the first half of a pair whose second half did not fit
        head = head[:-2]
    return head.decode("utf-16-le", "surrogatepass") + marker, True


def utf16_length(text: str) -> int:
    """Count characters as Excel does: those outside the BMP count twice."""
    return len(text) + sum(character > "\uffff" for character in text)
