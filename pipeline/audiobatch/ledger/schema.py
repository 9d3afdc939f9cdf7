"""The ledger's tables and its numbered migrations.

Times are ISO 8601 UTC text and money is decimal text, so that SQLite and PostgreSQL give back exactly what
was put in. JSON is text that only this project reads.

    items      one row an input: what discovery found
    queue      one row an item that was ever to be sent: who holds it, until when, for the how many-th time
    workers    one row a run that is at work on the queue, as long as it gives a sign of life
    outcomes   one row an item and turn: what became of it, now
    versions   outcomes that a redo has superseded
    parts      what became of the parts of a long recording, and of the calls that write down words
    attempts   one row a call, written *before* it is sent: the account of money
    marks      what a reviewer said of a turn, one row for each version of its reply
    runs       one row a run
    settings   job settings that results were made with, by their key
    meta       the schema's version, and notes: the queue, the output's id, whether reports show all, orders to stop

The time is the database's: machines that share a ledger need not agree on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

metadata = MetaData()
meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))
items = Table(
    "items",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("text", Text, nullable=False, default=""),
    Column("row", Text, nullable=False, default=""),
    Column("settings", Text, nullable=False, default=""),
    Column("size_bytes", BigInteger, nullable=False, default=0),
    Column("mtime_ns", BigInteger, nullable=False, default=0),
    Column("sha256", Text, nullable=False, default=""),
    Column("media", Text, nullable=False, default=""),
    Column("refusal", Text, nullable=False, default=""),
    Column("seen_run", Text, nullable=False),
    Index("items_by_position", "position"),
)
#: Apart from the items, whose rows are long: a claim rewrites its row.
queue = Table(
    "queue",
    metadata,
    Column("item_id", Text, primary_key=True),
    # Which of the ledger's queues put it there last: that of a run, or of runs that work together.
    Column("queue_id", Text, nullable=False),
    Column("position", Integer, nullable=False),
    # Seconds since 1970 by the database's clock; 0: free; NULL: it has ended.
    Column("lease_until", Float),
    Column("holder", Text, nullable=False, default=""),
    # Raised at each claim: what an earlier holder still writes is known by its lower number.
    Column("fence", BigInteger, nullable=False, default=0),
    # 1: the last holder fell silent; its calls may be open.
    Column("overdue", Integer, nullable=False, default=0),
)
_OPEN = queue.c.lease_until.is_not(None)


Index("queue_open", queue.c.lease_until, queue.c.position, sqlite_where=_OPEN, postgresql_where=_OPEN)


workers = Table(
    "workers",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("queue_id", Text, nullable=False),
    # What it asks for: only runs that ask for the same may work together.
    Column("asks", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("alive_until", Float, nullable=False),
    # Among how many it divides the quotas; 0: it sends nothing and does not ask to.
    Column("sharing", Integer, nullable=False, default=0),
    # The most, in US dollars, that its calls may have cost when the next sign of life is due; empty: no limit.
    Column("allowance_usd", Text, nullable=False, default=""),
)


def _outcome_columns() -> list[Column[object]]:
    return [
        Column("fingerprint", Text, nullable=False),
        Column("kept_as", Text, nullable=False, default=""),
        Column("status", Text, nullable=False),
        Column("run_id", Text, nullable=False),
        Column("started_at", Text, nullable=False),
        Column("finished_at", Text, nullable=False),
        Column("prompt", Text, nullable=False, default=""),
        Column("error_type", Text, nullable=False, default=""),
        Column("error_message", Text, nullable=False, default=""),
        Column("transcript", Text, nullable=False, default=""),
        Column("input_transcript", Text, nullable=False, default=""),
        Column("audio", Text, nullable=False, default=""),
        Column("audio_duration_s", Float),
        Column("transcript_file", Text, nullable=False, default=""),
        Column("raw_reply", Text, nullable=False, default=""),
        Column("checks", Text, nullable=False, default=""),
        Column("voice", Text, nullable=False, default=""),
        Column("format", Text, nullable=False, default=""),
        Column("model", Text, nullable=False, default=""),
        Column("deployment", Text, nullable=False, default=""),
        Column("provider", Text, nullable=False, default=""),
        Column("transport", Text, nullable=False, default=""),
        Column("attempts", Integer, nullable=False, default=0),
        Column("perhaps_billed", Integer, nullable=False, default=0),
        Column("latency_s", Float),
        Column("usage", Text, nullable=False, default=""),
        Column("cost_usd", Text),
        # What it stands on: usage, estimate or unknown; empty: nothing was bought, or an earlier version wrote it.
        Column("cost_basis", Text, nullable=False, default="", server_default=""),
        Column("finish_reason", Text, nullable=False, default=""),
        Column("request_id", Text, nullable=False, default=""),
        Column("audio_id", Text),
        Column("audio_expires_at", Float),
        Column("parts", Integer),
        Column("trimmed_s", Float),
        Column("word_error_rate", Float),
        Column("input_sha256", Text, nullable=False, default=""),
        Column("settings_key", Text, nullable=False, default=""),
    ]


outcomes = Table(
    "outcomes",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("version", Integer, nullable=False, default=1),
    *_outcome_columns(),
    Index("outcomes_by_run", "run_id"),
)
versions = Table(
    "versions",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    *_outcome_columns(),
)
parts = Table(
    "parts",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("start_s", Float, nullable=False, default=0),
    Column("end_s", Float, nullable=False, default=0),
    Column("cues", Text, nullable=False, default=""),
    *_outcome_columns(),
)
attempts = Table(
    "attempts",
    metadata,
    Column("attempt_id", Text, primary_key=True),
    Column("item_id", Text, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("state", Text, nullable=False),
    Column("deployment", Text, nullable=False, default=""),
    Column("provider", Text, nullable=False, default=""),
    Column("transport", Text, nullable=False, default=""),
    Column("model", Text, nullable=False, default=""),
    Column("voice", Text, nullable=False, default=""),
    Column("format", Text, nullable=False, default=""),
    Column("prompt", Text, nullable=False, default=""),
    Column("input_sha256", Text, nullable=False, default=""),
    Column("settings_key", Text, nullable=False, default=""),
    Column("error_type", Text, nullable=False, default=""),
    Column("request_id", Text, nullable=False, default=""),
    Column("cost_usd", Text),
    Column("part", Integer),
    # What it costs at most, in US dollars, known before it is sent; NULL: its price is not known.
    Column("worst_usd", Text),
    Index("attempts_by_item", "item_id", "turn"),
    Index("attempts_by_state", "state"),
    Index("attempts_by_run", "run_id"),
)
#: A call that was announced and then not made: its run stopped, or its deployment had to rest.
TAKEN_BACK = and_(attempts.c.state == "failed", attempts.c.error_type == "")
marks = Table(
    "marks",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("turn", Integer, primary_key=True),
    # What was marked: this version, and whether it was a reply. A later one has no mark yet.
    Column("version", Integer, primary_key=True),
    Column("replied", Integer, primary_key=True),
    Column("review", Text, nullable=False, default=""),
    Column("note", Text, nullable=False, default=""),
    Column("marked_at", Text, nullable=False),
)
runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("spec", Text, nullable=False),
    Column("settings_key", Text, nullable=False),
    Column("summary", Text),
)
settings = Table(
    "settings", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False)
)


def _indexes_by_run(connection: Connection) -> None:
    """What one run did and spent, without reading what all runs did."""
    connection.execute(text("CREATE INDEX IF NOT EXISTS attempts_by_run ON attempts (run_id)"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS outcomes_by_run ON outcomes (run_id)"))


def _marks(connection: Connection) -> None:
    """What reviewers say of replies."""
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS marks (item_id TEXT NOT NULL, turn INTEGER NOT NULL, "
            "version INTEGER NOT NULL, replied INTEGER NOT NULL, review TEXT NOT NULL, note TEXT NOT NULL, "
            "marked_at TEXT NOT NULL, PRIMARY KEY (item_id, turn, version, replied))"
        )
    )


_PARTS = """
CREATE TABLE IF NOT EXISTS parts (
    item_id TEXT NOT NULL, turn INTEGER NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL,
    part INTEGER NOT NULL, start_s FLOAT NOT NULL, end_s FLOAT NOT NULL, cues TEXT NOT NULL,
    fingerprint TEXT NOT NULL, kept_as TEXT NOT NULL, status TEXT NOT NULL, run_id TEXT NOT NULL,
    started_at TEXT NOT NULL, finished_at TEXT NOT NULL, prompt TEXT NOT NULL, error_type TEXT NOT NULL,
    error_message TEXT NOT NULL, transcript TEXT NOT NULL, input_transcript TEXT NOT NULL, audio TEXT NOT NULL,
    audio_duration_s FLOAT, transcript_file TEXT NOT NULL, raw_reply TEXT NOT NULL, checks TEXT NOT NULL,
    voice TEXT NOT NULL, format TEXT NOT NULL, model TEXT NOT NULL, deployment TEXT NOT NULL,
    provider TEXT NOT NULL, transport TEXT NOT NULL, attempts INTEGER NOT NULL, perhaps_billed INTEGER NOT NULL,
    latency_s FLOAT, usage TEXT NOT NULL, cost_usd TEXT, finish_reason TEXT NOT NULL, request_id TEXT NOT NULL,
    audio_id TEXT, audio_expires_at FLOAT, parts INTEGER, trimmed_s FLOAT, word_error_rate FLOAT,
    input_sha256 TEXT NOT NULL, settings_key TEXT NOT NULL,
    PRIMARY KEY (item_id, turn, version, kind, part)
)
"""


def _parts(connection: Connection) -> None:
    """The parts of long recordings are calls of their own, recorded and resumed one by one."""
    connection.execute(text("ALTER TABLE attempts ADD COLUMN part INTEGER"))
    connection.execute(text(_PARTS))


_QUEUE = """
DROP INDEX IF EXISTS items_to_do;
ALTER TABLE items DROP COLUMN todo_run;
CREATE TABLE queue (
    item_id TEXT NOT NULL, queue_id TEXT NOT NULL, position INTEGER NOT NULL, lease_until FLOAT,
    holder TEXT NOT NULL, fence BIGINT NOT NULL, overdue INTEGER NOT NULL, PRIMARY KEY (item_id)
);
CREATE INDEX queue_open ON queue (lease_until, position) WHERE lease_until IS NOT NULL;
CREATE TABLE workers (
    run_id TEXT NOT NULL, queue_id TEXT NOT NULL, asks TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    started_at TEXT NOT NULL, alive_until FLOAT NOT NULL, sharing INTEGER NOT NULL,
    allowance_usd TEXT NOT NULL, PRIMARY KEY (run_id)
)
"""


def _queue(connection: Connection) -> None:
    """Items are claimed, by one run or by many; each run plans anew, so that nothing is to be carried over."""
    for statement in _QUEUE.split(";"):
        connection.execute(text(statement))


def _worst(connection: Connection) -> None:
    """What each call costs at most: where its end does not say what it cost, that counts."""
    connection.execute(text("ALTER TABLE attempts ADD COLUMN worst_usd TEXT"))


def _cost_basis(connection: Connection) -> None:
    """Whether a cost is the service's own count or an estimate."""
    for table in ("outcomes", "versions", "parts"):
        connection.execute(text(f"ALTER TABLE {table} ADD COLUMN cost_basis TEXT NOT NULL DEFAULT ''"))


