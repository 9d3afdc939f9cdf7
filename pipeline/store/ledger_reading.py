"""What the ledger knows, asked by any number of readers while one run writes: streamed, never loaded whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Select, and_, distinct, func, not_, select

from pipeline.model import Outcome, Source, Status
from pipeline.store.ledger_engine import damage
from pipeline.store.ledger_marks import past_marks, reviews_of
from pipeline.store.ledger_parts import TRANSCRIPTION, PartKind, PartOutcome, part_from_row
from pipeline.store.ledger_rows import outcome_from_row, source_from_row
from pipeline.store.ledger_schema import attempts, items, meta, outcomes, parts, settings, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Engine, RowMapping

    from pipeline.model import Review

#: How many rows a streaming read holds at a time.
CHUNK = 1000


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
class Progress:
    """A run's items: on its queue, ended, ended since a moment; and its calls in flight."""

    queued: int
    ended: int
    ended_since: int
    in_flight: int


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

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def outcome(self, item_id: str, turn: int) -> Outcome | None:
        query = select(outcomes).where(outcomes.c.item_id == item_id, outcomes.c.turn == turn)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return outcome_from_row(row) if row else None

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
        with self._engine.connect() as connection:
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
        with self._engine.connect() as connection:
            for item, turn, mark, count in connection.execute(query):
                worst[item, turn, mark] = max(count, worst.get((item, turn, mark), 0))
        return worst

    def unknown_parts(self, item_id: str, turn: int, fingerprint: str) -> dict[int, int]:
        """Calls of one turn with an unknown end, by part."""
        query = (
            select(attempts.c.part, func.count())
            .where(
                attempts.c.item_id == item_id,
                attempts.c.turn == turn,
                attempts.c.fingerprint == fingerprint,
                attempts.c.state == Status.UNKNOWN.value,
                attempts.c.part.is_not(None),
            )
            .group_by(attempts.c.part)
        )
        with self._engine.connect() as connection:
            return {int(part): int(count) for part, count in connection.execute(query)}

    def parts_of(self, item_id: str, turn: int, version: int, kind: PartKind) -> dict[int, PartOutcome]:
        """What is recorded of a turn's parts, by number."""
        query = select(parts).where(
            parts.c.item_id == item_id,
            parts.c.turn == turn,
            parts.c.version == version,
            parts.c.kind == kind.value,
        )
        with self._engine.connect() as connection:
            found = connection.execute(query).mappings().all()
        return {row["part"]: part_from_row(row) for row in found}

    def written_down(self, item_id: str | None = None) -> set[tuple[str, int, int, str]]:
        """Whose words are written down, of all items or one: item, turn, version, and the kind of words."""
        query = select(parts.c.item_id, parts.c.turn, parts.c.version, parts.c.kind).where(parts.c.part == 0)
        if item_id is not None:
            query = query.where(parts.c.item_id == item_id)
        with self._engine.connect() as connection:
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
        with self._engine.connect() as connection:
            return {
                row[0]: (row[1], row[2], row[3], row[4], row[5])
                for row in connection.execution_options(yield_per=CHUNK).execute(query)
            }

    def recorded(self, run_id: str | None = None, *, but: Unchanged | None = None) -> Iterator[Recorded]:
        """Sources in input order with their outcomes, streamed.

        Args:
            run_id: only inputs that this run's discovery saw.
            but: leave these out.
        """
        query = select(items).order_by(items.c.position, items.c.item_id)
        if run_id is not None:
            query = query.where(items.c.seen_run == run_id)
        if but is not None:
            query = query.where(not_(_is_unchanged(but)))
        yield from self._recorded(query)

    def count_unchanged(self, run_id: str, which: Unchanged) -> int:
        """How many of the inputs that a run's discovery saw are done and unchanged."""
        query = select(func.count()).select_from(items)
        query = query.where(items.c.seen_run == run_id, _is_unchanged(which))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def row_texts(self) -> Iterator[str]:
        """The tables' own columns of inputs that have any, as JSON, in input order."""
        query = select(items.c.row).where(items.c.row != "").order_by(items.c.position, items.c.item_id)
        with self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=CHUNK).execute(query).scalars()

    def to_do(self, run_id: str, first: int, last: int) -> list[Recorded]:
        """A stretch of this run's queue, by position, both ends included."""
        query = (
            select(items)
            .where(items.c.todo_run == run_id, items.c.position.between(first, last))
            .order_by(items.c.position)
        )
        return list(self._recorded(query))

    def positions_to_do(self, run_id: str) -> list[int]:
        """Positions of this run's queue, ascending."""
        query = select(items.c.position).where(items.c.todo_run == run_id).order_by(items.c.position)
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def _recorded(self, query: Select[Any]) -> Iterator[Recorded]:
        with self._engine.connect() as connection:
            result = connection.execution_options(yield_per=CHUNK).execute(query).mappings()
            for chunk in result.partitions(CHUNK):
                ids = [row["item_id"] for row in chunk]
                found: dict[str, dict[int, Outcome]] = {}
                kept: dict[str, dict[int, str]] = {}
                with self._engine.connect() as inner:
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
        with self._engine.connect() as connection:
            return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar() or ""

    def past_marks(self) -> set[tuple[str, int, int, Review]]:
        """Every mark that was ever applied: item, turn, version marked, and what it said."""
        with self._engine.connect() as connection:
            return past_marks(connection)

    def settings_value(self, settings_key: str) -> dict[str, Any] | None:
        """The job settings behind a key."""
        with self._engine.connect() as connection:
            text = connection.execute(select(settings.c.value).where(settings.c.key == settings_key)).scalar()
        return orjson.loads(text) if text else None

    def spent_usd(self, run_id: str | None = None) -> Decimal:
        """What calls have cost, in this run or in the folder's life. Decimal sums, never float."""
        query = select(attempts.c.cost_usd).where(attempts.c.cost_usd.is_not(None))
        if run_id is not None:
            query = query.where(attempts.c.run_id == run_id)
        with self._engine.connect() as connection:
            return sum((Decimal(text) for text in connection.execute(query).scalars()), Decimal(0))

    def count_outcomes(self) -> dict[str, int]:
        """Rows by status."""
        query = select(outcomes.c.status, func.count()).group_by(outcomes.c.status)
        with self._engine.connect() as connection:
            return dict(connection.execute(query).tuples())

    # What a killed run left, and what verify and status ask.

    def open_calls(self) -> Sequence[RowMapping]:
        """Calls whose end is not recorded: in flight, or left so by a kill."""
        with self._engine.connect() as connection:
            return connection.execute(select(attempts).where(attempts.c.state == "open")).mappings().all()

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
        with self._engine.connect() as connection:
            found = connection.execute(query).mappings().all()
        return list({(call["item_id"], call["turn"]): call for call in found}.values())

    def is_open(self, attempt_id: str) -> bool:
        """Whether a call's end is still to be recorded."""
        query = select(attempts.c.state).where(attempts.c.attempt_id == attempt_id)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar() == "open"

    def all_outcomes(self, *, earlier: bool = False) -> Iterator[Outcome]:
        """Every turn's outcome; or every outcome that a later one has superseded."""
        table = versions if earlier else outcomes
        with self._engine.connect() as connection:
            query = select(table).order_by(table.c.item_id, table.c.turn)
            for row in connection.execution_options(yield_per=CHUNK).execute(query).mappings():
                yield outcome_from_row(row)

    def progress(self, run_id: str, since: datetime) -> Progress:
        """How far a run is, seen from outside."""
        queued = select(func.count()).select_from(items).where(items.c.todo_run == run_id)
        mine = select(func.count(distinct(outcomes.c.item_id))).where(outcomes.c.run_id == run_id)
        late = mine.where(outcomes.c.finished_at >= since.astimezone(UTC).isoformat(timespec="milliseconds"))
        in_flight = select(func.count()).select_from(attempts)
        in_flight = in_flight.where(attempts.c.run_id == run_id, attempts.c.state == "open")
        with self._engine.connect() as connection:
            counts = [
                int(connection.execute(query).scalar_one()) for query in (queued, mine, late, in_flight)
            ]
        return Progress(queued=counts[0], ended=counts[1], ended_since=counts[2], in_flight=counts[3])

    def damage(self) -> list[str]:
        """What is broken in the database itself."""
        return damage(self._engine)
