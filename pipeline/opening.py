"""A run's folder, opened: locked, seen to be writable, and put right where a killed run left something."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.discover import JOB_FILE
from pipeline.errors import StorageError
from pipeline.job_file import check_belongs, note_belonging, write_job_file
from pipeline.output_place import output_place
from pipeline.run_log import run_log
from pipeline.store.homecoming import bring_home
from pipeline.store.ledger import Ledger
from pipeline.store.lock import FolderLock
from pipeline.store.recovery import recover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.address import Place
    from pipeline.jobspec import JobSpec
    from pipeline.store.spool import Spool
    from pipeline.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a run writes to.

    Attributes:
        home: see `OutputPlace`.
        brought: replies that an earlier run could not write here, and that are here now.
        lost: calls of an earlier run whose end nobody saw.
    """

    output: Place
    home: Path
    storage: Storage
    ledger: Ledger
    spool: Spool
    brought: int
    lost: int


@contextlib.contextmanager
def opened_folder(spec: JobSpec, run_id: str) -> Iterator[Opened]:
    """The job's output folder, this run's alone until the end of the block.

    Raises:
        ConfigError: it is in use, cannot be written, or is none that results can go to.
    """
    where = output_place(spec)
    storage = where.storage
    storage.refuse_file()
    with contextlib.ExitStack() as stack:
        # First of all: who does not get the folder writes nothing into it.
        stack.enter_context(FolderLock.acquire(where.home, run_id, shown=str(where.place)))
        storage.probe_writable()
        storage.sweep_temporary()
        ledger = Ledger.open(Path(where.ledger))
        stack.callback(ledger.close)
        check_belongs(storage, ledger, spec)
        if where.is_remote:
            stack.callback(_send_log, storage, where.home, run_id)
        stack.enter_context(run_log(where.home, run_id))
        spool = where.spool()
        brought = bring_home(spool, storage, ledger)
        lost = recover(ledger, storage)
        if not storage.exists(JOB_FILE):
            write_job_file(storage, spec)
        note_belonging(storage, ledger)
        yield Opened(
            output=where.place,
            home=where.home,
            storage=storage,
            ledger=ledger,
            spool=spool,
            brought=brought,
            lost=lost,
        )


def _send_log(storage: Storage, home: Path, run_id: str) -> None:
    """The run's log beside its results too; a run does not fail for want of it."""
    name = f"runs/{run_id}.log"
    try:
        storage.write(name, (home / name).read_bytes())
    except (OSError, StorageError) as failed:
        log.warning("%s was not written to the output: %s", name, failed)
