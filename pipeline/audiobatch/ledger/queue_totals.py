"""Totals over a queue's items, whichever run sent them: for a run whose workers send."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Numeric, and_, case, cast, func, select

from audiobatch.ledger.database import retried
from audiobatch.ledger.rows import media_from_text
from audiobatch.ledger.schema import TAKEN_BACK, attempts, items, outcomes, queue, runs
from audiobatch.model import CostBasis, Status

if TYPE_CHECKING:
    from sqlalchemy import Select

    from audiobatch.ledger.database import Database

_CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many items are finished, by status; and what all calls on the ledger have cost.

    Attributes:
        in_flight: calls whose end is not recorded.
    """

    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    in_flight: int = 0
    cost_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Durations, tokens and estimated costs of the items that are finished.

    Attributes:
        estimated: rows whose cost is an estimate, which no call's record holds.
    """

    input_audio_s: float = 0.0
    output_audio_s: float = 0.0
    trimmed_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0
    estimated_usd: Decimal = Decimal(0)


def _ended(queue_id: str) -> Any:
    return and_(queue.c.queue_id == queue_id, queue.c.lease_until.is_(None))


class QueueTotals:
    """The totals of one queue. Every method blocks."""

    def __init__(self, database: Database, queue_id: str) -> None:
        """Read the totals of the queue with this id."""
        self._database = database
        self._queue_id = queue_id

    @retried
    def counts(self) -> Counts:
        """Count finished items and calls in flight, and add up what calls have cost."""
        worst = func.max(
            case(
                (outcomes.c.status == Status.SUCCEEDED.value, 0),
                (outcomes.c.status == Status.UNKNOWN.value, 2),
                else_=1,
            )
        )
        each = (
            select(worst.label("worst"))
            .select_from(queue.join(outcomes, outcomes.c.item_id == queue.c.item_id))
            .where(_ended(self._queue_id))
            .group_by(queue.c.item_id)
            .subquery()
        )
        by_end = select(each.c.worst, func.count()).group_by(each.c.worst)
        in_flight = select(func.count()).select_from(attempts).where(attempts.c.state == "open")
        cost = select(func.sum(cast(attempts.c.cost_usd, Numeric)))
        with self._database.reading() as connection:
            ends: dict[int, int] = dict(connection.execute(by_end).tuples().all())
            return Counts(
                succeeded=ends.get(0, 0),
                failed=ends.get(1, 0),
                unknown=ends.get(2, 0),
                in_flight=connection.execute(in_flight).scalar_one(),
                cost_usd=Decimal(connection.execute(cost).scalar() or 0),
            )

    @retried
    def sums(self) -> Sums:
        """Add up every row of the items that are finished."""
        query: Select[Any] = (
            select(
                outcomes.c.turn,
                outcomes.c.status,
                outcomes.c.usage,
                outcomes.c.audio_duration_s,
                outcomes.c.trimmed_s,
                items.c.media,
                case((outcomes.c.cost_basis == CostBasis.ESTIMATE.value, outcomes.c.cost_usd)),
            )
            .select_from(
                queue.join(outcomes, outcomes.c.item_id == queue.c.item_id).join(
                    items, items.c.item_id == queue.c.item_id
                )
            )
            .where(_ended(self._queue_id))
        )
        input_s = output_s = all_trimmed_s = 0.0
        input_tokens = output_tokens = 0
        estimates: list[Decimal] = []
        with self._database.reading() as connection:
            rows = connection.execution_options(yield_per=_CHUNK).execute(query)
            for turn, status, usage, audio_s, trimmed_s, media, estimate in rows:
                if estimate is not None:
                    estimates.append(Decimal(estimate))
                used = orjson.loads(usage) if usage else {}
                input_tokens += used.get("input_text_tokens", 0) + used.get("input_audio_tokens", 0)
                output_tokens += used.get("output_text_tokens", 0) + used.get("output_audio_tokens", 0)
                if status != Status.SUCCEEDED.value:
                    continue
                output_s += audio_s or 0.0
                all_trimmed_s += trimmed_s or 0.0
                recording = media_from_text(media) if turn == 1 else None
                if recording is not None:
                    input_s += recording.duration_s - (trimmed_s or 0.0)
        return Sums(
            input_audio_s=input_s,
            output_audio_s=output_s,
            trimmed_s=all_trimmed_s,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            estimated=len(estimates),
            estimated_usd=sum(estimates, Decimal(0)),
        )

    @retried
    def sent_for(self, for_run: str) -> int:
        """Count the items that the workers of `for_run` made a call for, other than calls that were taken back."""
        query = select(func.count(attempts.c.item_id.distinct())).where(
            attempts.c.run_id.startswith(f"{for_run}.", autoescape=True), ~TAKEN_BACK
        )
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    @retried
    def summaries_of(self, for_run: str) -> list[dict[str, Any] | None]:
        """Return the summaries of the workers of `for_run`; None: still at work, or killed."""
        query = select(runs.c.summary).where(runs.c.run_id.startswith(f"{for_run}.", autoescape=True))
        with self._database.reading() as connection:
            return [orjson.loads(text) if text else None for text in connection.execute(query).scalars()]
