"""A database that is away is asked again, as object stores are: for two minutes, then it counts as gone.

What waits meanwhile has been paid for, or is about to be. One that is back in time has cost nothing but the wait.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

#: How long a database may be away before it counts as gone.
PATIENCE_S = 120.0
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 3.0
#: PostgreSQL's states for a server that ends, crashes, starts, or has no connection left. Source: PostgreSQL 17,
#: appendix A, classes 08, 53 and 57, checked 2026-11-30.
_AWAY = frozenset({"57P01", "57P02", "57P03", "53300"})
_CONNECTION_CLASS = "08"


def is_away(failed: DBAPIError) -> bool:
    """Whether the database was not reached, or broke off: the same again may work in a moment."""
    state = getattr(failed.orig, "sqlstate", None)
    if state is None:
        return failed.connection_invalidated or type(failed.orig).__name__ in {
            "OperationalError",
            "InterfaceError",
            "ConnectionTimeout",
        }
    return state in _AWAY or str(state).startswith(_CONNECTION_CLASS)


class Patience:
    """How long one ledger's database is waited for; for all threads that ask it.

    Attributes:
        trouble: what to tell a person while it is away; empty otherwise.
    """

    def __init__(self, seconds: float) -> None:
        """Args: seconds: 0 where no waiting helps: a file of this machine."""
        self._seconds = seconds
        self._away_since_s: float | None = None
        self._hurry = threading.Event()
        self.trouble = ""

    def waits(self, failed: DBAPIError, tries: int) -> bool:
        """Wait before another try. Blocks.

        Args:
            failed: the last try.
            tries: how many there were.

        Returns:
            False: it is not away, or has been for too long, or somebody waits for the run's end.
        """
        if not self._seconds or self._hurry.is_set() or not is_away(failed):
            return False
        now_s = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now_s
            self.trouble = "the ledger's database, which does not answer"
            log.warning("the ledger's database is away (%s); it is asked again", failed.orig)
        left_s = self._away_since_s + self._seconds - now_s
        if left_s <= 0:
            return False
        wait_s = min(_FIRST_WAIT_S * 2 ** min(tries - 1, 10), _LONGEST_WAIT_S, left_s)
        return not self._hurry.wait(wait_s)

    def answered(self) -> None:
        """It is there."""
        if self._away_since_s is not None:
            log.warning("the ledger's database is back after %.0f s", time.monotonic() - self._away_since_s)
            self._away_since_s, self.trouble = None, ""

    def hurry(self) -> None:
        """Wait no more: what cannot be written now goes to the spool."""
        self._hurry.set()
