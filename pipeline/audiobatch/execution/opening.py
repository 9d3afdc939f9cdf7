"""Opens a run's folder: locks it, checks that it can be written, and repairs what a killed run left.

A run works alone behind its folder's lock, or beside others on a shared ledger. A run that is alone repairs what
killed runs left. A run that finds others at work does not: their claims are theirs, and those of a silent one are
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
from audiobatch.storage.output import JOB_FILE, output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from audiobatch.address import Location
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.membership import Worker
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a run writes to.

    Attributes:
        home: the folder of this machine that is locked and holds the log.
        joined: the queue that the run works on, and what was repaired.
    """

    output: Location
    home: Path
    storage: Storage
    ledger: Ledger
    spool: Spool
    joined: Joined


@contextlib.contextmanager
def opened_folder(spec: JobSpec, me: Worker) -> Iterator[Opened]:
    """Hold the job's output folder until the end of the block: alone, or on a shared ledger beside others.

    Raises:
        ConfigError: it is in use, cannot be written, or is none that results can go to.
    """
    where = output_folder(spec)
    storage = where.storage
    storage.refuse_file()
    with contextlib.ExitStack() as stack:
        is_shared = is_database(where.ledger)
        if not is_shared:
            # First of all: a run that does not get the lock writes nothing into the folder.
            stack.enter_context(FolderLock.acquire(where.home, me.run_id, shown=str(where.location)))
        storage.probe_writable()
        if not is_shared:
            storage.sweep_temporary()
        ledger = Ledger.at(where.ledger, where.address)
        stack.callback(ledger.close)
        if where.is_remote:
            stack.callback(_send_log, storage, where.home, me.run_id)
        stack.enter_context(run_log(where.home, me.run_id))
        spool = where.spool()
        joined = join(me, ledger, storage, spool, spec, stack)
        yield Opened(
            output=where.location,
            home=where.home,
            storage=storage,
            ledger=ledger,
            spool=spool,
            joined=joined,
        )


def _send_log(storage: Storage, home: Path, run_id: str) -> None:
    """Copy the run's log to its results in an object store; a run does not fail without it."""
    name = f"runs/{run_id}.log"
    try:
        storage.write(name, (home / name).read_bytes())
    except (OSError, StorageError) as failed:
        log.warning("%s was not written to the output: %s", name, failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A run's queue, and what was repaired when the run joined it.

    Attributes:
        queue_id: the queue that it works on.
        replayed: replies that an earlier run could not write here, and that are written now.
        lost: calls of an earlier run with an unknown end.
    """

    queue_id: str
    replayed: int = 0
    lost: int = 0


def join(
    me: Worker, ledger: Ledger, storage: Storage, spool: Spool, spec: JobSpec, stack: contextlib.ExitStack
) -> Joined:
    """Join the ledger's runs until the end of `stack`, and repair what killed runs left. Blocks.

    Raises:
        FolderInUse: runs of another job are at work.
        ConfigError: the ledger is another output's.
        StorageError: the output or the ledger cannot be written.
    """
    if not ledger.is_shared:
        _bind(ledger, storage, spec)
        ledger.queue.claims_as(me.run_id)
        ledger.writer.put_note(QUEUE_NOTE, me.run_id)
        return _repair(me.run_id, ledger, storage, spool)
    ledger.queue.claims_as(me.run_id, lease_s=me.lease_s)
    with ledger.exclusive():
        _bind(ledger, storage, spec)
        workers = ledger.workers.join(me)
        stack.callback(_leave, ledger)
        spool.share(me.run_id, alone=workers.alone)
        if not workers.alone or me.drains:
            # Other runs would soon take for lost what a run of this machine could not record.
            return Joined(queue_id=workers.queue_id, replayed=replay(spool, storage, ledger))
        # A run that seemed dead may still write: its files are young.
        storage.sweep_temporary(older_than_s=me.lease_s)
        joined = _repair(workers.queue_id, ledger, storage, spool)
        ledger.workers.beat().wait()  # the repair may have taken longer than a heartbeat
        return joined


def _bind(ledger: Ledger, storage: Storage, spec: JobSpec) -> None:
    """Check that the output and the ledger belong together, before anything is done to either."""
    check_belongs(storage, ledger, spec)
    if not spec.adopt:
        check_runs(storage, ledger)
    if not storage.exists(JOB_FILE):
        write_job_file(storage, spec)
    note_belonging(storage, ledger)


def _repair(queue_id: str, ledger: Ledger, storage: Storage, spool: Spool) -> Joined:
    ledger.queue.clear()
    replayed = replay(spool, storage, ledger)
    elsewhere = ledger.workers.silent_elsewhere() if ledger.is_shared else frozenset[str]()
    lost = recover(ledger, storage, except_of=elsewhere)
    return Joined(queue_id=queue_id, replayed=replayed, lost=lost)


def _leave(ledger: Ledger) -> None:
    """Release every claim at once; where the ledger is gone, the leases end by themselves."""
    try:
        ledger.queue.release(ledger.queue.held)
        ledger.workers.leave()
    except Exception:
        log.warning("the claims of this run could not be released", exc_info=True)


class _RunLog(logging.FileHandler):
    """A log file whose failures neither stop the run nor reach the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        return


class _OneLine(logging.Formatter):
    """Writes a record as one line, whatever a name in it holds; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = shown(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def run_log(output: Path, run_id: str) -> Iterator[None]:
    """Write the run's log until the end of the block.

    Raises:
        StorageError: the file cannot be created.
    """
    path = output / "runs" / f"{run_id}.log"
    with translating(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("audiobatch", "audiobatch_flows")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = bool(os.environ.get("AUDIOBATCH_LOG_TO_STDERR"))
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        with contextlib.suppress(OSError):  # a full disk: what is missing is the end of a log
            handler.close()
