"""Where a job's ledger lives: a file of this machine (SQLite), or a PostgreSQL database that several share.

An address never carries a secret: it is written to `job.json`, shown in Prefect's pages and logged. PostgreSQL's
own places for passwords are PGPASSWORD, ~/.pgpass, and a service file (`postgresql+psycopg:///?service=NAME`).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlsplit

POSTGRESQL: Final = "postgresql+psycopg"
#: Ways to write the same; the driver is ours to choose.
_SPELLINGS: Final = frozenset({POSTGRESQL, "postgresql", "postgres"})
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword", "oauth_client_secret"})
_KINDS: Final = "give the path of a file, or the address of a PostgreSQL database: postgresql+psycopg://USER@HOST/DATABASE"
_HINT: Final = (
    "a password in a ledger's address would be kept in job.json and shown; leave it out, and set PGPASSWORD, "
    "or write it into ~/.pgpass or a service file (postgresql+psycopg:///?service=NAME)"
)


def is_database(ledger: str) -> bool:
    """Whether it is the address of a database, not a file of this machine."""
    return "://" in ledger


def checked_ledger(value: str | None) -> str | None:
    """A ledger's address as it is kept: a path as given, a database's with the driver's name.

    Raises:
        ValueError: it is none that a ledger can have, or holds a secret; the message does not repeat it.
    """
    if value is None or not is_database(value):
        return value or None
    try:
        parts = urlsplit(value)
        password, _ = parts.password, parts.port
    except ValueError:
        raise ValueError(_KINDS) from None
    if parts.scheme == "sqlite":
        raise ValueError("give an SQLite ledger as the path of its file")
    if parts.scheme not in _SPELLINGS:
        raise ValueError(_KINDS)
    options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if password is not None or options & _SECRET_OPTIONS:
        raise ValueError(_HINT)
    if not parts.path.strip("/") and "service" not in options and "dbname" not in options:
        raise ValueError("name the database: postgresql+psycopg://USER@HOST/DATABASE")
    return POSTGRESQL + value[value.index("://") :]
