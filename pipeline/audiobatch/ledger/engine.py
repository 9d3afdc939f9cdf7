"""The ledger's database, opened: SQLite as it must be set for results to survive a power cut, or PostgreSQL.

In a PostgreSQL database, which several machines share, each job has a schema of its own. The schema's name is made
from the output's address, so that every run on that output finds the same ledger; the tables in it are those of
SQLite, and so are the statements: each connection looks into its schema alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from audiobatch.errors import ConfigError, FolderInUse
from audiobatch.ledger.schema import VERSION, metadata, migrate, version_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL, Connection, Engine

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


#: A server that is gone is noticed after half a minute, not after TCP's two hours. What an address says holds.
_CONNECTING: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "audiobatch",
}
#: Opening a ledger is quick; after a kill it may take longer.
_LOCK_S: Final = 60
_IDLE_S: Final = 300
_IDLE_WRITING_S: Final = 10
_TLS_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})
#: libpq 16. Source: postgresql.org/docs/16/libpq-connect.html, `require_auth`, checked 2026-11-30.
_KNOWS_REQUIRE_AUTH: Final = 160_000
_PASSWORD_WORDS: Final = ("password", "authentication failed")
_HOW: Final = "Passwords belong in PGPASSWORD, ~/.pgpass or a service file"


def schema_of(output: str) -> str:
    """The schema of the job whose results go to this address."""
    return f"audiobatch_{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def open_postgresql(url: str, output: str, *, writes: bool = False) -> Engine:
    """Open or create a job's schema, migrated to this version.

    Args:
        url: of the database, without a password.
        output: the address that the job's results go to.
        writes: for the one connection that writes: it may lock what others wait for.

    Raises:
        ConfigError: the driver is missing, the server cannot be reached or does not let us in, or the schema is
            of a later version.
    """
    schema = schema_of(output)
    try:
        given = make_url(url).query
        options = {name: value for name, value in _CONNECTING.items() if name not in given}
        options |= _secure(make_url(url))
        engine = create_engine(
            url, connect_args=options, pool_size=1 if writes else 5, pool_pre_ping=not writes
        )
    except ImportError as failed:
        raise ConfigError(
            "a PostgreSQL ledger needs a driver that is not installed: pip install 'audiobatch[postgres]'"
        ) from failed
    except ArgumentError as failed:
        raise ConfigError("--ledger: not an address of a database that can be read") from failed

    def look_into_schema(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f'SET search_path TO "{schema}"')
            # A process that is stopped in a transaction holds others up no longer than this.
            idle_s = _IDLE_WRITING_S if writes else _IDLE_S
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{idle_s}s'")
        connection.commit()

    event.listen(engine, "connect", look_into_schema, insert=True)
    try:
        with engine.connect() as connection, connection.begin():
            lock_schema(connection, schema)
            connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
            if version_of(connection) < VERSION:
                migrate(connection)
    except ValueError as failed:
        engine.dispose()
        raise ConfigError(f"{url}: schema {schema} cannot be used: {failed}") from failed
    except DBAPIError as failed:
        engine.dispose()
        raise ConfigError(f"{url}: {_why_not_connected(failed)}") from failed
    return engine


def _secure(url: URL) -> dict[str, str]:
    """What keeps a password from going in clear to whoever answers there; what address or environment say holds.

    Beyond this machine TLS is required; on it, where it is not, a server that asks for the password in clear is not
    given it.
    """
    query = url.query
    if "service" in query or os.environ.get("PGSERVICE"):
        return {}  # the user's own file says how
    host = str(url.host or query.get("host") or query.get("hostaddr") or os.environ.get("PGHOST") or "")
    options: dict[str, str] = {}
    if "sslmode" not in query and not os.environ.get("PGSSLMODE") and not _is_here(host):
        options["sslmode"] = "require"
    requires_tls = options or (query.get("sslmode") or os.environ.get("PGSSLMODE")) in _TLS_MODES
    if not requires_tls and "require_auth" not in query and not os.environ.get("PGREQUIREAUTH"):
        import psycopg

        if psycopg.pq.version() >= _KNOWS_REQUIRE_AUTH:
            options["require_auth"] = "!password"
    return options


def _is_here(host: str) -> bool:
    """Whether a host is this machine: its loopback addresses, or a socket in its file system."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def lock_schema(connection: Connection, schema: str) -> None:
    """Of all machines, only one goes on, until its transaction ends or its process does.

    Raises:
        FolderInUse: one takes very long.
    """
    key = int.from_bytes(hashlib.sha256(schema.encode()).digest()[:8], "big", signed=True)
    try:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_S}s'"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    except DBAPIError as failed:
        if getattr(failed.orig, "sqlstate", None) != "55P03":
            raise
        raise FolderInUse(
            f"another run has been opening this ledger (schema {schema}) for {_LOCK_S} s; is it stopped? Try "
            "again, or end it"
        ) from failed


def _why_not_connected(failed: DBAPIError) -> str:
    words = " ".join(str(failed.orig).split())
    if "authentication method requirement" in words:
        return (
            f"{words}: it wants the password in clear, over a connection without TLS. If that is right, set "
            "PGREQUIREAUTH=password, or PGSSLMODE=require where the server has TLS"
        )
    if "SSL was required" in words:
        return f"{words}: beyond this machine TLS is required. If the way is safe, set PGSSLMODE=prefer"
    if any(word in words for word in _PASSWORD_WORDS):
        return f"the server does not let us in: {words}. {_HOW}"
    if getattr(failed.orig, "sqlstate", None) == "42501":
        return f"{words}. The user needs the right to make a schema: GRANT CREATE ON DATABASE … TO …"
    return f"the ledger's database cannot be used: {words}"


def shrink_postgresql(engine: Engine) -> None:
    """Rewrite the tables without what was deleted from them. Backups and the server's own log are its keeper's."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in metadata.sorted_tables:
            connection.execute(text(f'VACUUM (FULL, ANALYZE) "{table.name}"'))
