"""Whether Prefect's SQLite database is at the revision that the installed Prefect would migrate it to.

Prefect's own check takes half a second to seconds at every start. Alembic keeps the revision in the database; which
revision a version of Prefect ends at is not known without importing its migrations, so it is noted in a stamp
file beside the database after a start that did migrate. A database that was deleted, replaced, reset or
migrated by another version has another revision than the stamp, and is migrated again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from urllib.parse import unquote


def sqlite_path(connection_url: str) -> Path | None:
    """The file that a SQLAlchemy address names; None for another database, or one in memory."""
    scheme, _, rest = connection_url.partition("://")
    path = unquote(rest.removeprefix("/").partition("?")[0])
    if not scheme.startswith("sqlite") or not path or ":memory:" in rest or path.startswith("file:"):
        return None
    return Path(path)


def is_current(database: Path, version: str) -> bool:
    """Whether `database` stands where Prefect `version` left it after migrating."""
    try:
        stamp = json.loads(_stamp(database).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    revision = _revision(database)
    return revision is not None and stamp == {"prefect": version, "revision": revision}


def record(database: Path, version: str) -> None:
    """Note the revision that Prefect `version` ends at. Failing costs only a slower next start."""
    with contextlib.suppress(OSError):
        text = json.dumps({"prefect": version, "revision": _revision(database)})
        beside = _stamp(database).with_suffix(f".{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(_stamp(database))


def _stamp(database: Path) -> Path:
    return database.with_name(f"{database.name}.audiobatch-revision")


def _revision(database: Path) -> str | None:
    """Alembic's revision, read without creating the file; None where there is none."""
    if not database.is_file():
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None
