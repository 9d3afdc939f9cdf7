"""The manifest in parts of so many rows: for millions of them, which no single file serves well.

    manifest-parts/00001.csv, 00002.csv, …        the same columns, each with its header
    manifest-parts/00001.parquet, …               the same, typed

Rows are streamed, so memory is that of one chunk. A part appears whole or not at all; parts of an earlier, longer
set are removed.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.storage.local import Storage

FOLDER = "manifest-parts"
_CHUNK = 1000


class Writer(Protocol):
    """`write_csv` or `write_parquet`."""

    def __call__(
        self,
        chunks: Iterable[Sequence[ManifestRow]],
        out: IO[Any],
        *,
        extra_columns: Sequence[str] = (),
        columns: Sequence[str] | None = None,
    ) -> int: ...


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
    """Write rows as files of at most `rows` each.

    Returns:
        The parts' names, relative to the output.

    Raises:
        StorageError: a part cannot be written; those before it are there.
    """
    names: list[str] = []
    for part in _parted(chunks, rows):
        names.append(f"{FOLDER}/{len(names) + 1:05}.{ending}")
        with storage.open_binary_atomic(names[-1]) as out:
            write(part, out, extra_columns=extra_columns, columns=columns)
    late = len(names) + 1
    while storage.exists(name := f"{FOLDER}/{late:05}.{ending}"):
        storage.delete(name)
        late += 1
    return names


def _parted(chunks: Iterable[Sequence[ManifestRow]], size: int) -> Iterator[Iterator[Sequence[ManifestRow]]]:
    """Chunks of each part in turn; a part is to be read to its end before the next is asked for."""
    rows = chain.from_iterable(chunks)
    while (first := next(rows, None)) is not None:
        yield _chunked(chain([first], islice(rows, size - 1)))


def _chunked(rows: Iterator[ManifestRow]) -> Iterator[Sequence[ManifestRow]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
