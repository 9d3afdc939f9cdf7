"""An output, wherever it is: its storage, its ledger, and the folder of this machine for what cannot be remote.

| output | ledger | lock, run log, spool |
|---|---|---|
| a local folder | `ledger.db` in it, or `--ledger` | in the folder; the spool in the user's state folder |
| az://, s3://, … | `--ledger PATH` | in `PATH.files/`, beside the ledger |
| az://, s3://, … | `--ledger postgresql+psycopg://…` | in the user's state folder |
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import platformdirs

from audiobatch.address import Address, Location, is_database, is_remote, parse_location
from audiobatch.errors import ConfigError
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.spool import Spool

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.storage.local import Storage


#: In every output: the job that wrote it. A folder that holds one is no input.
JOB_FILE = "job.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """A job's output folder, its storage and its ledger.

    Attributes:
        home: a folder of this machine: the output itself, or the one that holds the lock and logs of a remote
        output. ledger: a file, or the address of a database.
    """

    location: Location
    storage: Storage
    home: Path
    ledger: str

    @property
    def is_remote(self) -> bool:
        """Whether it is in an object store."""
        return isinstance(self.location, Address)

    @property
    def address(self) -> str:
        """Its location in full: the same for every run on it, whatever folder the run is started in."""
        return str(_full(self.location))

    def spool(self) -> Spool:
        """Return the spool of replies that could not be written to this output."""
        return Spool(str(self.location), base=self.home) if self.is_remote else Spool(self.home)


def output_folder(spec: JobSpec) -> OutputFolder:
    """Return the job's output folder.

    Raises:
        ConfigError: as `output_of` and `folder_with`.
    """
    return folder_with(output_of(spec), spec.ledger)


def output_of(spec: JobSpec) -> Location:
    """Return the location of the job's output.

    Raises:
        ConfigError: no input is given, it is an input itself, or it must be named.
    """
    if not spec.inputs:
        raise ConfigError("no input given: name a folder, a file, or '-' for JSON Lines on standard input")
    if spec.output is not None:
        output = parse_location(spec.output)
    else:
        default = output_name(spec.inputs)
        if default is None:
            raise ConfigError("several inputs, or '-', need --output: the folder that results go to")
        output = Path(default)
    full = _full(output)
    if any(given != "-" and _full(parse_location(given)) == full for given in spec.inputs):
        raise ConfigError(f"{output}: is both input and output; name another --output")
    return output


def folder_with(output: Location, ledger: str | None) -> OutputFolder:
    """Return an output folder with its ledger.

    Raises:
        ConfigError: a store without a ledger elsewhere, or one that cannot be reached from here.
    """
    if isinstance(output, Path):
        return OutputFolder(
            location=output,
            storage=LocalStorage(output),
            home=output,
            ledger=ledger or str(output / "ledger.db"),
        )
    if ledger is None:
        raise ConfigError(
            f"{output}: an object store cannot hold the job's ledger (an SQLite file needs a disk). Name a file of "
            "this machine with --ledger PATH and keep it as long as the results, or a PostgreSQL database with "
            "--ledger postgresql+psycopg://USER@HOST/DATABASE"
        )
    from audiobatch.storage.remote import FsspecStorage  # fsspec is not for every run

    return OutputFolder(
        location=output, storage=FsspecStorage(output), home=_home(output, ledger), ledger=ledger
    )


def storage_of(location: Location) -> Storage:
    """Return the storage at a location, without its ledger.

    Raises:
        ConfigError: a store that cannot be reached from here.
    """
    if isinstance(location, Path):
        return LocalStorage(location)
    from audiobatch.storage.remote import FsspecStorage

    return FsspecStorage(location)


def with_full_paths(given: str) -> str:
    """Return an input as `job.json` stores it: the same whatever folder a later command is run in."""
    return given if given == "-" or is_remote(given) else str(_full(parse_location(given)))


def _full(location: Location) -> Location:
    return location.resolve() if isinstance(location, Path) else location


def _home(output: Address, ledger: str) -> Path:
    if not is_database(ledger):
        return Path(f"{ledger}.files")
    key = hashlib.sha256(f"{output} {ledger}".encode()).hexdigest()[:32]
    return platformdirs.user_state_path("audiobatch", appauthor=False) / "outputs" / key


def output_name(inputs: tuple[str, ...]) -> PurePosixPath | None:
    """Return the default output folder of these inputs; None where there is no single name to take."""
    if len(inputs) != 1 or inputs[0] == "-":
        return None
    return PurePosixPath("outputs") / _full(parse_location(inputs[0])).name
