"""Reads the ledger, for any number of readers while runs write: streamed, never loaded whole.

A reviewer's mark is of one version of one turn's reply, or of its having none. So a mark needs no clearing when
its turn is made again, a failed redo leaves it standing, and the marks of earlier versions stay with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Select, and_, case, distinct, func, not_, or_, select

from audiobatch.errors import ErrorType
from audiobatch.ledger.costs import at_most_usd, counted_usd, uncounted
from audiobatch.ledger.database import retried
from audiobatch.ledger.engine import damage
from audiobatch.ledger.membership import QUEUE_NOTE, live_workers, name_of
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
from audiobatch.ledger.statements import SHOWN_KEY, time_text
from audiobatch.model import Outcome, PartKind, Review, Source, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from decimal import Decimal

    from sqlalchemy import ColumnElement, Connection, RowMapping

    from audiobatch.ledger.database import Database
    from audiobatch.model import Outcome

#: How many rows a streaming read holds at a time.
CHUNK = 1000
#: What discovery finds of an input: all columns of its row but the one that runs add.
FOUND_COLUMNS = tuple(column.name for column in items.columns if column.name != "seen_run")
as_found = itemgetter(*FOUND_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A source with its outcomes so far, by turn.

    Attributes:
        kept_as: further fingerprints, for which these outcomes were accepted.
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
    """How many items are on the queue, have ended, and have ended since a time; and calls in flight."""

    queued: int
    ended: int
    ended_since: int
    since: datetime
    in_flight: int

    def per_minute(self, now: datetime) -> float:
        """Return how many items have ended a minute since then."""
        return 60 * self.ended_since / max(1.0, (now - self.since).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Which inputs are done under the job's present settings, as the database alone can tell.

    Such an input has no columns and no settings of its own, every turn has succeeded under these job settings, and
    what was sent had the hash that the input has now.
    """

    settings_key: str
    turns: int


def _is_unchanged(unchanged: Unchanged) -> ColumnElement[bool]:
    done = (
        select(func.count())
        .select_from(outcomes)
        .where(
            outcomes.c.item_id == items.c.item_id,
            outcomes.c.turn <= unchanged.turns,
            outcomes.c.status == Status.SUCCEEDED.value,
            outcomes.c.settings_key == unchanged.settings_key,
            outcomes.c.input_sha256 == items.c.sha256,
        )
        .scalar_subquery()
    )
    plain = (items.c.refusal == "", items.c.row == "", items.c.settings == "", items.c.sha256 != "")
    return and_(*plain, done == unchanged.turns)


