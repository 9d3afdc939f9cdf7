"""One real Prefect server for the tests of the flows in this process, in a home of its own, started on demand."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest import mock

from audiobatch_flows.server import EmbeddedServer
from tests import flows_engine

#: What Prefect itself leaves behind, whatever runs on it.
WARNINGS = ("ignore:unclosed <socket:ResourceWarning", "ignore:unclosed transport:ResourceWarning")


@functools.cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="audiobatch-test-prefect-")  # removed with the process


def home() -> Path:
    """Return the folder of Prefect's settings and database for this process."""
    return Path(_home().name)


def started(**environment: str) -> EmbeddedServer:
    """A server that is starting; this process's environment stays as it is."""
    with mock.patch.dict(os.environ, {"PREFECT_HOME": str(home()), **environment}):
        os.environ.pop("PREFECT_API_URL", None)
        server = EmbeddedServer()
        server.start()
    return server


@functools.cache
def pair() -> tuple[EmbeddedServer, EmbeddedServer]:
    """Two servers that were started at the same time on a home that had no database yet."""
    return started(), started()


async def url() -> str:
    """Where the shared server answers."""
    await pair()[0].wait_healthy()
    return pair()[0].api_url


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Point Prefect in this process at the shared server, and the flows at the stand-in of the engine."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from audiobatch.execution import job

    address = await url()
    try:
        with (
            mock.patch.object(job, "Job", flows_engine.SlowJob),
            temporary_settings({PREFECT_API_URL: address, PREFECT_HOME: str(home())}),
        ):
            yield
    finally:
        # Prefect leaves sockets of its result store to the collector; they shall not be found in another's test.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def child_environment(address: str | None = None) -> dict[str, str]:
    """For a child that runs `tests.flows_child`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    added = {
        "PREFECT_HOME": str(home()),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    return {**kept, **added, **({"PREFECT_API_URL": address} if address else {})}


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], object], timeout_s: float = 120.0) -> bool:
    """Wait for what another process does."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
