"""A run takes up the books: alone behind its folder's lock, or beside others on a ledger that several share.

Who is alone puts right what killed runs left, once for all. Who finds others at work leaves that be: what they hold
is theirs, and what a silent one held is taken over item by item.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.execution.adoption import check_runs
from audiobatch.execution.recovery import recover
from audiobatch.ledger.job_file import check_belongs, note_belonging, write_job_file
from audiobatch.ledger.membership import QUEUE_NOTE
from audiobatch.ledger.spool_replay import bring_home
from audiobatch.storage.output import JOB_FILE

if TYPE_CHECKING:
    import contextlib

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.ledger.membership import Worker
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOn:
    """What a run found.

    Attributes:
        queue_id: the queue that it works on.
        alone: no other run is at work.
        brought: replies that an earlier run could not write here, and that are here now.
        lost: calls of an earlier run whose end nobody saw.
    """

    queue_id: str
    alone: bool
    brought: int = 0
    lost: int = 0


def sign_on(  # noqa: PLR0917 - all of it is one run's
    me: Worker, ledger: Ledger, storage: Storage, spool: Spool, spec: JobSpec, stack: contextlib.ExitStack
) -> SignedOn:
    """Take up the books until the end of `stack`. Blocks.

    Raises:
        FolderInUse: runs are at work that ask for something else.
        ConfigError: the ledger is another output's.
        StorageError: the output or the ledger cannot be written.
    """
    if not ledger.is_shared:
        _bind(ledger, storage, spec)
        ledger.queue.claims_as(me.run_id)
        ledger.note(QUEUE_NOTE, me.run_id)
        return _put_right(me.run_id, ledger, storage, spool)
    ledger.queue.claims_as(me.run_id, lease_s=me.lease_s)
    with ledger.one_at_a_time():
        _bind(ledger, storage, spec)
        joined = ledger.workers.join(me)
        stack.callback(_sign_off, ledger)
        spool.share(me.run_id, alone=joined.alone)
        if not joined.alone or me.drains:
            # What a run of this machine could not record, others would soon take for lost.
            brought = bring_home(spool, storage, ledger)
            return SignedOn(queue_id=joined.queue_id, alone=joined.alone, brought=brought)
        # One that was taken for dead may write yet: its files are young.
        storage.sweep_temporary(older_than_s=me.lease_s)
        done = _put_right(joined.queue_id, ledger, storage, spool)
        ledger.workers.beat_now()  # it may have taken long, and the others look now
        return done


def _bind(ledger: Ledger, storage: Storage, spec: JobSpec) -> None:
    """An output and its books know each other, before anything is done to either."""
    check_belongs(storage, ledger, spec)
    if not spec.adopt:
        check_runs(storage, ledger)
    if not storage.exists(JOB_FILE):
        write_job_file(storage, spec)
    note_belonging(storage, ledger)


def _put_right(queue_id: str, ledger: Ledger, storage: Storage, spool: Spool) -> SignedOn:
    ledger.queue.empty()
    brought = bring_home(spool, storage, ledger)
    elsewhere = ledger.workers.silent_elsewhere() if ledger.is_shared else frozenset[str]()
    lost = recover(ledger, storage, but_of=elsewhere)
    return SignedOn(queue_id=queue_id, alone=True, brought=brought, lost=lost)


def _sign_off(ledger: Ledger) -> None:
    """What is still held goes to others at once; where the ledger is gone, the leases end by themselves."""
    try:
        ledger.queue.release(ledger.queue.held)
        ledger.workers.leave()
    except Exception:
        log.warning("what this run held could not be released", exc_info=True)
