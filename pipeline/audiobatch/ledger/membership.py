"""The runs that are at work on one ledger, and what each may take of the quotas and the budget.

Each run has a row that it renews every few seconds; one that is not renewed for a lease's length no longer counts.
Each says among how many it divides the quotas, so that a new one begins only when all others have made room for it:
however runs come and go, their shares never add up to more than the whole.

Runs share a cost limit: each run's row says how much its calls may have cost in the end, and what is in nobody's
row is free.
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

    from audiobatch.ledger.group_commit import Commit, GroupCommit

#: The note that names the queue that was last begun.
QUEUE_NOTE = "queue"
#: The `sharing` of a run that makes no calls itself.
SENDS_NOTHING = -1
#: The `sharing` of a run that waits for the others to make room: its share is practically nothing.
ASKING = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A run that is at work, as it joins.

    Attributes:
        asks: its settings: only runs with the same settings may work together.
        drains: it sends from a queue that others have filled, and fills none.
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
    """Describe a run of this process."""
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
    """What a run found as it joined: one that is `alone` repairs what killed runs left behind."""

    queue_id: str
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a heartbeat found.

    Attributes:
        live: runs that send or are about to, this one included if it does.
        have_room: every other of them divides the quotas among at least as many.
        names: of the others of them, for messages.
        position: of this one among them, from 0.
        clock_ahead_s: the database's clock, less `time.monotonic()` here.
    """

    live: int
    have_room: bool
    names: dict[str, str]
    position: int
    clock_ahead_s: float


class Workers:
    """This run among those that are at work on one ledger."""

    def __init__(self, commits: GroupCommit) -> None:
        """Start as a run that has not joined."""
        self._commits = commits
        self._me: Worker | None = None
        self._queue_id = ""

    def join(self, me: Worker) -> Joined:
        """Join the queue that others are at work on, or begin one. Blocks.

        Only one run at a time may do this (`Ledger.exclusive`).

        Raises:
            FolderInUse: runs with other settings are at work.
        """
        joined = self._commits.ask(lambda connection: _join(connection, me)).wait()
        self._me, self._queue_id = me, joined.queue_id
        return joined

    def beat(self, sharing: int | None = None) -> Commit[Heartbeat]:
        """Renew this run's row.

        Args:
            sharing: among how many this run divides the quotas now; `ASKING`: it sends nothing yet, and is about
                to; 0: it is not; `SENDS_NOTHING`: it never will. None: as when it joined.

        Raises:
            LeaseLost: this run was silent so long that another has begun anew.
        """
        assert self._me is not None
        me, queue_id = self._me, self._queue_id
        now_sharing = _sharing_at_first(me) if sharing is None else sharing
        return self._commits.ask(lambda connection: _beat(connection, me, queue_id, now_sharing))

    def allowance(self, cap: Decimal, used: Decimal, unrecorded_usd: Decimal) -> Commit[Decimal]:
        """Return how much this run's calls may cost in all, so that all runs together cost no more than `cap`.

        Args:
            cap: for the ledger's life, in US dollars.
            used: by this run so far, with what is reserved for its calls in flight.
            unrecorded_usd: for each call of other runs whose cost and worst case are not recorded.
        """
        assert self._me is not None
        me = self._me
        return self._commits.ask(lambda connection: _allow(connection, me, cap, used, unrecorded_usd))

    def silent_elsewhere(self) -> frozenset[str]:
        """Return the runs of other machines that fell silent lately: their spools may hold replies. Blocks."""
        assert self._me is not None
        me = self._me
        query = select(workers.c.run_id).where(workers.c.host != me.host, workers.c.alive_until <= db_now())
        run_ids = self._commits.ask(lambda connection: connection.execute(query).scalars().all()).wait()
        return frozenset(run_ids)

    def leave(self) -> None:
        """Delete this run's row. Blocks."""
        if self._me is not None:
            run_id, self._me = self._me.run_id, None
            self._commits.write((_LEAVE, [{"which": run_id}])).wait()


_LEAVE = delete(workers).where(workers.c.run_id == bindparam("which"))


def live_workers(connection: Connection) -> list[RowMapping]:
    """Return the rows of the runs that renewed theirs in time."""
    query = select(workers).where(workers.c.alive_until > db_now()).order_by(workers.c.run_id)
    return list(connection.execute(query).mappings())


def name_of(row: RowMapping) -> str:
    """Return what messages call a run."""
    return f"run {row['run_id']} (process {row['pid']} on {row['host']})"


def _join(connection: Connection, me: Worker) -> Joined:
    others = live_workers(connection)
    if different := [row for row in others if row["asks"] != me.asks]:
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
        # Those of other machines that fell silent lately stay: see `WorkQueue.reserve_for_silent_runs`.
        over = or_(workers.c.host == me.host, workers.c.alive_until + me.lease_s <= db_now())
        connection.execute(delete(workers).where(or_(over, workers.c.run_id == me.run_id)))
        connection.execute(PUT_NOTE, {"key": QUEUE_NOTE, "value": queue_id})
    _add_row(connection, me, queue_id, _sharing_at_first(me))
    return Joined(queue_id=queue_id, alone=not others)


def _sharing_at_first(me: Worker) -> int:
    return 0 if me.sends else SENDS_NOTHING


def _add_row(connection: Connection, me: Worker, queue_id: str, sharing: int) -> None:
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


def _beat(connection: Connection, me: Worker, queue_id: str, sharing: int) -> Heartbeat:
    mine = update(workers).where(workers.c.run_id == me.run_id)
    renewed = connection.execute(mine.values(alive_until=db_now() + me.lease_s, sharing=sharing))
    others = [row for row in live_workers(connection) if row["run_id"] != me.run_id]
    if any(row["queue_id"] != queue_id for row in others):
        raise LeaseLost("this run was silent for so long that another began anew; it sends nothing more")
    if not renewed.rowcount:
        _add_row(connection, me, queue_id, sharing)
    sending = [row for row in others if row["sharing"] > 0]
    shares = [row["sharing"] for row in sending]
    live = len(shares) + me.sends
    clock_s: float = connection.execute(select(db_now())).scalar_one()
    return Heartbeat(
        position=sum(row["run_id"] < me.run_id for row in sending),
        clock_ahead_s=clock_s - time.monotonic(),
        live=live,
        have_room=all(share >= live for share in shares),
        names={row["run_id"]: name_of(row) for row in others if row["sharing"] != SENDS_NOTHING},
    )


def _allow(
    connection: Connection, me: Worker, cap: Decimal, used: Decimal, unrecorded_usd: Decimal
) -> Decimal:
    # All rows, in one order: another run that asks waits for this transaction.
    rows = list(connection.execute(select(workers).order_by(workers.c.run_id).with_for_update()).mappings())
    others = [row for row in rows if row["run_id"] != me.run_id]
    senders = [row for row in others if row["sharing"] != SENDS_NOTHING]
    known = [row["run_id"] for row in rows if row["allowance_usd"] or row["run_id"] == me.run_id]
    spent = at_most_usd(connection, unrecorded_usd, attempts.c.run_id.not_in(known))
    free = cap - spent - used - sum((Decimal(row["allowance_usd"] or 0) for row in others), Decimal(0))
    allowed = used + max(free, Decimal(0)) / (len(senders) + 1)
    connection.execute(
        update(workers).where(workers.c.run_id == me.run_id).values(allowance_usd=str(allowed))
    )
    return allowed
