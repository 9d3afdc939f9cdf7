"""Whether a folder's own word is taken for where this user's credentials go.

`retry DIR` sends to the endpoint that the folder's `job.json` names, and every command on a folder connects to the
database that it names. A folder from somebody else could name theirs. So each run notes, in the user's state
folder, what its output named; another folder, or one that names something else by now, is trusted once it is said
to be.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import orjson
import platformdirs

from audiobatch.address import is_database
from audiobatch.errors import ConfigError, StorageError, shown
from audiobatch.ledger.job_file import job_id
from audiobatch.storage.local import LocalStorage

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.storage.local import Storage

#: What the user's own environment names is theirs.
_OWN = ("AZURE_OPENAI_ENDPOINT", "OPENAI_BASE_URL")


def trust(storage: Storage, spec: JobSpec) -> None:
    """Note what an output names: a run of this user wrote it, or they have said that it is right.

    Raises:
        StorageError: the state folder cannot be written.
    """
    notes, name = _notes(), _name(storage)
    note = {"output": str(storage.root), **_named(spec)}
    if _noted(notes, name) != note:
        notes.write(name, orjson.dumps(note, option=orjson.OPT_INDENT_2))


def check_trusted(storage: Storage, spec: JobSpec, *, sends: bool, said: bool) -> None:
    """See that an output may say where to connect.

    Args:
        storage: the output.
        spec: its job, as it is read from there.
        sends: calls are made, to the endpoints that it names; else only its ledger is opened.
        said: `--trust-folder`.

    Raises:
        ConfigError: it is none of this user's, or names other addresses by now.
    """
    named = _named(spec)
    strange = [address for address in _addresses(spec, sends=sends) if address not in _own_addresses()]
    if not strange:
        return
    if said:
        trust(storage, spec)
        return
    noted = _noted(_notes(), _name(storage))
    if noted is not None and all(noted.get(key) == value for key, value in named.items()):
        return
    why = (
        "no run of yours made it"
        if noted is None
        else "it names another address than when a run of yours did"
    )
    endpoints = ", ".join(map(shown, named["endpoints"])) or "that of the environment"
    ledger = shown(named["ledger"] or "a file in it")
    raise ConfigError(
        f"{shown(storage.root)}: {why}. Its endpoint: {endpoints}; its ledger: {ledger}. Your credentials would go "
        "there. If that is right, add --trust-folder, once"
    )


def _named(spec: JobSpec) -> dict[str, Any]:
    """The endpoints and the ledger that a job names."""
    endpoints = [spec.endpoint, *(deployment.endpoint for deployment in spec.deployments)]
    return {
        "endpoints": sorted({endpoint for endpoint in endpoints if endpoint}),
        "ledger": spec.ledger if spec.ledger and is_database(spec.ledger) else None,
    }


def _addresses(spec: JobSpec, *, sends: bool) -> list[str]:
    named = _named(spec)
    endpoints: list[str] = named["endpoints"] if sends and spec.provider != "local" else []
    return [*endpoints, *([named["ledger"]] if named["ledger"] else [])]


def _own_addresses() -> frozenset[str]:
    return frozenset(value for name in _OWN if (value := os.environ.get(name)))


def _notes() -> LocalStorage:
    return LocalStorage(platformdirs.user_state_path("audiobatch", appauthor=False) / "folders", private=True)


def _name(storage: Storage) -> str:
    """By the output's own id, which it keeps wherever it is moved to; by its place where it has none."""
    identity = job_id(storage) or str(storage.root)
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".json"


def _noted(notes: LocalStorage, name: str) -> dict[str, Any] | None:
    try:
        found = orjson.loads(notes.read(name))
    except (StorageError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
