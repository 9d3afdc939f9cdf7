"""What a ledger's calls have cost: as it was counted, or at the very most where it was not."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Numeric, and_, cast, func, or_, select

from audiobatch.errors import ErrorType
from audiobatch.ledger.schema import attempts
from audiobatch.model import Status

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

#: Calls of which neither is known, by an earlier version or without a price: those that were perhaps billed.
_IN_THE_DARK = and_(
    attempts.c.cost_usd.is_(None),
    attempts.c.worst_usd.is_(None),
    or_(
        attempts.c.state.in_(["open", Status.UNKNOWN.value, Status.SUCCEEDED.value]),
        attempts.c.error_type.in_([ErrorType.BAD_REPLY.value, ErrorType.CONTENT_FILTER.value]),
    ),
)


def counted_usd(connection: Connection, *which: ColumnElement[bool]) -> Decimal:
    """What these calls have cost, as far as it is known."""
    return _sum(connection, attempts.c.cost_usd, which)


def at_most_usd(connection: Connection, otherwise_usd: Decimal, *which: ColumnElement[bool]) -> Decimal:
    """What these calls can have cost: those in flight, or whose end or tokens are not known, at their worst.

    Args:
        connection: to the ledger.
        otherwise_usd: for each of which the worst was not written down.
        which: conditions; none: all calls.
    """
    known = _sum(connection, func.coalesce(attempts.c.cost_usd, attempts.c.worst_usd), which)
    dark = select(func.count()).select_from(attempts).where(_IN_THE_DARK, *which)
    return known + int(connection.execute(dark).scalar_one()) * otherwise_usd


def uncounted(connection: Connection) -> tuple[int, Decimal | None]:
    """Calls whose cost is not known: how many, and what they can have cost; None where one could be anything."""
    at_worst = and_(attempts.c.cost_usd.is_(None), attempts.c.worst_usd.is_not(None))
    bounded, dark = (
        int(connection.execute(select(func.count()).select_from(attempts).where(which)).scalar_one())
        for which in (at_worst, _IN_THE_DARK)
    )
    return bounded + dark, None if dark else _sum(connection, attempts.c.worst_usd, (at_worst,))


def _sum(
    connection: Connection, amount: ColumnElement[Any], which: tuple[ColumnElement[bool], ...]
) -> Decimal:
    if connection.dialect.name == "postgresql":
        found = connection.execute(select(func.sum(cast(amount, Numeric))).where(*which)).scalar()
        return Decimal(found or 0)
    # SQLite adds up floats.
    amounts = connection.execute(select(amount).where(amount.is_not(None), *which))
    return sum((Decimal(text) for text in amounts.scalars()), Decimal(0))