#: From each version to the next: the first makes version 2 of version 1. Append only; a step says in SQL of its
#: own what it changes, since the tables above are those of today. A new ledger is made from the tables at once.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    *(_indexes_by_run, _marks, _parts, _queue, _worst, _cost_basis),
)
VERSION = 1 + len(MIGRATIONS)


def version_of(connection: Connection) -> int:
    """The version of a ledger's tables; 0 for an empty database.

    Raises:
        ValueError: a later version of the program made it, or it is somebody else's.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        return 0
    if meta.name not in tables:
        raise ValueError(f"its tables are not ours: {', '.join(sorted(tables)[:5])}")
    had = int(connection.execute(select(meta.c.value).where(meta.c.key == "schema_version")).scalar() or 0)
    if had > VERSION:
        raise ValueError(f"version {had}, made by a later audiobatch; this one knows up to {VERSION}")
    return had


def migrate(connection: Connection) -> int:
    """Bring a ledger to this version's tables, in the caller's transaction: wholly, or not at all.

    Returns:
        The version it had before (0: it was new).

    Raises:
        ValueError: a later version of the program made it, or it is somebody else's.
    """
    had = version_of(connection)
    if had == 0:
        metadata.create_all(connection)
        connection.execute(insert(meta), {"key": "schema_version", "value": str(VERSION)})
    elif had < VERSION:
        for step in MIGRATIONS[had - 1 :]:
            step(connection)
        connection.execute(update(meta).where(meta.c.key == "schema_version").values(value=str(VERSION)))
    return had


class db_now(FunctionElement[float]):  # noqa: N801 - used like SQL's own functions
    """Seconds since 1970. Not the transaction's beginning: a claim may have waited for its connection."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite(_element: db_now, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql(_element: db_now, _compiler: Any, **_options: Any) -> str:
    return "(extract(epoch FROM clock_timestamp())::float8)"
