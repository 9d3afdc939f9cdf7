"""A ledger's database: its connections, and how long a run waits while the database is away.

A server that does not answer is retried for two minutes, as object stores are; then it counts as gone. What waits
meanwhile has been paid for, or is about to be.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError

from audiobatch.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_Part = TypeVar("_Part", bound="HasDatabase")

#: How long a database may be away before it counts as gone.
LONGEST_OUTAGE_S = 120.0
#: Tries of one read. A query that breaks every connection is given up; one that cannot connect waits by itself.
_MOST_READS = 5
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 3.0
#: PostgreSQL's states for a server that ends, crashes, starts, or has no connection left. Source: PostgreSQL 17,
#: appendix A, classes 08, 53 and 57, checked 2026-11-30.
_AWAY_STATES = frozenset({"57P01", "57P02", "57P03", "53300"})
_CONNECTION_CLASS = "08"


def is_away(failed: DBAPIError) -> bool:
    """Return whether the database was not reached, or broke off: a retry may work in a moment."""
    state = getattr(failed.orig, "sqlstate", None)
    if state is None:
        return failed.connection_invalidated or type(failed.orig).__name__ in {
            "OperationalError",
            "InterfaceError",
            "ConnectionTimeout",
        }
    return state in _AWAY_STATES or str(state).startswith(_CONNECTION_CLASS)


class Outage:
    """Whether one ledger's database is away, and how long to wait for it; shared by all threads that use it.

    Attributes:
        waiting_for: what to tell a person while the database is away; empty otherwise.
    """

    def __init__(self, longest_s: float) -> None:
        """Start with a database that is there.

        Args:
            longest_s: how long to wait in all; 0 for a file of this machine, where no waiting helps.
        """
        self._longest_s = longest_s
        self._away_since_s: float | None = None
        self._gave_up = threading.Event()
        self.waiting_for = ""

    def wait_before_retry(self, failed: DBAPIError, tries: int) -> bool:
        """Wait before another try. Blocks.

        Args:
            failed: the error of the last try.
            tries: how many tries there were.

        Returns:
            False: the database is not away, or has been for too long, or `give_up` was called.
        """
        if not self._longest_s or self._gave_up.is_set() or not is_away(failed):
            return False
        now_s = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now_s
            self.waiting_for = "the ledger's database, which does not answer"
            log.warning("the ledger's database is away (%s); it is asked again", failed.orig)
        left_s = self._away_since_s + self._longest_s - now_s
        if left_s <= 0:
            return False
        wait_s = min(_FIRST_WAIT_S * 2 ** min(tries - 1, 10), _LONGEST_WAIT_S, left_s)
        return not self._gave_up.wait(wait_s)

    def end(self) -> None:
        """Note that the database has answered."""
        if self._away_since_s is not None:
            log.warning("the ledger's database is back after %.0f s", time.monotonic() - self._away_since_s)
            self._away_since_s, self.waiting_for = None, ""

    def give_up(self) -> None:
        """Stop waiting: from now on, what cannot be written fails at once and goes to the spool."""
        self._gave_up.set()


class HasDatabase(Protocol):
    """A part of a ledger that reads."""

    _database: Database


def retried(read: Callable[Concatenate[_Part, _P], _T]) -> Callable[Concatenate[_Part, _P], _T]:
    """Let a method that reads run again where its connection broke off; an outage is waited out as elsewhere."""

    @functools.wraps(read)
    def reading(part: _Part, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        tries = 0
        while True:
            tries += 1
            try:
                return read(part, *arguments, **named)
            except StorageError as failed:
                cause = failed.__cause__
                if not isinstance(cause, DBAPIError) or tries == _MOST_READS:
                    raise
                if not part._database.outage.wait_before_retry(cause, tries):  # noqa: SLF001 - the part's own
                    raise

    return reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """What the parts of a ledger share.

    Attributes:
        engine: for reading; any number of connections.
        writing: for the one connection that writes.
        name: a file's path, or an address, for messages.
        schema: the job's schema in a PostgreSQL database; empty for a file.
    """

    engine: Engine
    writing: Engine
    name: str
    schema: str
    outage: Outage

    @property
    def is_shared(self) -> bool:
        """Whether several runs may work on it at once."""
        return self.engine.dialect.name != "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection to read with.

        Raises:
            StorageError: the database is gone, or broken.
        """
        try:
            with self.connect() as connection:
                yield connection
        except DBAPIError as failed:
            raise StorageError(f"the ledger cannot be read: {failed.orig}") from failed

    def connect(self) -> Connection:
        """Return a connection that works, from a database that may have been away.

        Raises:
            DBAPIError: the database is gone, or broken.
        """
        tries = 0
        while True:
            tries += 1
            try:
                connection = self.engine.connect()
            except DBAPIError as failed:
                if not self.outage.wait_before_retry(failed, tries):
                    raise
            else:
                self.outage.end()
                return connection

    def close(self) -> None:
        """Close every connection."""
        self.writing.dispose()
        self.engine.dispose()
