"""All that this package knows of Prefect's private parts. Source: prefect 3.8.8 (2026-11).

    what                                    where in Prefect            why
    order in which settings are found       settings/sources.py         who is asked for the user's own server must
                                                                        not import Prefect: that takes a second, and
                                                                        reads the settings, which a run then changes
    PREFECT__SERVER_EPHEMERAL, …_FINAL      server/api/server.py        no scheduler in the server of one run; frees
                                                                        what only a second server would need
    PREFECT__FLOW_RUN_ID                    engine.py                   for a process that ends with one flow run
    alembic_version in its database         server/database/            its own check for migrations takes half a
                                                                        second to seconds at every start
    _scheduled_run_poller._resolve_starter  runner/runner.py            a flow run is checked before a process with
    EngineCommandStarter._entrypoint        runner/_starter_engine.py   the credentials starts it; no public hook

Nothing here imports Prefect, except where it is given an object of Prefect's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.schemas.objects import FlowRun
    from prefect.runner import Runner
    from prefect.runner._starter_engine import EngineCommandStarter

#: For a server whose settings are all in its environment.
SERVER_FINAL = {"PREFECT__SERVER_FINAL": "1"}
#: For the server of one run: no pages, no scheduler, no marking of late runs.
EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", **SERVER_FINAL}
_API_URL = "PREFECT_API_URL"


def is_child_of_runner() -> bool:
    """Return whether Prefect started this process for one flow run: `audiobatch serve` or a worker."""
    return bool(os.environ.get("PREFECT__FLOW_RUN_ID"))


def api_url() -> str | None:
    """Return the address of the user's own server; None where they have named none.

    Looks where Prefect does, in its order: the environment, `.env`, `prefect.toml` and `pyproject.toml` of the
    working folder, and the active profile.
    """
    folder = Path.cwd()
    found = (
        os.environ.get(_API_URL)
        or _dotenv(folder).get(_API_URL)
        or _within(_toml(folder / "prefect.toml"), "api", "url")
        or _within(_toml(folder / "pyproject.toml"), "tool", "prefect", "api", "url")
        or _profile(folder).get(_API_URL)
    )
    return str(found) if found else None


def _profile(folder: Path) -> dict[str, Any]:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = (
        os.environ.get("PREFECT_PROFILES_PATH")
        or _dotenv(folder).get("PREFECT_PROFILES_PATH")
        or _within(_toml(folder / "prefect.toml"), "profiles_path")
        or _within(_toml(folder / "pyproject.toml"), "tool", "prefect", "profiles_path")
        or home / "profiles.toml"
    )
    profiles = _toml(Path(path).expanduser())
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    profile = _within(profiles, "profiles", str(active))
    return profile if isinstance(profile, dict) else {}


def _dotenv(folder: Path) -> dict[str, str | None]:
    if not (folder / ".env").is_file():
        return {}
    from dotenv import dotenv_values

    return dict(dotenv_values(folder / ".env"))


def _toml(path: Path) -> dict[str, Any]:
    """Empty where there is none, or where it cannot be read: Prefect says so itself later."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _within(values: dict[str, Any], *keys: str) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def sqlite_path(connection_url: str) -> Path | None:
    """Return the file that a SQLAlchemy address names; None for another database, or one in memory."""
    scheme, _, rest = connection_url.partition("://")
    path = unquote(rest.removeprefix("/").partition("?")[0])
    if not scheme.startswith("sqlite") or not path or ":memory:" in rest or path.startswith("file:"):
        return None
    return Path(path)


def is_migrated(database: Path, version: str) -> bool:
    """Return whether `database` is at the revision that Prefect `version` would migrate it to.

    Alembic stores the revision in the database. At which one a version of Prefect ends is not known without
    importing its migrations, so it is recorded in a file beside the database after a start that did migrate. A
    database that was deleted, replaced, reset or migrated by another version has another revision than the file,
    and is migrated again.
    """
    try:
        stamp = json.loads(_stamp(database).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    revision = _revision(database)
    return revision is not None and stamp == {"prefect": version, "revision": revision}


def record_migration(database: Path, version: str) -> None:
    """Record the revision that Prefect `version` ends at. Failing costs only a slower next start."""
    with contextlib.suppress(OSError):
        text = json.dumps({"prefect": version, "revision": _revision(database)})
        beside = _stamp(database).with_suffix(f".{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(_stamp(database))


def _stamp(database: Path) -> Path:
    return database.with_name(f"{database.name}.audiobatch-revision")


def _revision(database: Path) -> str | None:
    """Alembic's revision, read without creating the file; None where there is none."""
    if not database.is_file():
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


@dataclass(frozen=True, slots=True)
class _CheckedStarter:
    """Starts a flow run by the entrypoint that `entrypoint_of` returns, or not at all."""

    entrypoint_of: Callable[[FlowRun], Awaitable[str]]
    starter: EngineCommandStarter

    async def start(self, flow_run: FlowRun, task_status: Any = None) -> None:
        """Start the flow run's process; the runner always names the `task_status`."""
        # The engine runs an entrypoint that is given instead of the deployment's own, and no pull steps.
        self.starter._entrypoint = await self.entrypoint_of(flow_run)  # noqa: SLF001
        await self.starter.start(flow_run, task_status=task_status)


def check_before_start(runner: Runner, entrypoint_of: Callable[[FlowRun], Awaitable[str]]) -> None:
    """Have a runner that has begun ask, before it starts a flow run, which entrypoint it is to start.

    Args:
        entrypoint_of: its exception keeps the run from starting.
    """
    from prefect.runner._starter_engine import EngineCommandStarter

    poller = runner._scheduled_run_poller  # noqa: SLF001
    resolve = poller._resolve_starter  # noqa: SLF001

    def checked(flow_run: FlowRun) -> _CheckedStarter:
        starter = resolve(flow_run)
        assert isinstance(starter, EngineCommandStarter)
        return _CheckedStarter(entrypoint_of, starter)

    poller._resolve_starter = checked  # noqa: SLF001
