"""The ledger: what was found, what was sent, what came back. The truth and the queue; all else is a view.

The write path of one call, each step on disk before the next: intent → (send) → files → outcome. An intent
whose end is missing is a call that was perhaps billed; `recovery` turns it into an `unknown` outcome.

    ledger.reader     what is recorded                   `reader`
    ledger.writer     records it                         `writer`
    ledger.queue      which items are left to send       `queue`
    ledger.workers    which runs are at work             `membership`

All writes go through one thread (`group_commit`); reads have connections of their own (`database`).

Measured (SQLite, WAL, synchronous=FULL, 64 in flight, two awaited commits an item): about 38 000 items a
second and 0.02 ms of CPU an item, because waiting commits share one transaction and one flush.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import DBAPIError

from audiobatch.address import is_database
from audiobatch.errors import ConfigError, StorageError
from audiobatch.ledger import database
from audiobatch.ledger.database import Database, Outage
from audiobatch.ledger.engine import lock_schema, open_engine, open_postgresql, schema_of
from audiobatch.ledger.group_commit import GroupCommit
from audiobatch.ledger.membership import Workers, this_process
from audiobatch.ledger.queue import WorkQueue
from audiobatch.ledger.reader import LedgerReader
from audiobatch.ledger.schema import metadata
from audiobatch.ledger.writer import LedgerWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A command that died while it reserved the ledger blocks runs no longer than this.
_LONGEST_RESERVATION_S = 600.0
#: Rows that are copied at a time.
_CHUNK = 1000


class Ledger:
    """One job's ledger, for one run at a time (the folder's lock sees to that) and any number of readers.

    In a PostgreSQL database, for any number of runs that claim their items from its queue.

    Attributes:
        outage: whether the database is away, and how long to wait for it.
        is_shared: whether several runs may work on it at once.
    """

    def __init__(self, opened: Database) -> None:
        """Start the thread that writes to an opened database."""
        self._database = opened
        self._commits = GroupCommit(opened)
        self.outage = opened.outage
        self.is_shared = opened.is_shared
        self.queue = WorkQueue(opened, self._commits)
        self.reader = LedgerReader(opened)
        self.writer = LedgerWriter(opened, self._commits, self.reader, self.queue.guard)
        self.workers = Workers(self._commits)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the SQLite ledger at `path`, migrated to this version.

        Raises:
            ConfigError: the file is no ledger, or a later version made it.
        """
        engine = open_engine(path)
        return cls(Database(engine=engine, writing=engine, name=str(path), schema="", outage=Outage(0.0)))

    @classmethod
    def at(cls, ledger: str, output: str) -> Self:
        """Open or create the ledger of the job whose results go to `output`.

        Args:
            ledger: its file, or the address of a database.
            output: the folder or address of the results, in full.

        Raises:
            ConfigError: it cannot be opened.
        """
        if not is_database(ledger):
            return cls.open(Path(ledger))
        opened = Database(
            engine=open_postgresql(ledger, output),
            writing=open_postgresql(ledger, output, writes=True),
            name=ledger,
            schema=schema_of(output),
            outage=Outage(database.LONGEST_OUTAGE_S),
        )
        return cls(opened)

    def close(self) -> None:
        """Commit what waits and close every connection."""
        self._commits.close()
        self._database.close()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let only one of all runs on a shared ledger into this block; a file's runs have the folder's lock.

        Raises:
            StorageError: the database is gone.
        """
        if not self.is_shared:
            yield
            return
        try:
            connection = self._database.connect()
        except DBAPIError as failed:
            raise StorageError(f"{self._database.name}: {failed.orig}") from failed
        with connection, connection.begin():
            lock_schema(connection, self._database.schema)
            yield

    @contextlib.contextmanager
    def reserved(self, command: str) -> Iterator[None]:
        """Reserve a shared ledger for a command: no run is at work on it, and none starts in this block.

        Raises:
            FolderInUse: a run is at work.
        """
        if not self.is_shared:
            yield
            return
        name = f"{command}-{secrets.token_hex(2)}"
        with self.exclusive():
            self.workers.join(this_process(name, asks=name, lease_s=_LONGEST_RESERVATION_S, drains=True))
        try:
            yield
        finally:
            self.workers.leave()


@contextlib.contextmanager
def ledger_copy(ledger: str, output: str, folder: Path) -> Iterator[Ledger]:
    """Copy a job's ledger to plan on: the original stays as it is, also while a run works on it.

    Args:
        ledger: its file, or a database's address.
        output: where the job's results go, in full.
        folder: where the copy goes.

    Yields:
        The copy, open; an empty ledger where the job has none yet.

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
    """Copy every table, in one state of the database."""
    source, target = open_postgresql(url, output), open_engine(copy)
    snapshot = source.execution_options(isolation_level="REPEATABLE READ")
    try:
        with snapshot.connect() as reading, target.begin() as writing:
            for table in metadata.sorted_tables:
                writing.execute(delete(table))
                rows = reading.execution_options(yield_per=_CHUNK).execute(select(table)).mappings()
                for chunk in rows.partitions(_CHUNK):
                    writing.execute(insert(table), [dict(row) for row in chunk])
    except DBAPIError as failed:
        raise ConfigError(f"{url}: cannot be read: {failed.orig}") from failed
    finally:
        source.dispose()
        target.dispose()
