"""A ledger copied to plan on: the original stays as it is, also while a run works on it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import DBAPIError

from audiobatch.address import is_database
from audiobatch.errors import ConfigError
from audiobatch.ledger.engine import open_engine, open_postgresql
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.schema import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS = 1000


@contextlib.contextmanager
def ledger_copy(ledger: str, output: str, folder: Path) -> Iterator[Ledger]:
    """A copy, in `folder`, of the ledger of the job with this output; an empty one where there is none yet.

    Args:
        ledger: its file, or a database's address.
        output: where the job's results go, in full.
        folder: where the copy goes.

    Raises:
        ConfigError: it is no ledger, or cannot be reached.
    """
    copy = folder / "ledger.db"
    if is_database(ledger):
        _copy_rows(ledger, output, copy)
    elif Path(ledger).exists():
        _copy_file(Path(ledger), copy)
    opened = Ledger.open(copy)
    try:
        yield opened
    finally:
        opened.close()


def _copy_file(original: Path, copy: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{original.resolve().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as failed:
        raise ConfigError(f"{original}: cannot be read: {failed}") from failed


def _copy_rows(url: str, output: str, copy: Path) -> None:
    """Every table, in one state of the database."""
    source, target = open_postgresql(url, output), open_engine(copy)
    snapshot = source.execution_options(isolation_level="REPEATABLE READ")
    try:
        with snapshot.connect() as reading, target.begin() as writing:
            for table in metadata.sorted_tables:
                writing.execute(delete(table))
                rows = reading.execution_options(yield_per=_ROWS).execute(select(table)).mappings()
                for chunk in rows.partitions(_ROWS):
                    writing.execute(insert(table), [dict(row) for row in chunk])
    except DBAPIError as failed:
        raise ConfigError(f"{url}: cannot be read: {failed.orig}") from failed
    finally:
        source.dispose()
        target.dispose()
