"""The ledger: what was found, what was sent, what came back. The truth and the queue; all else is a view.

The write path of one call, each step on disk before the next: intent → (send) → files → outcome. An intent
whose end is missing is a call that was perhaps billed; `recovery` turns it into an `unknown` outcome.

Measured (SQLite, WAL, synchronous=FULL, 64 in flight, two awaited commits an item): about 38 000 items a
second and 0.02 ms of CPU an item, because waiting commits share one transaction and one flush.
"""

from __future__ import annotations

import contextlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy.exc import DBAPIError

from audiobatch.address import is_database
from audiobatch.errors import StorageError
from audiobatch.ledger import statements
from audiobatch.ledger.engine import open_engine, open_postgresql, schema_of, shrink, take_turn
from audiobatch.ledger.membership import Workers, this_process
from audiobatch.ledger.patience import PATIENCE_S, Patience
from audiobatch.ledger.queries import LedgerReader, PartCalls, Recorded, as_found, mark_rows
from audiobatch.ledger.queue import WorkQueue
from audiobatch.ledger.rows import Attempt, AttemptEnd, outcome_to_row, part_to_row, source_to_row
from audiobatch.ledger.statements import end_row, intent_row, time_text
from audiobatch.ledger.writer import LedgerWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Engine

    from audiobatch.ledger.rows import PartOutcome
    from audiobatch.ledger.writer import Write
    from audiobatch.model import Outcome, Review, Source

#: A command that died while it had the ledger to itself keeps runs away no longer than this.
_LONGEST_ALONE_S = 600.0

__all__ = ["Attempt", "AttemptEnd", "Ledger", "PartCalls", "Recorded"]


