"""What a ledger's calls have cost: as counted, or at most where it was not counted."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Numeric, and_, cast, func, or_, select

from audiobatch.errors import ErrorType
from audiobatch.ledger.schema import attempts
from audiobatch.model import Status

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

#: Calls, perhaps billed, whose cost and worst case are unknown: an earlier version made them, or they had no price.
_WITHOUT_BOUND = and_(
    attempts.c.cost_usd.is_(None),
    attempts.c.worst_usd.is_(None),
    or_(
        attempts.c.state.in_(["open", Status.UNKNOWN.value, Status.SUCCEEDED.value]),
        attempts.c.error_type.in_([ErrorType.BAD_REPLY.value, ErrorType.CONTENT_FILTER.value]),
    ),
)


def counted_usd(connection: Connection, *which: ColumnElement[bool]) -> Decimal:
    """Add up what these calls have cost, as far as it is known."""
    return _sum(connection, attempts.c.cost_usd, which)


def at_most_usd(connection: Connection, unrecorded_usd: Decimal, *which: ColumnElement[bool]) -> Decimal:
    """Add up what these calls cost at most: in flight, or with an unknown end or tokens, at their worst case.

    Args:
        connection: to the ledger.
        unrecorded_usd: for each whose worst case is not recorded.
        which: conditions; none: all calls.
    """
    known = _sum(connection, func.coalesce(attempts.c.cost_usd, attempts.c.worst_usd), which)
    unbounded = select(func.count()).select_from(attempts).where(_WITHOUT_BOUND, *which)
    return known + int(connection.execute(unbounded).scalar_one()) * unrecorded_usd


def uncounted(connection: Connection) -> tuple[int, Decimal | None]:
    """Count the calls whose cost is not known, and add up their worst cases; None where one has no bound."""
    at_worst = and_(attempts.c.cost_usd.is_(None), attempts.c.worst_usd.is_not(None))
    bounded, unbounded = (
        int(connection.execute(select(func.count()).select_from(attempts).where(which)).scalar_one())
        for which in (at_worst, _WITHOUT_BOUND)
    )
    return bounded + unbounded, None if unbounded else _sum(connection, attempts.c.worst_usd, (at_worst,))


def _sum(
    connection: Connection, amount: ColumnElement[Any], which: tuple[ColumnElement[bool], ...]
) -> Decimal:
    if connection.dialect.name == "postgresql":
        found = connection.execute(select(func.sum(cast(amount, Numeric))).where(*which)).scalar()
        return Decimal(found or 0)
    # SQLite adds up floats.
    amounts = connection.execute(select(amount).where(amount.is_not(None), *which))
    return sum((Decimal(text) for text in amounts.scalars()), Decimal(0))
