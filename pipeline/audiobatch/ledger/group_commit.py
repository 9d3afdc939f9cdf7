"""One thread writes to the ledger; whoever waits shares its transactions.

Every commit is a few statements that belong together. The thread takes one commit and all that wait behind it,
runs each statement once over the rows of all of them, ends the transaction once, and answers everybody. A flush
to disk then costs one item nothing and a hundred items the same nothing. While many write, a transaction waits a
little for more to join it, as PostgreSQL's `commit_delay` does; a single writer never waits.

What is written of a claimed item carries its fence; the fences of a batch are looked up once, in its transaction,
and commits whose item another run has claimed since are refused. Questions that change rows (claims) are commits
too.

A batch that fails is retried commit by commit, so that one bad row fails alone. Where the database itself is gone
(disk full, connection lost) every commit fails with it: to go on commit by commit would take as long as the batch
is long and end the same. A server that does not answer is retried first (`Outage`); nothing of a batch is there
twice, since every statement may be run again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from audiobatch.errors import AudioBatchError, LeaseLost, StorageError
from audiobatch.ledger import schema, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Executable

    from audiobatch.ledger.database import Database

    Row = Mapping[str, Any]
    Write = tuple[Executable, Sequence[Row]]
    #: An item and the fence that this run claimed it with.
    Guard = tuple[str, int]

_T = TypeVar("_T")

#: Commits that may share one transaction. Past a few hundred the flush is long since negligible.
MAX_BATCH = 500
#: Commits that may wait before a new one blocks its caller.
MAX_WAITING = 10_000
#: Where the transaction before had so many commits, the next one waits so long for others: with 128 calls in flight
#: on two cores, 8 to 15 % less CPU an item.
SIBLINGS = 3
DELAY_S = 0.01
#: PostgreSQL's states for "another transaction was in the way": 40001 and 40P01. A retry works.
_CONFLICTS = frozenset({"40001", "40P01"})
_TRIES = 5


@dataclass(slots=True, eq=False, kw_only=True)
class Commit(Generic[_T]):
    """Writes that belong together, or a question; on disk once it is awaited, or `wait` returns.

    Nothing is submitted before. Use it once.

    Attributes:
        submit: puts it in line for the thread that writes.
        writes: statements with their rows.
        question: run with the connection; what it wrote is committed with the rest.
        guard: the claim that the writes depend on.
        loop: the event loop that waits for it; None: a thread does.
        waiter: wakes whoever waits.
        answer: of the question.
        error: why it is not on disk.
    """

    submit: Callable[[Commit[Any]], None]
    writes: tuple[Write, ...] = ()
    question: Callable[[Connection], _T] | None = None
    guard: Guard | None = None
    loop: asyncio.AbstractEventLoop | None = None
    waiter: asyncio.Future[Any] | Future[Any] | None = None
    answer: Any = None
    error: AudioBatchError | None = None

    def __await__(self) -> Generator[Any, None, _T]:
        """Submit it and wait on the running event loop.

        Raises:
            LeaseLost: another run has claimed the item since; nothing was written.
            StorageError: it is not on disk.
        """
        self.loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = self.loop.create_future()
        self.waiter = done
        self.submit(self)
        return (yield from done)

    def wait(self) -> _T:
        """Submit it and wait in a thread without an event loop. Blocks; raises as awaiting it does."""
        done: Future[_T] = Future()
        self.waiter = done
        self.submit(self)
        return done.result()


class GroupCommit:
    """Owns the only connection that writes, and the thread that uses it."""

    def __init__(self, database: Database) -> None:
        """Start the thread."""
        self._database = database
        self._waiting: queue.Queue[Commit[Any] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._closed = False
        #: Whether anything was committed that the reports marked as current do not show; True: it is on record.
        self._changed = False

    def write(self, *writes: Write, guard: Guard | None = None) -> Commit[None]:
        """Return a commit of these writes together.

        Args:
            writes: statements with their rows.
            guard: refuses them where another run has claimed the item since.
        """
        return Commit(submit=self._submit, writes=writes, guard=guard)

    def ask(self, question: Callable[[Connection], _T]) -> Commit[_T]:
        """Return a commit of what a question writes; it gives the question's answer.

        The question may be run twice; the last time counts.
        """
        return Commit(submit=self._submit, question=question)

    def write_later(self, *writes: Write) -> None:
        """Commit these with what comes next; nobody waits, and nobody hears of a failure."""
        self._submit(Commit(submit=self._submit, writes=writes))

    def _submit(self, commit: Commit[Any]) -> None:
        if self._closed:
            raise StorageError(f"{self._database.name}: the ledger is closed")
        self._waiting.put(commit)

    def close(self) -> None:
        """Commit what waits, then end the thread."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        together = 0
        while (first := self._waiting.get()) is not None:
            if together >= SIBLINGS:
                time.sleep(DELAY_S)
            batch: list[Commit[Any]] = [first]
            ended = False
            while len(batch) < MAX_BATCH:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                batch.append(more)
            together = len(batch)
            self._commit(batch)
            if ended:
                return

    def _commit(self, batch: list[Commit[Any]], tries: int = 1) -> None:
        try:
            with self._database.writing.begin() as connection:
                changed = self._apply(connection, batch)
        except Exception as failed:  # noqa: BLE001 - whatever it is, somebody waits for the answer
            if (
                getattr(getattr(failed, "orig", None), "sqlstate", None) in _CONFLICTS and tries < _TRIES
            ) or (isinstance(failed, DBAPIError) and self._database.outage.wait_before_retry(failed, tries)):
                self._commit(batch, tries + 1)
            elif len(batch) == 1 and isinstance(failed, DataError) and (clean := _without_nul(batch[0])):
                self._commit([clean], tries)
            elif len(batch) == 1 or isinstance(failed, OperationalError):
                error = failed if isinstance(failed, AudioBatchError) else self._error(failed)
                for commit in batch:
                    commit.error = error
                _answer(batch)
            else:
                for commit in batch:
                    self._commit([commit])
        else:
            self._database.outage.end()
            self._changed = changed
            _answer(batch)

    def _apply(self, connection: Connection, batch: list[Commit[Any]]) -> bool:
        """Run each distinct statement once, over all its rows. Statements of one commit stay in order.

        Returns:
            Whether reports are behind the ledger from now on; the first such change is noted with it.
        """
        guards = [commit.guard for commit in batch if commit.guard]
        lost = lost_claims(connection, guards) if guards else set()
        grouped: dict[int, tuple[Executable, list[Row]]] = {}
        for commit in batch:
            commit.error = None
            if commit.guard and commit.guard in lost:
                commit.error = LeaseLost(f"{commit.guard[0]}: another run has taken it over")
                continue
            for statement, rows in commit.writes:
                grouped.setdefault(id(statement), (statement, []))[1].extend(rows)
        for statement, rows in grouped.values():
            if rows:
                connection.execute(statement, rows)
        for commit in batch:
            if commit.question is not None:
                commit.answer = commit.question(connection)
        marked = id(statements.MARK_SHOWN) in grouped
        if not any(rows and key in statements.CHANGES_REPORTS for key, (_, rows) in grouped.items()):
            return self._changed and not marked
        if marked or not self._changed:
            connection.execute(statements.FORGET_SHOWN)
        return True

    def _error(self, failed: Exception) -> StorageError:
        error = StorageError(f"{self._database.name}: {getattr(failed, 'orig', None) or failed}")
        error.__cause__ = failed
        return error


