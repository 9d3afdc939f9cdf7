"""The runs that are at work on one ledger: who they are, and what each may take of the quotas and the budget.

A row a run, renewed every few seconds; one that is not renewed for a lease's length counts no more. Each says among
how many it divides the quotas, so that a new one begins only when all others have made room for it: however runs
come and go, their shares never come to more than the whole.

A limit of money for all runs together is handed out: each run's row says how much its calls may have cost in the
end, and what is not in anybody's row is free to be asked for.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, or_, select, update

from audiobatch.errors import FolderInUse, LeaseLost
from audiobatch.ledger.costs import at_most_usd
from audiobatch.ledger.schema import attempts, db_now, meta, workers
from audiobatch.ledger.statements import PUT_NOTE, time_text

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

    from audiobatch.ledger.writer import LedgerWriter

#: The note that names the queue that was last begun.
QUEUE_NOTE = "queue"
#: The `sharing` of a run that makes no calls itself.
SENDS_NOTHING = -1
#: A share so small that it is none: of a run that waits for the others to make room.
ASKING = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A run that is at work, as it signs on.

    Attributes:
        asks: what it asks for: only runs that ask for the same may work together.
        drains: it works off a queue that others have filled, and fills none.
        sends: it makes calls; one that does not has others make them, and takes no share of the quotas.
    """

    run_id: str
    asks: str
    host: str
    pid: int
    started_at: str
    lease_s: float
    drains: bool = False
    sends: bool = True


