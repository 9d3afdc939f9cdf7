"""What the ledger knows, asked by any number of readers while one run writes: streamed, never loaded whole.

A reviewer's mark is of one version of one turn's reply, or of its having none. So a mark needs no clearing when
its turn is made again, a failed redo leaves it standing, and the marks of earlier versions stay with them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Select, and_, case, distinct, func, not_, or_, select
from sqlalchemy.exc import DBAPIError

from audiobatch.errors import ErrorType, StorageError
from audiobatch.ledger.costs import at_most_usd, counted_usd, uncounted
from audiobatch.ledger.engine import damage
from audiobatch.ledger.membership import QUEUE_NOTE, live_workers, name_of
from audiobatch.ledger.patience import Patience
from audiobatch.ledger.rows import (
    TRANSCRIPTION,
    PartOutcome,
    outcome_from_row,
    part_from_row,
    source_from_row,
)
from audiobatch.ledger.schema import (
    TAKEN_BACK,
    attempts,
    items,
    marks,
    meta,
    outcomes,
    parts,
    queue,
    runs,
    settings,
    versions,
)
from audiobatch.ledger.statements import time_text
from audiobatch.model import Outcome, PartKind, Review, Source, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from sqlalchemy import ColumnElement, Connection, Engine, RowMapping

    from audiobatch.model import Outcome

#: How many rows a streaming read holds at a time.
CHUNK = 1000
#: What discovery finds out of an input: all of its row but what runs add.
FOUND_COLUMNS = tuple(column.name for column in items.columns if column.name != "seen_run")
as_found = itemgetter(*FOUND_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A source with its outcomes so far, by turn.

    Attributes:
        kept_as: fingerprints that these outcomes count for too.
        reviews: a reviewer's marks on them.
    """

    source: Source
    outcomes: Mapping[int, Outcome]
    kept_as: Mapping[int, str]
    reviews: Mapping[int, Review] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCalls:
    """Calls that were made for one part, and how many of them have an unknown end."""

    made: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Items: on the queue, ended, ended since a moment; and calls in flight."""

    queued: int
    ended: int
    ended_since: int
    since: datetime
    in_flight: int

    def per_minute(self, now: datetime) -> float:
        """Items that end a minute, of late."""
        return 60 * self.ended_since / max(1.0, (now - self.since).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Inputs that are done as the job stands: told by the database, without a look at any of them.

    Such an input has no columns and no settings of its own, every turn has succeeded under these very job
    settings, and what was sent had the hash that the input has now.
    """

    settings_key: str
    turns: int


def _is_unchanged(which: Unchanged) -> ColumnElement[bool]:
    done = (
        select(func.count())
        .select_from(outcomes)
        .where(
            outcomes.c.item_id == items.c.item_id,
            outcomes.c.turn <= which.turns,
            outcomes.c.status == Status.SUCCEEDED.value,
            outcomes.c.settings_key == which.settings_key,
            outcomes.c.input_sha256 == items.c.sha256,
        )
        .scalar_subquery()
    )
    plain = (items.c.refusal == "", items.c.row == "", items.c.settings == "", items.c.sha256 != "")
    return and_(*plain, done == which.turns)


