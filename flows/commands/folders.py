"""An output folder named on the command line: its job, its ledger, opened for reading."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from pydantic import ValidationError

from pipeline.discover import JOB_FILE
from pipeline.errors import ConfigError
from pipeline.jobspec import JobSpec
from pipeline.store.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """An output folder that a run has made.

    Attributes:
        spec: the job as it last ran, its inputs as absolute paths.
    """

    path: Path
    spec: JobSpec
    ledger: Ledger


def spec_of(path: Path) -> JobSpec:
    """The job that a folder was last run with.

    Raises:
        ConfigError: it is no output folder of ours.
    """
    try:
        job = orjson.loads((path / JOB_FILE).read_bytes())
        values = {**job["spec"], "inputs": job["input_roots"], "output": str(path)}
        return JobSpec.model_validate(values)
    except FileNotFoundError:
        raise ConfigError(f"{path}: is no output folder of audiobatch (it has no {JOB_FILE})") from None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as failed:
        raise ConfigError(f"{path / JOB_FILE}: cannot be read: {failed}") from failed


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """A folder for reading, also while a run works on it.

    Raises:
        ConfigError: it is no output folder of ours.
    """
    spec = spec_of(path)
    place = Path(spec.ledger) if spec.ledger else path / "ledger.db"
    if not place.exists():
        raise ConfigError(f"{path}: has no ledger" + (f" at {place}" if spec.ledger else ""))
    ledger = Ledger.open(place)
    try:
        yield Folder(path=path, spec=spec, ledger=ledger)
    finally:
        ledger.close()