class LedgerReader:
    """Each method reads with a connection of its own; none waits for the writer. All of them block.

    They raise a StorageError where the database is gone, or broken.
    """

    def __init__(self, database: Database) -> None:
        """Read an opened database."""
        self._database = database

    # Outcomes and parts.

    @retried
    def outcome(self, item_id: str, turn: int) -> Outcome | None:
        """Return the outcome of a turn; None if there is none yet."""
        query = select(outcomes).where(outcomes.c.item_id == item_id, outcomes.c.turn == turn)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return outcome_from_row(row) if row else None

    @retried
    def earlier_outcomes(self, item_id: str, turn: int) -> list[Outcome]:
        """Return the outcomes of a turn that a later one has superseded."""
        query = select(versions).where(versions.c.item_id == item_id, versions.c.turn == turn)
        with self._database.reading() as connection:
            return [outcome_from_row(row) for row in connection.execute(query).mappings()]

    @retried
    def unknown_calls(self, item_id: str, turn: int) -> int:
        """Count the calls of a turn with an unknown end."""
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
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    @retried
    def unknown_counts(self) -> dict[tuple[str, int, str], int]:
        """Count calls with an unknown end, by (item_id, turn, fingerprint); of parts, those of the worst one."""
        key = (attempts.c.item_id, attempts.c.turn, attempts.c.fingerprint)
        query = (
            select(*key, func.count())
            .where(attempts.c.state == Status.UNKNOWN.value)
            .group_by(*key, attempts.c.part)
        )
        worst: dict[tuple[str, int, str], int] = {}
        with self._database.reading() as connection:
            for item_id, turn, fingerprint, count in connection.execute(query):
                key_of = (item_id, turn, fingerprint)
                worst[key_of] = max(count, worst.get(key_of, 0))
        return worst

    @retried
    def part_calls(self, item_id: str, turn: int, fingerprint: str) -> dict[int, PartCalls]:
        """Count the calls of one turn so far, by part."""
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
        with self._database.reading() as connection:
            found = connection.execute(query).tuples().all()
        return {part: PartCalls(made=int(made), unknown=int(unknown)) for part, made, unknown in found}

    @retried
    def parts_called(self) -> dict[str, int]:
        """Return the highest part of each item that was ever called in parts."""
        query = (
            select(attempts.c.item_id, func.max(attempts.c.part))
            .where(attempts.c.part.is_not(None))
            .group_by(attempts.c.item_id)
        )
        with self._database.reading() as connection:
            return {str(item): int(part) for item, part in connection.execute(query)}

    @retried
    def parts_of(self, item_id: str, turn: int, version: int, kind: PartKind) -> dict[int, PartOutcome]:
        """Return what is recorded of a turn's parts, by number."""
        query = select(parts).where(
            parts.c.item_id == item_id,
            parts.c.turn == turn,
            parts.c.version == version,
            parts.c.kind == kind.value,
        )
        with self._database.reading() as connection:
            found = connection.execute(query).mappings().all()
        return {row["part"]: part_from_row(row) for row in found}

    @retried
    def transcribed(self, item_id: str | None = None) -> set[tuple[str, int, int, str]]:
        """Return what is transcribed, of all items or one: (item_id, turn, version, kind of part)."""
        query = select(parts.c.item_id, parts.c.turn, parts.c.version, parts.c.kind).where(parts.c.part == 0)
        if item_id is not None:
            query = query.where(parts.c.item_id == item_id)
        with self._database.reading() as connection:
            return {(item, turn, version, kind) for item, turn, version, kind in connection.execute(query)}

    @retried
    def known_files(self) -> dict[str, tuple[int, int, str, str, str]]:
        """Return what probing found before: item_id → (size, mtime, sha256, media, refusal)."""
        query = select(
            items.c.item_id,
            items.c.size_bytes,
            items.c.mtime_ns,
            items.c.sha256,
            items.c.media,
            items.c.refusal,
        ).where(items.c.kind == "recording")
        with self._database.reading() as connection:
            return {
                row[0]: (row[1], row[2], row[3], row[4], row[5])
                for row in connection.execution_options(yield_per=CHUNK).execute(query)
            }

    @retried
    def item_rows(self, item_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """Return the `FOUND_COLUMNS` of those of these inputs that are recorded."""
        query = select(*(items.c[name] for name in FOUND_COLUMNS)).where(items.c.item_id.in_(item_ids))
        with self._database.reading() as connection:
            return {row[0]: tuple(row) for row in connection.execute(query).all()}

    @retried
    def has_missing(self, queue_id: str) -> bool:
        """Return whether there are inputs without a result that were not found for this queue."""
        has_outcome = select(outcomes.c.turn).where(outcomes.c.item_id == items.c.item_id).exists()
        query = select(items.c.item_id).where(items.c.seen_run != queue_id, ~has_outcome).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def recorded(
        self, queue_id: str | None = None, *, exclude: Unchanged | None = None, touched_by: str | None = None
    ) -> Iterator[Recorded]:
        """Yield sources in input order with their outcomes.

        Args:
            queue_id: only inputs that were found for this queue.
            exclude: leave these out.
            touched_by: only inputs of which this run decided a turn, or nobody did yet, or that are refused.
        """
        query = select(items).order_by(items.c.position, items.c.item_id)
        if queue_id is not None:
            query = query.where(items.c.seen_run == queue_id)
        if exclude is not None:
            query = query.where(not_(_is_unchanged(exclude)))
        if touched_by is not None:
            of_it = outcomes.c.item_id == items.c.item_id
            # One subquery for all: item by item, SQLite would scan the run's rows each time.
            decided = select(outcomes.c.item_id).where(outcomes.c.run_id == touched_by)
            undecided = ~select(outcomes.c.turn).where(of_it).exists()
            query = query.where(or_(items.c.item_id.in_(decided), undecided, items.c.refusal != ""))
        yield from self._recorded(query)

    @retried
    def count_unchanged(self, queue_id: str, unchanged: Unchanged) -> int:
        """Count the inputs of this queue that are done and unchanged."""
        query = select(func.count()).select_from(items)
        query = query.where(items.c.seen_run == queue_id, _is_unchanged(unchanged))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def row_texts(self) -> Iterator[str]:
        """Yield the columns that inputs bring from their tables, as JSON, in input order."""
        query = select(items.c.row).where(items.c.row != "").order_by(items.c.position, items.c.item_id)
        with self._database.reading() as connection:
            yield from connection.execution_options(yield_per=CHUNK).execute(query).scalars()

    @retried
    def recorded_of(self, item_ids: Sequence[str]) -> list[Recorded]:
        """Return these sources with their outcomes, in input order."""
        query = select(items).where(items.c.item_id.in_(item_ids)).order_by(items.c.position)
        return list(self._recorded(query))

    def recorded_to_do(self) -> Iterator[Recorded]:
        """Yield what is left on the queue, in input order."""
        left = select(queue.c.item_id).where(queue.c.lease_until.is_not(None))
        yield from self._recorded(select(items).where(items.c.item_id.in_(left)).order_by(items.c.position))

    def _recorded(self, query: Select[Any]) -> Iterator[Recorded]:
        with self._database.reading() as connection:
            result = connection.execution_options(yield_per=CHUNK).execute(query).mappings()
            for chunk in result.partitions(CHUNK):
                ids = [row["item_id"] for row in chunk]
                found: dict[str, dict[int, Outcome]] = {}
                accepted: dict[str, dict[int, str]] = {}
                with self._database.reading() as inner:
                    for row in inner.execute(select(outcomes).where(outcomes.c.item_id.in_(ids))).mappings():
                        found.setdefault(row["item_id"], {})[row["turn"]] = outcome_from_row(row)
                        if row["kept_as"]:
                            accepted.setdefault(row["item_id"], {})[row["turn"]] = row["kept_as"]
                    reviews = reviews_of(inner, ids, found)
                for row in chunk:
                    item_id = row["item_id"]
                    yield Recorded(
                        source=source_from_row(row),
                        outcomes=dict(sorted(found.get(item_id, {}).items())),
                        kept_as=accepted.get(item_id, {}),
                        reviews=reviews.get(item_id, {}),
                    )

    @retried
    def note(self, key: str) -> str:
        """Return a note; empty where there is none."""
        with self._database.reading() as connection:
            return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar() or ""

    @retried
    def past_marks(self) -> set[tuple[str, int, int, Review]]:
        """Return every mark that was ever applied: (item_id, turn, version marked, mark)."""
        with self._database.reading() as connection:
            return past_marks(connection)

    @retried
    def settings_value(self, settings_key: str) -> dict[str, Any] | None:
        """Return the job settings with a key."""
        with self._database.reading() as connection:
            text = connection.execute(select(settings.c.value).where(settings.c.key == settings_key)).scalar()
        return orjson.loads(text) if text else None

    @retried
    def spent_usd(self, run_id: str | None = None) -> Decimal:
        """Add up what calls have cost, in one run or in the folder's life. Decimals, never floats."""
        of_run = () if run_id is None else (attempts.c.run_id == run_id,)
        with self._database.reading() as connection:
            return counted_usd(connection, *of_run)

    @retried
    def spent_at_most_usd(self, unrecorded_usd: Decimal) -> Decimal:
        """Add up what calls cost at most in the folder's life: their worst case, where the cost is not known.

        Args:
            unrecorded_usd: for each call whose worst case is not recorded.
        """
        with self._database.reading() as connection:
            return at_most_usd(connection, unrecorded_usd)

    @retried
    def uncounted(self) -> tuple[int, Decimal | None]:
        """Count the calls whose cost is not known, and add up their worst cases; None where one has no bound."""
        with self._database.reading() as connection:
            return uncounted(connection)

    @retried
    def unfinished(self) -> tuple[list[Outcome], list[PartOutcome]]:
        """Return turns, and parts of turns, whose reply was paid for and could not be processed.

        Transcriptions are not among them: they are finished where they are asked for.
        """
        of_turns = select(outcomes).where(outcomes.c.error_type == ErrorType.UNFINISHED.value)
        of_parts = select(parts).where(
            parts.c.error_type == ErrorType.UNFINISHED.value, parts.c.kind == PartKind.REPLY.value
        )
        with self._database.reading() as connection:
            turns = [outcome_from_row(row) for row in connection.execute(of_turns).mappings()]
            return turns, [part_from_row(row) for row in connection.execute(of_parts).mappings()]

    @retried
    def count_outcomes(self) -> dict[str, int]:
        """Count the outcomes, by status."""
        query = select(outcomes.c.status, func.count()).group_by(outcomes.c.status)
        with self._database.reading() as connection:
            return dict(connection.execute(query).tuples().all())

    # What a killed run left; what verify and status show.

    @retried
    def open_calls(self, item_ids: Sequence[str] | None = None) -> Sequence[RowMapping]:
        """Return the calls, of all items or these, whose end is not recorded: in flight, or killed."""
        query = select(attempts).where(attempts.c.state == "open")
        if item_ids is not None:
            query = query.where(attempts.c.item_id.in_(item_ids))
        with self._database.reading() as connection:
            return connection.execute(query).mappings().all()

    @retried
    def unknown_without_outcome(self) -> Sequence[RowMapping]:
        """Return the last calls, with an unknown end, of turns whose outcome a kill left unwritten."""
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
        with self._database.reading() as connection:
            found = connection.execute(query).mappings().all()
        return list({(call["item_id"], call["turn"]): call for call in found}.values())

    @retried
    def run_ids(self) -> set[str]:
        """Return every run that was begun on this ledger."""
        with self._database.reading() as connection:
            return set(connection.execute(select(runs.c.run_id)).scalars())

    def sources_without_calls(self) -> Iterator[Source]:
        """Yield the inputs that can be sent and have neither an outcome nor a call."""
        called = select(attempts.c.item_id).where(attempts.c.item_id == items.c.item_id).exists()
        ended = select(outcomes.c.item_id).where(outcomes.c.item_id == items.c.item_id).exists()
        query = select(items).where(items.c.refusal == "", ~called, ~ended).order_by(items.c.position)
        with self._database.reading() as connection:
            for row in connection.execution_options(yield_per=CHUNK).execute(query).mappings():
                yield source_from_row(row)

    def all_outcomes(self, *, earlier: bool = False) -> Iterator[Outcome]:
        """Yield every turn's outcome, or every outcome that a later one has superseded (`earlier`)."""
        table = versions if earlier else outcomes
        with self._database.reading() as connection:
            query = select(table).order_by(table.c.item_id, table.c.turn)
            for row in connection.execution_options(yield_per=CHUNK).execute(query).mappings():
                yield outcome_from_row(row)

    @retried
    def progress(self, since: datetime) -> Progress:
        """Return how far the work on the queue is, for a process that does not do it.

        Args:
            since: count items separately that ended after this time, or after the queue was begun if that is later.
        """
        this_queue = select(meta.c.value).where(meta.c.key == QUEUE_NOTE).scalar_subquery()
        queued = select(func.count()).select_from(queue).where(queue.c.queue_id == this_queue)
        in_flight = select(func.count()).select_from(attempts).where(attempts.c.state == "open")
        with self._database.reading() as connection:
            begun_at = connection.scalar(select(runs.c.started_at).where(runs.c.run_id == this_queue))
            since = max(since, datetime.fromisoformat(begun_at)) if begun_at else since
            recent = select(func.count(distinct(outcomes.c.item_id))).where(
                outcomes.c.finished_at >= time_text(since)
            )
            queries = (queued, queued.where(queue.c.lease_until.is_(None)), recent, in_flight)
            counts = [int(connection.execute(query).scalar_one()) for query in queries]
        return Progress(
            queued=counts[0], ended=counts[1], ended_since=counts[2], since=since, in_flight=counts[3]
        )

    @retried
    def has_finished_run(self) -> bool:
        """Return whether any run has finished, and so has written the reports."""
        query = select(runs.c.run_id).where(runs.c.finished_at.is_not(None)).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    @retried
    def live_workers(self) -> list[str]:
        """Return the names of the runs that are at work on a shared ledger."""
        with self._database.reading() as connection:
            return [name_of(row) for row in live_workers(connection)]

    def damage(self) -> list[str]:
        """Return what is broken in the database itself."""
        return damage(self._database.engine)

    def reports_shown(self) -> str:
        """Return the layout of reports that show all that is recorded; empty where they may not."""
        return "" if self._database.is_shared else self.note(SHOWN_KEY)


_KEY = ("item_id", "turn", "version", "replied")


def marked_version(outcome: Outcome | None) -> tuple[int, int]:
    """Return what marks on this outcome belong to: (version, 1 if there is a reply, else 0)."""
    if outcome is None:
        return 1, 0
    return outcome.version, int(outcome.status is Status.SUCCEEDED)


def mark_rows(
    outcome_of: Callable[[str, int], Outcome | None], reviews: Mapping[tuple[str, int], Review]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to write for these marks, and the keys of those to delete because they say nothing."""
    put: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for (item_id, turn), review in reviews.items():
        key = dict(zip(_KEY, (item_id, turn, *marked_version(outcome_of(item_id, turn))), strict=True))
        if review.review or review.note:
            put.append({**key, "review": review.review, "note": review.note, "marked_at": now})
        else:
            dropped.append({f"which_{name}": value for name, value in key.items()})
    return put, dropped


def reviews_of(
    connection: Connection, item_ids: Sequence[str], outcomes: Mapping[str, Mapping[int, Outcome]]
) -> dict[str, dict[int, Review]]:
    """Return the marks on current outcomes, by item and turn."""
    found: dict[str, dict[int, Review]] = {}
    query = select(marks).where(marks.c.item_id.in_(item_ids))
    for row in connection.execute(query).mappings():
        outcome = outcomes.get(row["item_id"], {}).get(row["turn"])
        if (row["version"], row["replied"]) == marked_version(outcome):
            mark = Review(review=row["review"], note=row["note"])
            found.setdefault(row["item_id"], {})[row["turn"]] = mark
    return found


def past_marks(connection: Connection) -> set[tuple[str, int, int, Review]]:
    """Return every mark, also of versions that were replaced."""
    return {
        (row["item_id"], row["turn"], row["version"], Review(review=row["review"], note=row["note"]))
        for row in connection.execute(select(marks)).mappings()
    }
