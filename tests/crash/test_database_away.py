"""The ledger's PostgreSQL server goes away in mid-run: no paid reply is lost, and none is bought again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audiobatch.storage.spool import Spool
from audiobatch_emulator.process import EmulatorProcess
from tests.postgresql_server import PostgresqlServer
from tests.running import ROOT, azure, rows_of, run_job

ITEMS = 24
LEASE_S = 4.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as started:
        yield started


@pytest.fixture
def settings(server: PostgresqlServer, emulator: EmulatorProcess, tmp_path: Path) -> dict[str, Any]:
    if server.process is None:
        server.start()
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for number in range(ITEMS):
        (prompts / f"{number:02}.txt").write_text(f"Say the number {number}.")
    emulator.put_faults({"do": {"latency_s": 0.6}})
    return azure(
        emulator,
        inputs=[str(prompts)],
        output=str(tmp_path / "out"),
        ledger=server.url,
        lease_s=LEASE_S,
        max_concurrency=4,
    )


def when(emulator: EmulatorProcess, calls: int, act: Callable[[], object]) -> threading.Thread:
    """Do something once so many calls have come."""

    def wait() -> None:
        while len(emulator.journal()) < calls:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def billed(emulator: EmulatorProcess) -> int:
    return sum(record["billed"] for record in emulator.journal())


def test_one_that_is_back_after_seconds_costs_nothing_but_the_wait(
    server: PostgresqlServer, emulator: EmulatorProcess, settings: dict[str, Any]
) -> None:
    def away() -> None:
        server.stop()
        time.sleep(2.5)
        server.start()

    waits = when(emulator, 8, away)
    # On a busy machine the server takes seconds to start; a run that is silent past its lease stops.
    summary = run_job(**settings | {"lease_s": 60.0})
    waits.join()
    assert (summary.exit_code, summary.succeeded) == (0, ITEMS), summary.message
    assert billed(emulator) == ITEMS
    assert {row["status"] for row in rows_of(summary)} == {"succeeded"}


def lose_database(
    server: PostgresqlServer, emulator: EmulatorProcess, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> int:
    """A run whose database goes away for good; how many replies it has in the spool."""
    monkeypatch.setattr("audiobatch.ledger.database.LONGEST_OUTAGE_S", 0.5)
    stopped = when(emulator, 8, server.stop)
    summary = run_job(**settings)
    stopped.join()
    assert summary.exit_code == 2
    monkeypatch.setattr("audiobatch.ledger.database.LONGEST_OUTAGE_S", 120.0)
    server.start()
    return len(list(Spool(settings["output"]).folder.glob("*.reply")))


def test_what_this_machine_holds_in_its_spool_is_searched_before_an_item_is_sent_again(
    server: PostgresqlServer,
    emulator: EmulatorProcess,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = lose_database(server, emulator, settings, monkeypatch)
    assert kept > 0
    summary = run_job(**settings)  # at once: within the lease of the run that could not sign off
    assert (summary.exit_code, billed(emulator)) == (0, ITEMS)
    assert {row["status"] for row in rows_of(summary)} == {"succeeded"}
    assert sum(int(row["perhaps_billed"] or 0) for row in rows_of(summary)) == 0
    assert not list(Spool(settings["output"]).folder.glob("*.reply"))


@pytest.mark.parametrize("wait_s", [0.0, LEASE_S + 0.5])
def test_what_another_machine_may_hold_in_its_spool_is_not_sent_before_one_more_lease(
    wait_s: float,
    server: PostgresqlServer,
    emulator: EmulatorProcess,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    kept = lose_database(server, emulator, settings, monkeypatch)
    assert kept > 0
    fell_silent = time.monotonic()
    time.sleep(wait_s)  # within the lease of the run that fell silent, and behind it
    again: list[float] = []

    def watch() -> None:
        while billed(emulator) <= ITEMS:
            time.sleep(0.05)
        again.append(time.monotonic() - fell_silent)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    monkeypatch.setattr("platform.node", lambda: "another-machine")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another state"))
    summary = run_job(**settings)
    watching.join(5)
    # The machine with the spool does not come back: by the rule for unknown calls they are made again, announced.
    assert summary.exit_code == 0
    assert {row["status"] for row in rows_of(summary)} == {"succeeded"}
    assert again[0] > 2 * LEASE_S - 1.5
    assert billed(emulator) == ITEMS + kept
    assert sum(int(row["perhaps_billed"] or 0) for row in rows_of(summary)) == kept


def test_a_machine_that_is_back_within_that_time_brings_its_replies_home(
    server: PostgresqlServer,
    emulator: EmulatorProcess,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    lease_s = 15.0  # a process starts, and sends, within two of them, also on a busy machine
    settings |= {"lease_s": lease_s}
    kept = lose_database(server, emulator, settings, monkeypatch)
    assert kept > 0
    elsewhere = (
        "import platform; platform.node = lambda: 'another-machine'\n"
        "from audiobatch_flows.cli.main import main\n"
        "main()\n"
    )
    words = ["run", *settings["inputs"], "--no-prefect", "--max-concurrency", "4", "--lease", str(lease_s)]
    for name in ("endpoint", "deployment", "output", "ledger"):
        words += [f"--{name}", settings[name]]
    other = subprocess.Popen(
        [sys.executable, "-c", elsewhere, *words],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "another state")},
        cwd=ROOT,
    )
    try:
        while billed(emulator) < ITEMS - kept:
            time.sleep(0.05)
        summary = run_job(**settings)
        assert other.wait(120) == 0
    finally:
        other.kill()
        other.wait()
    assert (summary.exit_code, billed(emulator)) == (0, ITEMS)
    assert {row["status"] for row in rows_of(summary)} == {"succeeded"}