def lost_claims(connection: Connection, guards: Iterable[Guard]) -> set[Guard]:
    """Return which of these claims no longer hold. The others hold until the transaction ends."""
    asked = set(guards)
    rows = schema.queue
    # All in one order: two transactions that lock the same rows never wait for each other.
    query = (
        select(rows.c.item_id, rows.c.fence)
        .where(rows.c.item_id.in_([item_id for item_id, _ in asked]))
        .order_by(rows.c.item_id)
        .with_for_update(read=True)
    )
    return asked - {(item_id, fence) for item_id, fence in connection.execute(query)}


def _without_nul(commit: Commit[Any]) -> Commit[Any] | None:
    """Return the commit without NUL characters, which PostgreSQL's text cannot hold; None where it has none."""

    def clean(value: Any) -> Any:
        return value.replace("\0", "\ufffd") if isinstance(value, str) else value

    writes = tuple(
        (statement, [{name: clean(value) for name, value in row.items()} for row in rows])
        for statement, rows in commit.writes
    )
    return replace(commit, writes=writes) if writes != commit.writes else None


def _answer(batch: list[Commit[Any]]) -> None:
    """Wake the waiters, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Commit[Any]]] = {}
    for commit in batch:
        if commit.loop is not None:
            by_loop.setdefault(commit.loop, []).append(commit)
        elif commit.waiter is None:
            continue
        elif commit.error is None:
            commit.waiter.set_result(commit.answer)
        else:
            commit.waiter.set_exception(commit.error)
    for loop, commits in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, commits)
        except RuntimeError:  # the loop has ended; nobody is left to hear
            continue


def _resolve(commits: list[Commit[Any]]) -> None:
    for commit in commits:
        waiter = commit.waiter
        if waiter is None or waiter.done():
            continue
        if commit.error is None:
            waiter.set_result(commit.answer)
        else:
            waiter.set_exception(commit.error)
