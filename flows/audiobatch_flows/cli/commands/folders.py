"""An output named on the command line: its job, its ledger, opened for reading; a folder, or az://…."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from pydantic import ValidationError

from audiobatch.address import Address, Location, is_database, parse_location
from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError, StorageError
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.trust import check_trusted
from audiobatch.storage.lock import FolderLock
from audiobatch.storage.output import JOB_FILE, folder_with, storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

_LEDGER = "audiobatch.ledger"
_TRUSTED = "audiobatch.trusted"


class _Output(click.ParamType[Location]):
    name = "output"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        if isinstance(value, (Path, Address)):
            return value
        try:
            return parse_location(value)
        except ValueError as refused:
            raise ConfigError(str(refused)) from None


def folder_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument DIR, and `--ledger` for an output whose ledger was moved."""
    option = click.option(
        "--ledger",
        expose_value=False,
        metavar="TEXT",
        help="Where DIR's ledger is now: a file or a PostgreSQL database. [default: as its job.json says]",
        callback=lambda ctx, _, value: ctx.meta.__setitem__(_LEDGER, value),
    )
    trusted = click.option(
        "--trust-folder",
        is_flag=True,
        expose_value=False,
        help="DIR may say where to connect, though no run of yours made it; needed once.",
        callback=lambda ctx, _, value: ctx.meta.__setitem__(_TRUSTED, value),
    )
    return click.argument("folder", metavar="DIR", type=_Output())(option(trusted(command)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """An output that a run has made.

    Attributes:
        spec: the job as it last ran, its inputs as absolute paths.
        home: the folder of this machine that its runs lock.
    """

    path: Location
    spec: JobSpec
    ledger: Ledger
    storage: Storage
    spool: Spool
    home: Path


def spec_of(path: Location, *, sends: bool = False) -> JobSpec:
    """Return the job that an output was last run with.

    Args:
        path: the output.
        sends: calls will be made, to where the output says.

    Raises:
        ConfigError: it is no output of ours, or none of this user's and names addresses.
    """
    storage = storage_of(path)
    try:
        if not storage.exists(JOB_FILE):
            raise ConfigError(f"{path}: is no output folder of audiobatch (it has no {JOB_FILE})")
        job = orjson.loads(storage.read(JOB_FILE))
        values = {**job["spec"], "inputs": job["input_roots"], "output": str(path)}
        context = click.get_current_context(silent=True)
        meta = context.meta if context is not None else {}
        spec = JobSpec.model_validate(values)
        moved = meta.get(_LEDGER)
        if moved:  # named by the user
            spec = JobSpec.model_validate(values | {"ledger": moved})
        as_named = spec.model_copy(update={"ledger": None}) if moved else spec
        check_trusted(storage, as_named, sends=sends, said=bool(meta.get(_TRUSTED)))
        return spec
    except StorageError as failed:
        raise ConfigError(failed.message) from failed
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as failed:
        raise ConfigError(f"{path / JOB_FILE}: cannot be read: {failed}") from failed


@contextlib.contextmanager
def opened(path: Location) -> Iterator[Folder]:
    """Open an output for reading, also while a run works on it.

    Raises:
        ConfigError: it is no output of ours, or its ledger is not where it is said to be.
    """
    spec = spec_of(path)
    where = folder_with(path, spec.ledger)
    if not is_database(where.ledger) and not Path(where.ledger).exists():
        at = (
            f" at {where.ledger}; name it with --ledger if it was moved, or is on this machine"
            if spec.ledger
            else ""
        )
        raise ConfigError(f"{path}: has no ledger{at}")
    ledger = Ledger.at(where.ledger, where.address)
    try:
        yield Folder(
            path=path, spec=spec, ledger=ledger, storage=where.storage, spool=where.spool(), home=where.home
        )
    finally:
        ledger.close()


@contextlib.contextmanager
def alone(found: Folder, what: str) -> Iterator[None]:
    """Open an output that no run works on, and keep runs off it until the end of the block.

    Args:
        found: opened.
        what: the command, as a run that comes meanwhile is told.

    Raises:
        FolderInUse: a run is at work on it.
    """
    with FolderLock.acquire(found.home, what, shown=str(found.path)), found.ledger.reserved(what):
        yield


def at_work(found: Folder) -> str:
    """Return who works on an output now, as a person knows them; empty: nobody."""
    if found.ledger.is_shared:
        return ", ".join(found.ledger.reader.live_workers())
    holder = FolderLock.holder(found.home)
    return str(holder) if holder else ""