def this_process(
    run_id: str, *, asks: str, lease_s: float, drains: bool = False, sends: bool = True
) -> Worker:
    """A run of this process, as it signs on."""
    return Worker(
        run_id=run_id,
        asks=asks,
        host=platform.node(),
        pid=os.getpid(),
        started_at=time_text(datetime.now(UTC)),
        lease_s=lease_s,
        drains=drains,
        sends=sends,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a run found as it signed on: `alone` is to put right what dead runs left; others leave that be."""

    queue_id: str
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life, and what it showed.

    Attributes:
        live: runs that send or are about to, this one included if it does.
        have_room: every other of them divides the quotas among at least as many.
        names: of the others of them, as a person knows them.
        place: of this one among them, from 0.
        clock_ahead_s: the database's clock, less `time.monotonic()` here.
    """

    live: int
    have_room: bool
    names: dict[str, str]
    place: int
    clock_ahead_s: float


class Workers:
    """The roster of one ledger."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._me: Worker | None = None
        self._queue_id = ""

    def join(self, me: Worker) -> Joined:
        """Sign on: to the queue that others are at work on, or to one of its own. Blocks.

        Only one at a time may do this (`Ledger.one_at_a_time`).

        Raises:
            FolderInUse: others are at work who ask for something else.
        """
        joined: Joined = self._writer.ask_now(lambda connection: _join(connection, me))
        self._me, self._queue_id = me, joined.queue_id
        return joined

    async def beat(self, sharing: int) -> Beat:
        """Give a sign of life.

        Args:
            sharing: among how many this run divides the quotas now; `ASKING`: it sends nothing yet, and is about
                to; 0: it is not; `SENDS_NOTHING`: it never will.

        Raises:
            LeaseLost: this run was silent so long that another has begun anew.
        """
        assert self._me is not None
        me, queue_id = self._me, self._queue_id
        return await self._writer.ask(lambda connection: _beat(connection, me, queue_id, sharing))

    def beat_now(self) -> Beat:
        """The same, of a run that sends nothing yet, for a thread without an event loop."""
        assert self._me is not None
        me, queue_id = self._me, self._queue_id
        return self._writer.ask_now(lambda connection: _beat(connection, me, queue_id, _nothing_yet(me)))

    async def allowance(self, cap: Decimal, used: Decimal, otherwise_usd: Decimal) -> Decimal:
        """How much this run's calls may have cost in the end, so that all runs' together cost no more than `cap`.

        Args:
            cap: for the ledger's life.
            used: by this run so far, with what is set aside for its calls in flight.
            otherwise_usd: for each call of others that has no known cost and no worst case on record.
        """
        assert self._me is not None
        me = self._me
        return await self._writer.ask(lambda connection: _allow(connection, me, cap, used, otherwise_usd))

    def silent_elsewhere(self) -> frozenset[str]:
        """Runs of other machines that fell silent lately: their spools may hold what they paid for. Blocks."""
        assert self._me is not None
        me = self._me
        query = select(workers.c.run_id).where(workers.c.host != me.host, workers.c.alive_until <= db_now())
        return frozenset(self._writer.ask_now(lambda connection: connection.execute(query).scalars().all()))

    def leave(self) -> None:
        """Sign off. Blocks."""
        if self._me is not None:
            run_id, self._me = self._me.run_id, None
            self._writer.write_now((_LEAVE, [{"which": run_id}]))


_LEAVE = delete(workers).where(workers.c.run_id == bindparam("which"))


def live_workers(connection: Connection) -> list[RowMapping]:
    """The rows of the runs that gave a sign of life in time."""
    query = select(workers).where(workers.c.alive_until > db_now()).order_by(workers.c.run_id)
    return list(connection.execute(query).mappings())


def name_of(row: RowMapping) -> str:
    """A run as a person knows it."""
    return f"run {row['run_id']} (process {row['pid']} on {row['host']})"


def _join(connection: Connection, me: Worker) -> Joined:
    others = live_workers(connection)
    if different := [one for one in others if one["asks"] != me.asks]:
        raise FolderInUse(
            f"other runs are at work on this ledger that ask for something else: {name_of(different[0])}. Runs "
            "work together only with the same settings; wait until they end, or stop them."
        )
    last = connection.execute(select(meta.c.value).where(meta.c.key == QUEUE_NOTE)).scalar()
    if others:
        queue_id = others[0]["queue_id"]
    elif me.drains:
        queue_id = last or me.run_id
    else:
        queue_id = me.run_id
    if not others:
        # Those of other machines that fell silent lately stay: see `WorkQueue.hold_for_others`.
        over = or_(workers.c.host == me.host, workers.c.alive_until + me.lease_s <= db_now())
        connection.execute(delete(workers).where(or_(over, workers.c.run_id == me.run_id)))
        connection.execute(PUT_NOTE, {"key": QUEUE_NOTE, "value": queue_id})
    _sign_on(connection, me, queue_id, _nothing_yet(me))
    return Joined(queue_id=queue_id, alone=not others)


def _nothing_yet(me: Worker) -> int:
    return 0 if me.sends else SENDS_NOTHING


def _sign_on(connection: Connection, me: Worker, queue_id: str, sharing: int) -> None:
    row: dict[str, Any] = {
        "run_id": me.run_id,
        "queue_id": queue_id,
        "asks": me.asks,
        "host": me.host,
        "pid": me.pid,
        "started_at": me.started_at,
        "sharing": sharing,
    }
    connection.execute(insert(workers).values(**row, alive_until=db_now() + me.lease_s))


def _beat(connection: Connection, me: Worker, queue_id: str, sharing: int) -> Beat:
    mine = update(workers).where(workers.c.run_id == me.run_id)
    beaten = connection.execute(mine.values(alive_until=db_now() + me.lease_s, sharing=sharing))
    others = [one for one in live_workers(connection) if one["run_id"] != me.run_id]
    if any(one["queue_id"] != queue_id for one in others):
        raise LeaseLost("this run was silent for so long that another began anew; it sends nothing more")
    if not beaten.rowcount:
        _sign_on(connection, me, queue_id, sharing)
    sending = [one for one in others if one["sharing"] > 0]
    shares = [one["sharing"] for one in sending]
    live = len(shares) + me.sends
    clock_s: float = connection.execute(select(db_now())).scalar_one()
    return Beat(
        place=sum(one["run_id"] < me.run_id for one in sending),
        clock_ahead_s=clock_s - time.monotonic(),
        live=live,
        have_room=all(one >= live for one in shares),
        names={one["run_id"]: name_of(one) for one in others if one["sharing"] != SENDS_NOTHING},
    )


def _allow(
    connection: Connection, me: Worker, cap: Decimal, used: Decimal, otherwise_usd: Decimal
) -> Decimal:
    # All rows, in one order: whoever else asks waits until this has been handed out.
    rows = list(connection.execute(select(workers).order_by(workers.c.run_id).with_for_update()).mappings())
    others = [one for one in rows if one["run_id"] != me.run_id]
    senders = [one for one in others if one["sharing"] != SENDS_NOTHING]
    known = [one["run_id"] for one in rows if one["allowance_usd"] or one["run_id"] == me.run_id]
    spent = at_most_usd(connection, otherwise_usd, attempts.c.run_id.not_in(known))
    free = cap - spent - used - sum((Decimal(one["allowance_usd"] or 0) for one in others), Decimal(0))
    allowed = used + max(free, Decimal(0)) / (len(senders) + 1)
    connection.execute(
        update(workers).where(workers.c.run_id == me.run_id).values(allowance_usd=str(allowed))
    )
    return allowed