class LedgerReader:
    """Every question is a connection of its own; none waits for the writer."""

    def __init__(self, engine: Engine, patience: Patience | None = None) -> None:
        self._engine = engine
        self._patience = patience or Patience(0.0)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Raises: StorageError: the database is gone, or broken."""
        try:
            with self._connected() as connection:
                yield connection
        except DBAPIError as failed:
            raise StorageError(f"the ledger cannot be read: {failed.orig}") from failed

    def _connected(self) -> Connection:
        """A connection that works, from a database that may have been away. Raises: DBAPIError."""
        tries = 0
        while True:
            tries += 1
            try:
                connection = self._engine.connect()
            except DBAPIError as failed:
                if not self._patience.waits(failed, tries):
                    raise
            else:
                self._patience.answered()
                return connection

    def outcome(self, item_id: str, turn: int) -> Outcome | None:
        query = select(outcomes).where(outcomes.c.item_id == item_id, outcomes.c.turn == turn)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return outcome_from_row(row) if row else None

    def earlier_outcomes(self, item_id: str, turn: int) -> list[Outcome]:
        """The outcomes of a turn that a later one has superseded."""
        query = select(versions).where(versions.c.item_id == item_id, versions.c.turn == turn)
        with self._reading() as connection:
            return [outcome_from_row(row) for row in connection.execute(query).mappings()]

    def unknown_calls(self, item_id: str, turn: int) -> int:
        """How many calls of a turn have an unknown end."""
        query = (
            select(func.count())
            .select_from(attempts)
            .where(
                attempts.c.item_id == item_id,
                attempts.c.turn == turn,
                attempts.c.state == Status.UNKNOWN.value,
                attempts.c.transport != TRANSCRIPTION,
            )
        )
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def unknown_counts(self) -> dict[tuple[str, int, str], int]:
        """Calls with an unknown end, by item, turn and fingerprint; of several parts, those of the worst."""
        key = (attempts.c.item_id, attempts.c.turn, attempts.c.fingerprint)
        query = (
            select(*key, func.count())
            .where(attempts.c.state == Status.UNKNOWN.value)
            .group_by(*key, attempts.c.part)
        )
        worst: dict[tuple[str, int, str], int] = {}
        with self._reading() as connection:
            for item, turn, mark, count in connection.execute(query):
                worst[item, turn, mark] = max(count, worst.get((item, turn, mark), 0))
        return worst

    def part_calls(self, item_id: str, turn: int, fingerprint: str) -> dict[int, PartCalls]:
        """The calls of one turn so far, by part."""
        query = (
            select(
                attempts.c.part,
                func.sum(case((TAKEN_BACK, 0), else_=1)),
                func.sum(case((attempts.c.state == Status.UNKNOWN.value, 1), else_=0)),
            )
            .where(
                attempts.c.item_id == item_id,
                attempts.c.turn == turn,
                attempts.c.fingerprint == fingerprint,
                attempts.c.part.is_not(None),
            )
            .group_by(attempts.c.part)
        )
        with self._reading() as connection:
            found = connection.execute(query).tuples().all()
        return {part: PartCalls(made=int(made), unknown=int(unknown)) for part, made, unknown in found}

    def parts_called(self) -> dict[str, int]:
        """The highest part of each item that was ever called in parts."""
        query = (
            select(attempts.c.item_id, func.max(attempts.c.part))
            .where(attempts.c.part.is_not(None))
            .group_by(attempts.c.item_id)
        )
        with self._reading() as connection:
            return {str(item): int(part) for item, part in connection.execute(query)}

    def parts_of(self, item_id: str, turn: int, version: int, kind: PartKind) -> dict[int, PartOutcome]:
        """What is recorded of a turn's parts, by number."""
        query = select(parts).where(
            parts.c.item_id == item_id,
            parts.c.turn == turn,
            parts.c.version == version,
            parts.c.kind == kind.value,
        )
        with self._reading() as connection:
            found = connection.execute(query).mappings().all()
        return {row["part"]: part_from_row(row) for row in found}

    def written_down(self, item_id: str | None = None) -> set[tuple[str, int, int, str]]:
        """Whose words are written down, of all items or one: item, turn, version, and the kind of words."""
        query = select(parts.c.item_id, parts.c.turn, parts.c.version, parts.c.kind).where(parts.c.part == 0)
        if item_id is not None:
            query = query.where(parts.c.item_id == item_id)
        with self._reading() as connection:
            return {(item, turn, version, kind) for item, turn, version, kind in connection.execute(query)}

    def known_files(self) -> dict[str, tuple[int, int, str, str, str]]:
        """What probing found before: item_id → (size, mtime, sha256, media, refusal)."""
        query = select(
            items.c.item_id,
            items.c.size_bytes,
            items.c.mtime_ns,
            items.c.sha256,
            items.c.media,
            items.c.refusal,
        ).where(items.c.kind == "recording")
        with self._reading() as connection:
            return {
                row[0]: (row[1], row[2], row[3], row[4], row[5])
                for row in connection.execution_options(yield_per=CHUNK).execute(query)
            }

    def item_rows(self, item_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """`FOUND_COLUMNS` of those of these inputs that are known."""
        query = select(*(items.c[name] for name in FOUND_COLUMNS)).where(items.c.item_id.in_(item_ids))
        with self._reading() as connection:
            return {row[0]: tuple(row) for row in connection.execute(query).all()}

    def has_missing(self, queue_id: str) -> bool:
        """Whether there are inputs without a result that were not found for this queue."""
        has_outcome = select(outcomes.c.turn).where(outcomes.c.item_id == items.c.item_id).exists()
        query = select(items.c.item_id).where(items.c.seen_run != queue_id, ~has_outcome).limit(1)
        with self._reading() as connection:
            return connection.execute(query).first() is not None

    def recorded(
        self, queue_id: str | None = None, *, but: Unchanged | None = None, touched_by: str | None = None
    ) -> Iterator[Recorded]:
        """Sources in input order with their outcomes, streamed.

        Args:
            queue_id: only inputs that were found for this queue.
            but: leave these out.
            touched_by: only inputs of which this run decided a turn, or nobody did yet, or that are refused.
        """
        query = select(items).order_by(items.c.position, items.c.item_id)
        if queue_id is not None:
            query = query.where(items.c.seen_run == queue_id)
        if but is not None:
            query = query.where(not_(_is_unchanged(but)))
        if touched_by is not None:
            of_it = outcomes.c.item_id == items.c.item_id
            # Asked once for all: item by item, SQLite would walk the run's rows each time.
            decided = select(outcomes.c.item_id).where(outcomes.c.run_id == touched_by)
            undecided = ~select(outcomes.c.turn).where(of_it).exists()
            query = query.where(or_(items.c.item_id.in_(decided), undecided, items.c.refusal != ""))
        yield from self._recorded(query)

    def count_unchanged(self, queue_id: str, which: Unchanged) -> int:
        """How many of the inputs that were found for this queue are done and unchanged."""
        query = select(func.count()).select_from(items)
        query = query.where(items.c.seen_run == queue_id, _is_unchanged(which))
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def row_texts(self) -> Iterator[str]:
        """The tables' own columns of inputs that have any, as JSON, in input order."""
        query = select(items.c.row).where(items.c.row != "").order_by(items.c.position, items.c.item_id)
        with self._reading() as connection:
            yield from connection.execution_options(yield_per=CHUNK).execute(query).scalars()

    def recorded_of(self, item_ids: Sequence[str]) -> list[Recorded]:
        """These sources with their outcomes, in input order."""
        query = select(items).where(items.c.item_id.in_(item_ids)).order_by(items.c.position)
        return list(self._recorded(query))

    def recorded_to_do(self) -> Iterator[Recorded]:
        """What is left on the queue, in input order, streamed."""
        left = select(queue.c.item_id).where(queue.c.lease_until.is_not(None))
        yield from self._recorded(select(items).where(items.c.item_id.in_(left)).order_by(items.c.position))

    def _recorded(self, query: Select[Any]) -> Iterator[Recorded]:
        with self._reading() as connection:
            result = connection.execution_options(yield_per=CHUNK).execute(query).mappings()
            for chunk in result.partitions(CHUNK):
                ids = [row["item_id"] for row in chunk]
                found: dict[str, dict[int, Outcome]] = {}
                kept: dict[str, dict[int, str]] = {}
                with self._reading() as inner:
                    for row in inner.execute(select(outcomes).where(outcomes.c.item_id.in_(ids))).mappings():
                        found.setdefault(row["item_id"], {})[row["turn"]] = outcome_from_row(row)
                        if row["kept_as"]:
                            kept.setdefault(row["item_id"], {})[row["turn"]] = row["kept_as"]
                    reviews = reviews_of(inner, ids, found)
                for row in chunk:
                    item_id = row["item_id"]
                    yield Recorded(
                        source=source_from_row(row),
                        outcomes=dict(sorted(found.get(item_id, {}).items())),
                        kept_as=kept.get(item_id, {}),
                        reviews=reviews.get(item_id, {}),
                    )

    def noted(self, key: str) -> str:
        """What was kept under a key; empty where nothing was."""
        with self._reading() as connection:
            return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar() or ""

    def past_marks(self) -> set[tuple[str, int, int, Review]]:
        """Every mark that was ever applied: item, turn, version marked, and what it said."""
        with self._reading() as connection:
            return past_marks(connection)

    def settings_value(self, settings_key: str) -> dict[str, Any] | None:
        """The job settings behind a key."""
        with self._reading() as connection:
            text = connection.execute(select(settings.c.value).where(settings.c.key == settings_key)).scalar()
        return orjson.loads(text) if text else None

    def spent_usd(self, run_id: str | None = None) -> Decimal:
        """What calls have cost, in this run or in the folder's life. Decimal sums, never float."""
        which = () if run_id is None else (attempts.c.run_id == run_id,)
        with self._reading() as connection:
            return counted_usd(connection, *which)

    def spent_at_most_usd(self, otherwise_usd: Decimal) -> Decimal:
        """What calls can have cost in the folder's life, those whose cost is not known at their worst.

        Args:
            otherwise_usd: for each of which that was not written down.
        """
        with self._reading() as connection:
            return at_most_usd(connection, otherwise_usd)

    def uncounted(self) -> tuple[int, Decimal | None]:
        """Calls whose cost is not known, and what they can have cost; None where one could be anything."""
        with self._reading() as connection:
            return uncounted(connection)

    def unfinished(self) -> tuple[list[Outcome], list[PartOutcome]]:
        """Turns, and parts of turns, whose reply was paid for and could not be worked on.

        Words that are written down are finished where they are asked for.
        """
        found = select(outcomes).where(outcomes.c.error_type == ErrorType.UNFINISHED.value)
        in_parts = select(parts).where(
            parts.c.error_type == ErrorType.UNFINISHED.value, parts.c.kind == PartKind.REPLY.value
        )
        with self._reading() as connection:
            turns = [outcome_from_row(row) for row in connection.execute(found).mappings()]
            return turns, [part_from_row(row) for row in connection.execute(in_parts).mappings()]

    def count_outcomes(self) -> dict[str, int]:
        """Rows by status."""
        query = select(outcomes.c.status, func.count()).group_by(outcomes.c.status)
        with self._reading() as connection:
            return dict(connection.execute(query).tuples().all())

    # What a killed run left, and what verify and status ask.

    def open_calls(self, item_ids: Sequence[str] | None = None) -> Sequence[RowMapping]:
        """Calls, of all items or these, whose end is not recorded: in flight, or left so by a kill."""
        query = select(attempts).where(attempts.c.state == "open")
        if item_ids is not None:
            query = query.where(attempts.c.item_id.in_(item_ids))
        with self._reading() as connection:
            return connection.execute(query).mappings().all()

    def unknown_without_outcome(self) -> Sequence[RowMapping]:
        """The last calls, with an unknown end, of turns whose outcome a kill left unwritten."""
        settled = and_(outcomes.c.item_id == attempts.c.item_id, outcomes.c.turn == attempts.c.turn)
        query = (
            select(attempts)
            .where(
                attempts.c.state == Status.UNKNOWN.value,
                attempts.c.transport != TRANSCRIPTION,
                ~select(outcomes.c.turn).where(settled).exists(),
            )
            .order_by(attempts.c.started_at)
        )
        with self._reading() as connection:
            found = connection.execute(query).mappings().all()
        return list({(call["item_id"], call["turn"]): call for call in found}.values())

    def run_ids(self) -> set[str]:
        """Every run that was begun on this ledger."""
        with self._reading() as connection:
            return set(connection.execute(select(runs.c.run_id)).scalars())

    def untouched(self) -> Iterator[Source]:
        """Inputs that are there, and of which there is neither an outcome nor a call."""
        called = select(attempts.c.item_id).where(attempts.c.item_id == items.c.item_id).exists()
        ended = select(outcomes.c.item_id).where(outcomes.c.item_id == items.c.item_id).exists()
        query = select(items).where(items.c.refusal == "", ~called, ~ended).order_by(items.c.position)
        with self._reading() as connection:
            for row in connection.execution_options(yield_per=CHUNK).execute(query).mappings():
                yield source_from_row(row)

    def is_open(self, attempt_id: str) -> bool:
        """Whether a call's end is still to be recorded."""
        query = select(attempts.c.state).where(attempts.c.attempt_id == attempt_id)
        with self._reading() as connection:
            return connection.execute(query).scalar() == "open"

    def all_outcomes(self, *, earlier: bool = False) -> Iterator[Outcome]:
        """Every turn's outcome; or every outcome that a later one has superseded."""
        table = versions if earlier else outcomes
        with self._reading() as connection:
            query = select(table).order_by(table.c.item_id, table.c.turn)
            for row in connection.execution_options(yield_per=CHUNK).execute(query).mappings():
                yield outcome_from_row(row)

    def progress(self, since: datetime) -> Progress:
        """How far the work on the queue is, seen from outside.

        Args:
            since: items that ended after it are counted apart, or after the queue was begun if that was later.
        """
        this_queue = select(meta.c.value).where(meta.c.key == QUEUE_NOTE).scalar_subquery()
        queued = select(func.count()).select_from(queue).where(queue.c.queue_id == this_queue)
        in_flight = select(func.count()).select_from(attempts).where(attempts.c.state == "open")
        with self._reading() as connection:
            began = connection.scalar(select(runs.c.started_at).where(runs.c.run_id == this_queue))
            since = max(since, datetime.fromisoformat(began)) if began else since
            late = select(func.count(distinct(outcomes.c.item_id))).where(
                outcomes.c.finished_at >= time_text(since)
            )
            asked = (queued, queued.where(queue.c.lease_until.is_(None)), late, in_flight)
            counts = [int(connection.execute(query).scalar_one()) for query in asked]
        return Progress(
            queued=counts[0], ended=counts[1], ended_since=counts[2], since=since, in_flight=counts[3]
        )

    def has_finished_run(self) -> bool:
        """Whether a run has come to its end, and so has written the reports."""
        query = select(runs.c.run_id).where(runs.c.finished_at.is_not(None)).limit(1)
        with self._reading() as connection:
            return connection.execute(query).first() is not None

    def live_workers(self) -> list[str]:
        """The runs that are at work on a ledger that several share, as a person knows them."""
        with self._reading() as connection:
            return [name_of(row) for row in live_workers(connection)]

    def damage(self) -> list[str]:
        """What is broken in the database itself."""
        return damage(self._engine)


_KEY = ("item_id", "turn", "version", "replied")


def made_on(outcome: Outcome | None) -> tuple[int, int]:
    """What marks on this outcome are of: (version, 1 if there is a reply, else 0)."""
    if outcome is None:
        return 1, 0
    return outcome.version, int(outcome.status is Status.SUCCEEDED)


def mark_rows(
    recorded: Callable[[str, int], Outcome | None], reviews: Mapping[tuple[str, int], Review]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to write for these marks, and the keys of those to delete because they say nothing."""
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for (item_id, turn), review in reviews.items():
        key = dict(zip(_KEY, (item_id, turn, *made_on(recorded(item_id, turn))), strict=True))
        if review.review or review.note:
            kept.append({**key, "review": review.review, "note": review.note, "marked_at": now})
        else:
            dropped.append({f"which_{name}": value for name, value in key.items()})
    return kept, dropped


def reviews_of(
    connection: Connection, item_ids: Sequence[str], outcomes: Mapping[str, Mapping[int, Outcome]]
) -> dict[str, dict[int, Review]]:
    """The marks that stand, by item and turn: those of the versions that are recorded now."""
    found: dict[str, dict[int, Review]] = {}
    query = select(marks).where(marks.c.item_id.in_(item_ids))
    for row in connection.execute(query).mappings():
        outcome = outcomes.get(row["item_id"], {}).get(row["turn"])
        if (row["version"], row["replied"]) == made_on(outcome):
            mark = Review(review=row["review"], note=row["note"])
            found.setdefault(row["item_id"], {})[row["turn"]] = mark
    return found


def past_marks(connection: Connection) -> set[tuple[str, int, int, Review]]:
    """Every mark, also of versions that are no more."""
    return {
        (row["item_id"], row["turn"], row["version"], Review(review=row["review"], note=row["note"]))
        for row in connection.execute(select(marks)).mappings()
    }
