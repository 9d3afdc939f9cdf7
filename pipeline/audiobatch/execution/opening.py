"""A run's folder, opened: locked, seen to be writable, and put right where a killed run left something.

A run works alone behind its folder's lock, or beside others on a shared ledger. A run that is alone repairs what
killed runs left. A run that finds others at work does not: what they hold is theirs, and what a silent one held is
taken over item by item.

Each run has a log, `runs/<run_id>.log`: ids and causes, no content.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.address import is_database
from audiobatch.errors import StorageError, shown
from audiobatch.execution.adoption import check_runs
from audiobatch.execution.recovery import recover
from audiobatch.ledger.job_file import check_belongs, note_belonging, write_job_file
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.membership import QUEUE_NOTE
from audiobatch.ledger.spool_replay import replay
from audiobatch.storage.atomic_file import translating
from audiobatch.storage.lock import FolderLock
from audiobatch.storage.output import JOB_FILE, output_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from audiobatch.address import Place
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.membership import Worker
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a run writes to.

    Attributes:
        home: see `OutputPlace`.
        signed_on: the queue that it works on, and what was put right.
    """

    output: Place
    home: Path
    storage: Storage
    ledger: Ledger
    spool: Spool
    signed_on: SignedOn


@contextlib.contextmanager
def opened_folder(spec: JobSpec, me: Worker) -> Iterator[Opened]:
    """The job's output folder, this run's alone until the end of the block; on a shared ledger, beside others.

    Raises:
        ConfigError: it is in use, cannot be written, or is none that results can go to.
    """
    where = output_place(spec)
    storage = where.storage
    storage.refuse_file()
    with contextlib.ExitStack() as stack:
        is_shared = is_database(where.ledger)
        if not is_shared:
            # First of all: who does not get the folder writes nothing into it.
            stack.enter_context(FolderLock.acquire(where.home, me.run_id, shown=str(where.place)))
        storage.probe_writable()
        if not is_shared:
            storage.sweep_temporary()
        ledger = Ledger.at(where.ledger, where.address)
        stack.callback(ledger.close)
        if where.is_remote:
            stack.callback(_send_log, storage, where.home, me.run_id)
        stack.enter_context(run_log(where.home, me.run_id))
        spool = where.spool()
        signed_on = sign_on(me, ledger, storage, spool, spec, stack)
        yield Opened(
            output=where.place,
            home=where.home,
            storage=storage,
            ledger=ledger,
            spool=spool,
            signed_on=signed_on,
        )


def _send_log(storage: Storage, home: Path, run_id: str) -> None:
    """The run's log beside its results too; a run does not fail for want of it."""
    name = f"runs/{run_id}.log"
    try:
        storage.write(name, (home / name).read_bytes())
    except (OSError, StorageError) as failed:
        log.warning("%s was not written to the output: %s", name, failed)


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
            brought = replay(spool, storage, ledger)
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
    brought = replay(spool, storage, ledger)
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


class _RunLog(logging.FileHandler):
    """A log that cannot be written is no reason to stop, nor to fill the terminal with the reasons."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        return


class _OneLine(logging.Formatter):
    """A record is a line, whatever a name in it holds; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = shown(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def run_log(output: Path, run_id: str) -> Iterator[None]:
    """Keep the log until the end of the block.

    Raises:
        StorageError: it cannot be begun.
    """
    path = output / "runs" / f"{run_id}.log"
    with translating(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("audiobatch", "audiobatch_flows")]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = bool(os.environ.get("AUDIOBATCH_LOG_TO_STDERR"))
    try:
        yield
    finally:
        for one, (level, propagate) in zip(loggers, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagate
        with contextlib.suppress(OSError):  # a full disk: what is missing is the end of a log
            handler.close()
