"""A run's folder, opened: locked, seen to be writable, and put right where a killed run left something."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.discover import output_name
from pipeline.errors import ConfigError
from pipeline.run_log import run_log
from pipeline.store.homecoming import bring_home
from pipeline.store.ledger import Ledger
from pipeline.store.lock import FolderLock
from pipeline.store.recovery import recover
from pipeline.store.spool import Spool
from pipeline.store.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.jobspec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a run writes to.

    Attributes:
        brought: replies that an earlier run could not write here, and that are here now.
        lost: calls of an earlier run whose end nobody saw.
    """

    output: Path
    storage: LocalStorage
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
    output = output_folder(spec)
    storage = LocalStorage(output)
    storage.refuse_file()
    with contextlib.ExitStack() as stack:
        # First of all: who does not get the folder writes nothing into it.
        stack.enter_context(FolderLock.acquire(output, run_id))
        storage.probe_writable()
        storage.sweep_temporary()
        ledger = Ledger.open(Path(spec.ledger) if spec.ledger else output / "ledger.db")
        stack.callback(ledger.close)
        stack.enter_context(run_log(output, run_id))
        spool = Spool(output)
        brought = bring_home(spool, storage, ledger)
        lost = recover(ledger, storage)
        yield Opened(output=output, storage=storage, ledger=ledger, spool=spool, brought=brought, lost=lost)


def output_folder(spec: JobSpec) -> Path:
    """Where the job's results go.

    Raises:
        ConfigError: no input is given, it is an input itself, or it must be named.
    """
    if not spec.inputs:
        raise ConfigError("no input given: name a folder, a file, or '-' for JSON Lines on standard input")
    if spec.output is not None:
        output = Path(spec.output)
    else:
        default = output_name(spec.inputs)
        if default is None:
            raise ConfigError("several inputs, or '-', need --output: the folder that results go to")
        output = Path(default)
    full = output.resolve()
    for given in spec.inputs:
        if given != "-" and Path(given).resolve() == full:
            raise ConfigError(f"{output}: is both input and output; name another --output")
    return output
