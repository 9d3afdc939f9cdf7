"""Write the manifest for programs: JSON Lines, Parquet where pyarrow is installed, and files of limited size.

Millions of rows are easier to load from several files:

    manifest-parts/00001.csv, 00002.csv, …        the same columns, each with its header
    manifest-parts/00001.parquet, …               the same, typed

Rows are streamed, so that memory holds one chunk. A part appears whole or not at all; parts of an earlier, longer
set are deleted.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain, islice
from math import isfinite
from typing import IO, TYPE_CHECKING, Any, Protocol

import orjson

from audiobatch.errors import ConfigError
from audiobatch.reports.columns import COLUMNS, Kind, kind_of
from audiobatch.reports.manifest import escape_controls, iso_utc
from audiobatch.reports.totals import check_names, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import IO

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.storage.local import Storage

_NUMBERS = frozenset({Kind.SECONDS, Kind.RATIO})


def write_jsonl(
    chunks: Iterable[Sequence[ManifestRow]],
    out: IO[bytes],
    *,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """Write one JSON object a line: numbers as numbers, times as ISO 8601 UTC, checks as a list, empty as null.

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
        return list(check_names(value))
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
    """Check that Parquet can be written.

    Raises:
        ConfigError: pyarrow is not installed.
    """
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
    """Write typed Parquet: counts, seconds, `decimal128(18, 9)` dollars, UTC times, lists of checks.

    Each chunk is a row group, so that memory does not grow with the job. A reviewer's columns are text.

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
        return list(check_names(value))
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


#: Folder of the parts, relative to the output.
PARTS_FOLDER = "manifest-parts"
_CHUNK = 1000


class Writer(Protocol):
    """The signature of `write_csv` and `write_parquet`."""

    def __call__(
        self,
        chunks: Iterable[Sequence[ManifestRow]],
        out: IO[Any],
        *,
        extra_columns: Sequence[str] = (),
        columns: Sequence[str] | None = None,
    ) -> int:
        """Write all rows and return how many there were."""
        ...


def write_parts(
    chunks: Iterable[Sequence[ManifestRow]],
    storage: Storage,
    ending: str,
    write: Writer,
    *,
    rows: int,
    extra_columns: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> list[str]:
    """Write the manifest as files of at most `rows` rows each.

    Returns:
        The parts' names, relative to the output.

    Raises:
        StorageError: a part cannot be written; the parts before it exist.
    """
    names: list[str] = []
    for part in _parted(chunks, rows):
        names.append(f"{PARTS_FOLDER}/{len(names) + 1:05}.{ending}")
        with storage.open_binary_atomic(names[-1]) as out:
            write(part, out, extra_columns=extra_columns, columns=columns)
    surplus = len(names) + 1
    while storage.exists(name := f"{PARTS_FOLDER}/{surplus:05}.{ending}"):
        storage.delete(name)
        surplus += 1
    return names


def _parted(chunks: Iterable[Sequence[ManifestRow]], size: int) -> Iterator[Iterator[Sequence[ManifestRow]]]:
    """Yield the chunks of each part; read a part to its end before taking the next."""
    rows = chain.from_iterable(chunks)
    while (first := next(rows, None)) is not None:
        yield _chunked(chain([first], islice(rows, size - 1)))


def _chunked(rows: Iterator[ManifestRow]) -> Iterator[Sequence[ManifestRow]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
