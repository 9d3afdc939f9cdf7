"""`job.json`: an output's job, where its inputs are, and what ran it. It also marks the folder as ours."""

from __future__ import annotations

import importlib.metadata
import itertools
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from audiobatch.address import is_database
from audiobatch.errors import ConfigError, StorageError
from audiobatch.storage.output import JOB_FILE, with_full_paths
from audiobatch.storage.versions import RESULT_FOLDERS

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.storage.local import Storage

_SHOWN_VERSIONS = ("audiobatch", "openai", "prefect", "pandas")
_NOTED = "job_id"
_REPORTS = ("manifest.csv", "manifest.xlsx", "report.html", "manifest.jsonl", "manifest.parquet")


def write_job_file(storage: Storage, spec: JobSpec) -> None:
    """Write the effective job. It holds no secret: a JobSpec has none."""
    job = {
        "job_id": job_id(storage) or secrets.token_hex(8),
        "spec": spec.model_dump(mode="json")
        | {"ledger": _from_anywhere(spec.ledger), "prices": _from_anywhere(spec.prices)},
        "input_roots": [with_full_paths(path) for path in spec.inputs],
        "versions": {name: importlib.metadata.version(name) for name in _SHOWN_VERSIONS}
        | {"python": ".".join(map(str, sys.version_info[:3]))},
    }
    storage.write(JOB_FILE, orjson.dumps(job, option=orjson.OPT_INDENT_2))


def _from_anywhere(address: str | None) -> str | None:
    """Return the address of a file or database for commands that run in another folder."""
    return address if address is None or is_database(address) else str(Path(address).resolve())


def job_id(storage: Storage) -> str:
    """The output's own id: the same for every run on it, wherever it is moved to; empty before the first."""
    try:
        found = orjson.loads(storage.read(JOB_FILE)).get("job_id")
    except (StorageError, orjson.JSONDecodeError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""


def check_belongs(storage: Storage, ledger: Ledger, spec: JobSpec) -> None:
    """See that a ledger and an output belong together, before either is changed.

    Without it, a ledger that was lost, or a second machine that names the same path, which there is another file,
    would have everything bought anew and written over the first results; and a folder of the user's own would lose
    its files.

    Raises:
        ConfigError: the ledger is another output's, or a new one while results or a stranger's files are there.
    """
    theirs, ours = job_id(storage), ledger.reader.note(_NOTED)
    if theirs and ours and theirs != ours:
        which = spec.ledger or "there"
        raise ConfigError(
            f"the ledger {which} belongs to another output than {storage.root}: name the right one with "
            "--ledger, or another --output"
        )
    if ours or next(ledger.reader.all_outcomes(), None) is not None:
        return
    # Reports are made again from the ledger; where there never was one, they are somebody else's.
    reports = () if theirs else (name for name in _REPORTS if storage.exists(name))
    results = (path for folder in RESULT_FOLDERS for path in storage.walk(folder))
    there = next(itertools.chain(reports, results), "")
    if not there:
        return
    if not theirs:
        raise ConfigError(
            f"{storage.root}: {there} is there and was not made by audiobatch; it would be overwritten. Name "
            "another --output"
        )
    lost = (
        f"the ledger {spec.ledger} is new and knows none of them; all would be bought again. Name the ledger that "
        "they are recorded in (job.json there says which)"
        if spec.ledger
        else "the ledger that they are recorded in (ledger.db) is gone; all would be bought again. Put it back"
    )
    raise ConfigError(f"{storage.root}: results are there already, and {lost}, or name another --output")


def note_belonging(storage: Storage, ledger: Ledger) -> None:
    """Have the ledger know its output."""
    if (name := job_id(storage)) and ledger.reader.note(_NOTED) != name:
        ledger.writer.put_note(_NOTED, name)
