"""The manifest for programs: JSON Lines, and Parquet where pyarrow is installed."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch.errors import ConfigError
from audiobatch.reports.cells import escape_controls
from audiobatch.reports.columns import COLUMNS, Kind, kind_of
from audiobatch.reports.manifest import iso_utc
from audiobatch.reports.totals import number, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import IO

    from audiobatch.reports.manifest import ManifestRow

_NUMBERS = frozenset({Kind.SECONDS, Kind.RATIO})


def write_jsonl(
    chunks: Iterable[Sequence[ManifestRow]],
    out: IO[bytes],
    *,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """One JSON object a line: numbers as numbers, times as ISO 8601 UTC, checks as a list, nothing as null.

    Returns:
        How many rows were written.
    """
    names = list(columns) if columns is not None else [*COLUMNS, *extra_columns]
    written = 0
    for chunk in chunks:
        for row in chunk:
            out.write(orjson.dumps({name: _json_value(name, row.get(name)) for name in names}) + b"\n")
        written += len(chunk)
    return written


def _json_value(column: str, value: object) -> object:
    if kind_of(column) is Kind.CHECKS:
        return list(words(value))
    if isinstance(value, str):
        # JSON as UTF-8 holds every character but half a pair; the other escapes are JSON's own.
        return value if value.isascii() or _encodes(value) else escape_controls(value)
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f").encode()) if value.is_finite() else None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, datetime):
        return iso_utc(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    return [str(part) for part in value] if isinstance(value, (tuple, list)) else str(value)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def need_pyarrow() -> None:
    """Raises: ConfigError: Parquet cannot be written here, and how that is mended."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError("manifest.parquet needs pyarrow: pip install 'audiobatch[parquet]'") from error


def write_parquet(
    chunks: Iterable[Sequence[ManifestRow]],
    out: IO[bytes],
    *,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """The manifest as Parquet, typed: counts, seconds, `decimal128(18, 9)` dollars, UTC times, lists of checks.

    A row group a chunk, so that memory does not grow with the job. Columns that are not ours are text.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(columns) if columns is not None else [*COLUMNS, *extra_columns]
    types: dict[Kind, Any] = {
        Kind.COUNT: pa.int64(),
        Kind.SECONDS: pa.float64(),
        Kind.RATIO: pa.float64(),
        Kind.MONEY: pa.decimal128(18, 9),
        Kind.TIME: pa.timestamp("us", tz="UTC"),
        Kind.CHECKS: pa.list_(pa.string()),
    }
    schema = pa.schema([(name, types.get(kind_of(name), pa.string())) for name in names])
    written = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for chunk in chunks:
            if chunk:
                cells = {name: [_parquet_value(name, row.get(name)) for row in chunk] for name in names}
                writer.write_table(pa.table(cells, schema=schema))
                written += len(chunk)
    return written


def _parquet_value(column: str, value: object) -> object:
    kind = kind_of(column)
    if kind is Kind.CHECKS:
        return list(words(value))
    if value is None or value == "":
        return None if kind not in (Kind.TEXT, Kind.PATH) else value
    if kind is Kind.COUNT:
        amount = number(value)
        return None if amount is None else int(amount)
    if kind in _NUMBERS:
        return number(value)
    if kind is Kind.MONEY:
        return Decimal(str(value)).quantize(Decimal("1e-9")) if number(value) is not None else None
    if kind is Kind.TIME:
        return value.astimezone(UTC) if isinstance(value, datetime) else None
    if isinstance(value, date):
        return iso_utc(value) if isinstance(value, datetime) else value.isoformat()
    text = str(value)
    return text if _encodes(text) else escape_controls(text)
