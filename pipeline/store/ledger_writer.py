"""One thread writes; whoever waits shares its transactions.

Every entry is a few statements that belong together. The thread takes one entry and all that wait behind it,
runs each statement once over the rows of all of them, commits once, and answers everybody. A flush to disk
then costs one item nothing and a hundred items the same nothing.

A batch that fails is replayed entry by entry, so that one bad row fails alone. Where the database itself is gone
(disk full, connection lost) every entry fails with it: to write on, entry by entry, would take as long as the
batch is long and end the same.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import OperationalError

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Engine, Executable

    Row = Mapping[str, Any]
    Write = tuple[Executable, Sequence[Row]]
    Waiter = Future[None] | tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]
    Entry = tuple[tuple[Write, ...], Waiter]

#: Entries that may share one transaction. Past a few hundred the flush is long since negligible.
MAX_BATCH = 500
#: Entries that may wait before `put` blocks its caller.
MAX_WAITING = 10_000


class LedgerWriter:
    """Owns the only connection that writes."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self._where = where
        self._queue: queue.Queue[Entry | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._closed = False

    async def write(self, *writes: Write) -> None:
        """Commit these writes together; returns once they are on disk.

        Raises:
            StorageError: they are not.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._put((writes, (loop, done)))
        await done

    def write_now(self, *writes: Write) -> None:
        """The same, for a thread without an event loop."""
        done: Future[None] = Future()
        self._put((writes, done))
        done.result()

    def _put(self, entry: Entry) -> None:
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
        while (first := self._queue.get()) is not None:
            batch = [first]
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
            self._commit(batch)
            if ended:
                return

    def _commit(self, batch: list[Entry]) -> None:
        try:
            with self._engine.begin() as connection:
                _apply(connection, [write for writes, _ in batch for write in writes])
        except Exception as failed:  # noqa: BLE001 - whatever it is, somebody waits for the answer
            if len(batch) == 1 or isinstance(failed, OperationalError):
                _answer(batch, self._error(failed))
                return
            for entry in batch:
                self._commit([entry])
        else:
            _answer(batch, None)

    def _error(self, failed: Exception) -> StorageError:
        error = StorageError(f"{self._where}: {getattr(failed, 'orig', None) or failed}")
        error.__cause__ = failed
        return error


def _apply(connection: Connection, writes: list[Write]) -> None:
    """Each distinct statement once, over all its rows. Statements of one entry keep their order."""
    grouped: dict[int, tuple[Executable, list[Row]]] = {}
    for statement, rows in writes:
        grouped.setdefault(id(statement), (statement, []))[1].extend(rows)
    for statement, rows in grouped.values():
        if rows:
            connection.execute(statement, rows)


def _answer(batch: list[Entry], error: StorageError | None) -> None:
    """Wake the waiters, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, waiter in batch:
        if isinstance(waiter, tuple):
            by_loop.setdefault(waiter[0], []).append(waiter[1])
        elif error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures, error)
        except RuntimeError:  # the loop has ended; nobody is left to hear
            continue


def _resolve(futures: list[asyncio.Future[None]], error: StorageError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
