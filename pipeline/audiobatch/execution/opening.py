"""A run's folder, opened: locked, seen to be writable, and put right where a killed run left something."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.errors import StorageError
from audiobatch.execution.run_log import run_log
from audiobatch.execution.signing_on import SignedOn, sign_on
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger_address import is_database
from audiobatch.storage.lock import FolderLock
from audiobatch.storage.output import output_place

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
