"""`job.json`: a folder's job, where its inputs are, and what ran it. It also marks the folder as ours."""

from __future__ import annotations

import importlib.metadata
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from pipeline.discover import JOB_FILE
from pipeline.ledger_address import is_database

if TYPE_CHECKING:
    from pipeline.jobspec import JobSpec
    from pipeline.store.storage import LocalStorage

_SHOWN_VERSIONS = ("audiobatch", "openai", "prefect", "pandas")


def write_job_file(storage: LocalStorage, spec: JobSpec) -> None:
    """Write the effective job. It holds no secret: a JobSpec has none."""
    inputs = [one if one == "-" else str(Path(one).resolve()) for one in spec.inputs]
    job = {
        "job_id": job_id(storage.root) or secrets.token_hex(8),
        "spec": spec.model_dump(mode="json") | {"ledger": _from_anywhere(spec.ledger)},
        "input_roots": inputs,
        "versions": {name: importlib.metadata.version(name) for name in _SHOWN_VERSIONS}
        | {"python": ".".join(map(str, sys.version_info[:3]))},
    }
    storage.write(JOB_FILE, orjson.dumps(job, option=orjson.OPT_INDENT_2))


def _from_anywhere(ledger: str | None) -> str | None:
    """The ledger's place, as commands that run in another folder find it."""
    return ledger if ledger is None or is_database(ledger) else str(Path(ledger).resolve())


def job_id(folder: Path) -> str:
    """The folder's own id: the same for every run on it, wherever it is moved to; empty before the first."""
    try:
        found = orjson.loads((folder / JOB_FILE).read_bytes()).get("job_id")
    except (OSError, orjson.JSONDecodeError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""
