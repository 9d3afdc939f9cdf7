"""The ledger's database, opened: SQLite as it must be set for results to survive a power cut."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError

from audiobatch.errors import ConfigError
from audiobatch.ledger.postgresql import shrink_postgresql
from audiobatch.ledger.schema import VERSION, migrate, version_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection, Engine

_BUSY_S = 30


def open_engine(path: Path) -> Engine:
    """Open or create the SQLite database at `path`, migrated to this version.

    Raises:
        ConfigError: the file is no ledger, or a later version made it.
    """
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_S, "check_same_thread": False})
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(engine.dispose)
        try:
            with engine.connect() as connection:
                had = version_of(connection)
            if had < VERSION:
                # The lock first: of two that open an older ledger at once, the second finds it migrated.
                with engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
                    migrate(connection)
        except ValueError as failed:
            raise ConfigError(f"{path}: cannot be used: {failed}") from failed
        except DBAPIError as failed:
            raise ConfigError(_explained(path, failed)) from failed
        on_failure.pop_all()
    return engine


def _explained(path: Path, failed: DBAPIError) -> str:
    """What is wrong, and what to do, where the disk is to blame and not the file."""
    match getattr(failed.orig, "sqlite_errorname", "").split("_")[:2]:
        case ["SQLITE", "FULL"]:
            return (
                f"{path}: no space is left on its disk. Free some, or name another --output; nothing was sent"
            )
        case ["SQLITE", "READONLY" | "CANTOPEN" | "PERM"]:
            return (
                f"{path}: cannot be written ({failed.orig}). Check the folder's permissions, or name another "
                "--output"
            )
        case ["SQLITE", "IOERR"]:
            return (
                f"{path}: its disk fails, or is a network share that SQLite cannot work on ({failed.orig}). "
                "Name a --ledger on a local disk"
            )
        case _:
            return f"{path}: not a ledger that can be opened: {failed.orig}"


def _set_pragmas(connection: Any, _record: object) -> None:
    """Write-ahead log (readers never wait for the writer), and a flush at each commit."""
    # Python's own begins no transaction before CREATE and ALTER: half a migration could be committed.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={_BUSY_S * 1000}",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def shrink(engine: Engine) -> None:
    """Rebuild the database without what was deleted from it, and empty SQLite's write-ahead log."""
    if engine.dialect.name != "sqlite":
        shrink_postgresql(engine)
        return
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.close()
    finally:
        connection.close()


def damage(engine: Engine) -> list[str]:
    """What SQLite finds broken in the file; nothing in a sound one. A PostgreSQL server sees to its own."""
    if engine.dialect.name != "sqlite":
        return []
    try:
        with engine.connect() as connection:
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
    except DBAPIError as failed:
        return [str(failed.orig)]
    return [] if found == ["ok"] else found
