"""One thread writes; whoever waits shares its transactions.

Every entry is a few statements that belong together. The thread takes one entry and all that wait behind it,
runs each statement once over the rows of all of them, commits once, and answers everybody. A flush to disk
then costs one item nothing and a hundred items the same nothing. While many write, a transaction waits a moment
for more to join it, as PostgreSQL's `commit_delay` does; who writes alone never waits.

What is written of a claimed item carries its fence; the fences of a batch are looked up once, in its transaction,
and entries whose item another run has claimed since are refused. Questions that change rows (claims) are entries
too.

A batch that fails is replayed entry by entry, so that one bad row fails alone. Where the database itself is gone
(disk full, connection lost) every entry fails with it: to write on, entry by entry, would take as long as the
batch is long and end the same. A server that does not answer is asked again first (`Patience`); nothing of a batch
is there twice, since every statement may be run again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from audiobatch.errors import AudioBatchError, LeaseLost, StorageError
from audiobatch.ledger import statements
from audiobatch.ledger.fences import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Engine, Executable

    from audiobatch.ledger.patience import Patience

    Row = Mapping[str, Any]
    Write = tuple[Executable, Sequence[Row]]
    Guard = tuple[str, int]

_T = TypeVar("_T")

#: Entries that may share one transaction. Past a few hundred the flush is long since negligible.
MAX_BATCH = 500
#: Entries that may wait before `_put` blocks its caller.
MAX_WAITING = 10_000
#: Where the transaction before had so many entries, the next one waits so long for others: with 128 calls in flight
#: on two cores, 8 to 15 % less CPU an item.
SIBLINGS = 3
DELAY_S = 0.01
#: PostgreSQL's words for "another transaction was in the way": 40001 and 40P01. The same again then works.
_IN_THE_WAY = frozenset({"40001", "40P01"})
_TRIES = 5


@dataclass(slots=True, eq=False)
class _Entry:
    """Writes that belong together, or a question; whoever waits for it, on an event loop or in a thread.

    Attributes:
        guard: the claim that the writes stand on.
        answer: of the question, once it is asked.
        error: why it is not on disk.
    """

    writes: tuple[Write, ...] = ()
    question: Callable[[Connection], Any] | None = None
    guard: Guard | None = None
    loop: asyncio.AbstractEventLoop | None = None
    waiter: asyncio.Future[Any] | Future[Any] | None = None
    answer: Any = None
    error: AudioBatchError | None = None


class LedgerWriter:
    """Owns the only connection that writes."""

    def __init__(self, engine: Engine, where: str, patience: Patience) -> None:
        self._engine = engine
        self._patience = patience
        self._where = where
        self._queue: queue.Queue[_Entry | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._closed = False
        #: Whether anything was committed that the reports marked as whole do not show; True: it is on record.
        self._changed = False

    async def write(self, *writes: Write, guard: Guard | None = None) -> None:
        """Commit these writes together; returns once they are on disk.

        Args:
            writes: statements with their rows.
            guard: an item and the fence that it was claimed with.

        Raises:
            LeaseLost: another run has claimed the item since; nothing was written.
            StorageError: they are not on disk.
        """
        await self._wait_for(_Entry(writes=writes, guard=guard))

    async def ask(self, question: Callable[[Connection], _T]) -> _T:
        """What the question returns, once what it wrote is on disk. It may be asked twice; the last time counts.

        Raises:
            StorageError: it is not.
        """
        answer: _T = await self._wait_for(_Entry(question=question))
        return answer

    async def _wait_for(self, entry: _Entry) -> Any:
        entry.loop = asyncio.get_running_loop()
        entry.waiter = done = entry.loop.create_future()
        self._put(entry)
        return await done

    def write_now(self, *writes: Write, guard: Guard | None = None) -> None:
        """The same as `write`, for a thread without an event loop."""
        done: Future[None] = Future()
        self._put(_Entry(writes=writes, guard=guard, waiter=done))
        done.result()

    def ask_now(self, question: Callable[[Connection], _T]) -> _T:
        """The same as `ask`, for a thread without an event loop."""
        done: Future[_T] = Future()
        self._put(_Entry(question=question, waiter=done))
        return done.result()

    def write_later(self, *writes: Write) -> None:
        """Commit these with what comes next; nobody waits, and what fails is not heard of."""
        self._put(_Entry(writes=writes))

    def _put(self, entry: _Entry) -> None:
        if self._closed:
            raise StorageError(f"{self._where}: the ledger is closed")
        self._queue.put(entry)

    def close(self) -> None:
        """Commit what waits, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        membership = 0
        while (first := self._queue.get()) is not None:
            if membership >= SIBLINGS:
                time.sleep(DELAY_S)
            batch: list[_Entry] = [first]
            ended = False
            while len(batch) < MAX_BATCH:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                batch.append(more)
            membership = len(batch)
            self._commit(batch)
            if ended:
                return

    def _commit(self, batch: list[_Entry], tries: int = 1) -> None:
        try:
            with self._engine.begin() as connection:
                changed = self._apply(connection, batch)
        except Exception as failed:  # noqa: BLE001 - whatever it is, somebody waits for the answer
            if (
                getattr(getattr(failed, "orig", None), "sqlstate", None) in _IN_THE_WAY and tries < _TRIES
            ) or (isinstance(failed, DBAPIError) and self._patience.waits(failed, tries)):
                self._commit(batch, tries + 1)
            elif len(batch) == 1 and isinstance(failed, DataError) and (clean := _without_nul(batch[0])):
                self._commit([clean], tries)
            elif len(batch) == 1 or isinstance(failed, OperationalError):
                error = failed if isinstance(failed, AudioBatchError) else self._error(failed)
                for entry in batch:
                    entry.error = error
                _answer(batch)
            else:
                for entry in batch:
                    self._commit([entry])
        else:
            self._patience.answered()
            self._changed = changed
            _answer(batch)

    def _apply(self, connection: Connection, batch: list[_Entry]) -> bool:
        """Each distinct statement once, over all its rows. Statements of one entry keep their order.

        Returns:
            Whether reports are behind the ledger from now on; the first such change is noted with it.
        """
        lost = refused(connection, guards) if (guards := [one.guard for one in batch if one.guard]) else ()
        grouped: dict[int, tuple[Executable, list[Row]]] = {}
        for entry in batch:
            entry.error = None
            if entry.guard in lost:
                entry.error = (
                    LeaseLost(f"{entry.guard[0]}: another run has taken it over") if entry.guard else None
                )
                continue
            for statement, rows in entry.writes:
                grouped.setdefault(id(statement), (statement, []))[1].extend(rows)
        for statement, rows in grouped.values():
            if rows:
                connection.execute(statement, rows)
        for entry in batch:
            if entry.question is not None:
                entry.answer = entry.question(connection)
        marked = id(statements.MARK_SHOWN) in grouped
        if not any(rows and key in statements.CHANGES_REPORTS for key, (_, rows) in grouped.items()):
            return self._changed and not marked
        if marked or not self._changed:
            connection.execute(statements.FORGET_SHOWN)
        return True

    def _error(self, failed: Exception) -> StorageError:
        error = StorageError(f"{self._where}: {getattr(failed, 'orig', None) or failed}")
        error.__cause__ = failed
        return error


def _without_nul(entry: _Entry) -> _Entry | None:
    """The entry without NUL characters, which PostgreSQL's texts cannot hold; None where it has none."""

    def clean(value: Any) -> Any:
        return value.replace("\0", "\ufffd") if isinstance(value, str) else value

    writes = tuple(
        (statement, [{name: clean(value) for name, value in row.items()} for row in rows])
        for statement, rows in entry.writes
    )
    return replace(entry, writes=writes) if writes != entry.writes else None


def _answer(batch: list[_Entry]) -> None:
    """Wake the waiters, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Entry]] = {}
    for entry in batch:
        if entry.loop is not None:
            by_loop.setdefault(entry.loop, []).append(entry)
        elif entry.waiter is None:
            continue
        elif entry.error is None:
            entry.waiter.set_result(entry.answer)
        else:
            entry.waiter.set_exception(entry.error)
    for loop, entries in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, entries)
        except RuntimeError:  # the loop has ended; nobody is left to hear
            continue


def _resolve(entries: list[_Entry]) -> None:
    for entry in entries:
        waiter = entry.waiter
        if waiter is None or waiter.done():
            continue
        if entry.error is None:
            waiter.set_result(entry.answer)
        else:
            waiter.set_exception(entry.error)