class Ledger(LedgerReader):
    """Opened for writing by one run at a time (the folder's lock sees to that), for reading by any number.

    In a PostgreSQL database, by any number of runs that claim their items from its queue.
    """

    def __init__(
        self, engine: Engine, where: str, *, writing: Engine | None = None, schema: str = ""
    ) -> None:
        super().__init__(engine, Patience(PATIENCE_S if schema else 0.0))
        self._writing = writing or engine
        self._where = where
        self._schema = schema
        self._writer = LedgerWriter(self._writing, where, self._patience)
        self.queue = WorkQueue(self._reading, self._writer)
        self.workers = Workers(self._writer)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the SQLite ledger at `path`, migrated to this version.

        Raises:
            ConfigError: the file is no ledger, or a later version made it.
        """
        return cls(open_engine(path), str(path))

    @classmethod
    def at(cls, ledger: str, output: str) -> Self:
        """Open or create the ledger of the job whose results go to `output`.

        Args:
            ledger: its file, or the address of a database.
            output: the folder or address of the results, in full.

        Raises:
            ConfigError: it cannot be opened.
        """
        if is_database(ledger):
            engine = open_postgresql(ledger, output)
            writing = open_postgresql(ledger, output, writes=True)
            return cls(engine, ledger, writing=writing, schema=schema_of(output))
        return cls.open(Path(ledger))

    @property
    def is_shared(self) -> bool:
        """Whether several runs may work on it at once."""
        return self._engine.dialect.name != "sqlite"

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Of all runs on this ledger, only one is in this block; with a file, the folder's lock sees to that.

        Raises:
            StorageError: the database is gone.
        """
        if not self.is_shared:
            yield
            return
        try:
            connection = self._connected()
        except DBAPIError as failed:
            raise StorageError(f"{self._where}: {failed.orig}") from failed
        with connection, connection.begin():
            take_turn(connection, self._schema)
            yield

    @property
    def trouble(self) -> str:
        """What the run waits for, where its database does not answer; empty otherwise."""
        return self._patience.trouble

    def hurry(self) -> None:
        """Wait no more for a database that does not answer; what cannot be written fails at once."""
        self._patience.hurry()

    def close(self) -> None:
        """Commit what waits and close every connection."""
        self._writer.close()
        self._writing.dispose()
        self._engine.dispose()

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """No run works on a shared ledger, and none will until the end of the block; `what` is done to it.

        Raises:
            FolderInUse: a run is at work.
        """
        if not self.is_shared:
            yield
            return
        name = f"{what}-{secrets.token_hex(2)}"
        with self.one_at_a_time():
            self.workers.join(this_process(name, asks=name, lease_s=_LONGEST_ALONE_S, drains=True))
        try:
            yield
        finally:
            self.workers.leave()

    # What a call leaves behind.

    async def record_intent(self, attempt: Attempt) -> None:
        """Before sending: this call is about to be made."""
        guard = self.queue.guard(attempt.item_id)
        await self._writer.write((statements.ADD_INTENT, [intent_row(attempt)]), guard=guard)

    async def record_end(self, end: AttemptEnd) -> None:
        """A call ended without deciding its item: it will be tried again."""
        await self._writer.write((statements.END_OPEN, [end_row(end)]))

    def record_end_now(self, end: AttemptEnd) -> None:
        """The same, for a thread without an event loop."""
        self._writer.write_now((statements.END_ATTEMPT, [end_row(end)]))

    async def record_outcome(
        self, outcome: Outcome, end: AttemptEnd | None = None, *, superseded: Outcome | None = None
    ) -> None:
        """What became of a turn, at once with the end of the call that decided it.

        Args:
            outcome: takes the turn's row.
            end: of the deciding call.
            superseded: the success in whose place it comes; it moves among the earlier versions.
        """
        guard = self.queue.guard(outcome.item_id)
        await self._writer.write(*_outcome_writes(outcome, end, superseded), guard=guard)

    def record_outcome_now(
        self, outcome: Outcome, end: AttemptEnd | None = None, *, superseded: Outcome | None = None
    ) -> None:
        """The same, for a thread without an event loop."""
        guard = self.queue.guard(outcome.item_id)
        self._writer.write_now(*_outcome_writes(outcome, end, superseded), guard=guard)

    def adopt(self, attempt: Attempt, end: AttemptEnd, outcome: Outcome) -> None:
        """Record a result that an earlier ledger of this output knew, with the call that brought it. Blocks."""
        self._writer.write_now(
            (statements.ADD_INTENT, [intent_row(attempt)]), *_outcome_writes(outcome, end, None)
        )

    async def record_part(
        self, part: PartOutcome, end: AttemptEnd | None = None, outcome: Outcome | None = None
    ) -> None:
        """What became of a part, at once with the end of its call, and with what it changes in the outcome."""
        guard = self.queue.guard(part.outcome.item_id)
        await self._writer.write(*_part_writes(part, end, outcome), guard=guard)

    def record_part_now(self, part: PartOutcome, end: AttemptEnd | None = None) -> None:
        """The same, for a thread without an event loop."""
        guard = self.queue.guard(part.outcome.item_id)
        self._writer.write_now(*_part_writes(part, end, None), guard=guard)

    # What a run finds and decides before it sends.

    def begin_run(self, run_id: str, *, spec: str, settings_key: str, settings_value: str) -> None:
        """Write down the run and the settings that its results are made with."""
        run = {
            "run_id": run_id,
            "started_at": time_text(datetime.now(UTC)),
            "finished_at": None,
            "spec": spec,
            "settings_key": settings_key,
            "summary": None,
        }
        self._writer.write_now(
            (statements.PUT_RUN, [run]),
            (statements.PUT_SETTINGS, [{"key": settings_key, "value": settings_value}]),
        )

    def end_run(self, run_id: str, summary: str) -> None:
        end = {"which": run_id, "finished_at": time_text(datetime.now(UTC)), "summary": summary}
        self._writer.write_now((statements.END_RUN, [end]))

    def put_sources(self, sources: Sequence[Source], queue_id: str) -> None:
        """Insert or refresh inputs; results that they have stay. What is as it was is only seen.

        Args:
            sources: as they were found now.
            queue_id: of the queue that they are on; runs that share a ledger share its queue.
        """
        rows = [source_to_row(source, queue_id) for source in sources]
        stored = self.item_rows([row["item_id"] for row in rows])
        changed, seen = [], []
        for row in rows:
            if stored.get(row["item_id"]) == as_found(row):
                seen.append({"which": row["item_id"], "run": queue_id})
            else:
                changed.append(row)
        self._writer.write_now((statements.PUT_ITEM, changed), (statements.SEE, seen))

    def see_all(self, queue_id: str) -> None:
        """Take every input that an earlier run found as found for this queue: for inputs that come only once."""
        self._writer.write_now((statements.SEE_ALL, [{"run": queue_id}]))

    def keep_as(self, kept: Sequence[tuple[str, int, str]]) -> None:
        """Accept results as they are: (item_id, turn, the fingerprint that would be asked for today)."""
        rows = [{"which": item_id, "which_turn": turn, "kept_as": mark} for item_id, turn, mark in kept]
        self._writer.write_now((statements.KEEP_AS, rows))

    def put_reviews(self, reviews: Mapping[tuple[str, int], Review]) -> None:
        """Set marks on what is recorded now of these turns; an empty one takes the mark away.

        A mark is of one version of a reply: when another takes its place, that one has none, and this stays
        with the version that it was made on.
        """
        kept, dropped = mark_rows(self.outcome, reviews)
        self._writer.write_now((statements.PUT_MARK, kept), (statements.DROP_MARK, dropped))

    def mark_shown(self, what: str) -> None:
        """The reports show all that is recorded: until the next change, which takes this back with its commit.

        Args:
            what: beside the records, decides how the reports look.
        """
        self._writer.write_now((statements.MARK_SHOWN, [{"key": statements.SHOWN_KEY, "value": what}]))

    def shown(self) -> str:
        """What the reports were marked with, if nothing has changed since; empty where that is not certain."""
        return "" if self.is_shared else self.noted(statements.SHOWN_KEY)

    def note(self, key: str, value: str) -> None:
        """Keep a word about the folder's files, for `noted`."""
        self._writer.write_now((statements.PUT_NOTE, [{"key": key, "value": value}]))

    def forget_missing_inputs(self, queue_id: str) -> None:
        """Drop inputs that were not found for this queue and never had a result."""
        if not self.has_missing(queue_id):
            return
        self._writer.write_now((statements.FORGET_MISSING, [{"run": queue_id}]))

    # What a purge takes away.

    def forget_words(self, item_ids: Sequence[str]) -> None:
        """Blank all that was said, asked and saved for these items; counts, costs, hashes and times stay."""
        rows = [{"which": one} for one in item_ids]
        self._writer.write_now(*((statement, rows) for statement in statements.PURGE))

    def shrink(self) -> None:
        """Leave no trace of blanked text in the database's file."""
        shrink(self._engine)


def _outcome_writes(outcome: Outcome, end: AttemptEnd | None, superseded: Outcome | None) -> list[Write]:
    writes: list[Write] = []
    if end is not None:
        writes.append((statements.END_ATTEMPT, [end_row(end)]))
    if superseded is not None:
        writes.append((statements.KEEP_VERSION, [outcome_to_row(superseded)]))
    writes.append((statements.PUT_OUTCOME, [outcome_to_row(outcome)]))
    return writes


def _part_writes(part: PartOutcome, end: AttemptEnd | None, outcome: Outcome | None) -> list[Write]:
    writes: list[Write] = []
    if end is not None:
        writes.append((statements.END_ATTEMPT, [end_row(end)]))
    writes.append((statements.PUT_PART, [part_to_row(part)]))
    if outcome is not None:
        writes.append((statements.PUT_OUTCOME, [outcome_to_row(outcome)]))
    return writes
