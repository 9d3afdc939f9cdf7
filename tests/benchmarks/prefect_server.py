"""A Prefect server as a user has it started, on a home of its own; and what it has on record of a flow run."""

from __future__ import annotations

import atexit
import contextlib
import functools
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.session import environment, place

DEADLINE_S = 600.0
RECORDED_S = 90.0


@dataclass(frozen=True)
class PrefectServer:
    """One that is ready."""

    api_url: str
    home: Path

    @property
    def env(self) -> dict[str, str]:
        """For those who run flows on it."""
        return {"PREFECT_API_URL": self.api_url, "PREFECT_HOME": str(place() / "prefect")}


@functools.cache
def started_server() -> PrefectServer:
    """`prefect server start`, with nothing set but its port; it ends with this process."""
    home = place() / "prefect-server"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (place() / "prefect-server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment({"PREFECT_HOME": str(home)}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def end() -> None:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    atexit.register(end)
    api_url = f"http://127.0.0.1:{port}/api"
    ends_s = time.monotonic() + DEADLINE_S
    open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    while True:
        with contextlib.suppress(OSError), open_directly(f"{api_url}/health", timeout=5):
            return PrefectServer(api_url, home)
        if server.poll() is not None or time.monotonic() > ends_s:
            raise RuntimeError(f"Prefect's server did not start: see {log.name}")
        time.sleep(0.1)


def task_states(home: Path, *, since: float, patience_s: float = RECORDED_S) -> dict[str, int]:
    """Task runs begun since a moment, by state; asked until they are settled, or patience ends.

    The server records states after the flow has ended, so a count too soon would take late ones for lost ones.
    """
    ends_s = time.monotonic() + patience_s
    before: dict[str, int] = {}
    while True:
        states = _states(home / "prefect.db", since)
        settled = states == before and not set(states) & {"RUNNING", "PENDING"}
        if settled or time.monotonic() > ends_s:
            return states
        before = states
        time.sleep(1.5)


def _states(database: Path, since: float) -> dict[str, int]:
    query = (
        "SELECT coalesce(state_type, 'none'), count(*) FROM task_run "
        "WHERE strftime('%s', created) >= ? GROUP BY 1"
    )
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return dict(connection.execute(query, (str(int(since)),)).fetchall())
