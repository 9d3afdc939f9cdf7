"""`durability`: what it costs that nothing recorded is lost, at a steady pace.

Whole jobs at a given rate: flushed as they are (many commits share a transaction and its flush), with a transaction
an item and step, and with no flush at all, neither of the ledger nor of files. Then the ledger alone, unpaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.ledger import group_commit
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.rows import Attempt, AttemptEnd
from audiobatch.model import Outcome, Status
from tests.benchmarks.loopback import fixed_server, prompts
from tests.benchmarks.session import place, run
from tests.benchmarks.tables import Table, at_most

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAYS = {
    "none": "no flush at all",
    "group": "group commit, files flushed (as it is)",
    "each": "a transaction and a flush an item and step",
}
LATENCY_S = 0.1
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Round:
    """One way's turn; an item's time is from its intent to its outcome."""

    loop_s: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float


def paced(way: str, origin: str, inputs: Path, per_s: int) -> Round:
    output = place() / "durable-out"
    shutil.rmtree(output, ignore_errors=True)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.benchmarks.durable_run",
        way,
        origin,
        inputs,
        output,
    ]
    found = json.loads(run([*command, str(per_s)]).out.strip().splitlines()[-1])
    with contextlib.closing(sqlite3.connect(output / "ledger.db")) as ledger:
        times = [
            [datetime.fromisoformat(text) for text in pair]
            for pair in ledger.execute("SELECT started_at, finished_at FROM attempts")
        ]
    took_ms = sorted((end - start).total_seconds() * 1000 for start, end in times)
    return Round(
        loop_s=(max(end for _, end in times) - min(start for start, _ in times)).total_seconds(),
        cpu_ms=found["cpu_s"] / found["items"] * 1000,
        p50_ms=statistics.median(took_ms),
        p99_ms=took_ms[int(len(took_ms) * 0.99)],
    )


def benchmark(*, tiny: bool) -> Iterator[Table]:
    per_s, items, rounds = (50, 20, 1) if tiny else (200, 4000, 2)
    inputs = prompts(place() / "durable-prompts", items)
    found: dict[str, list[Round]] = {way: [] for way in WAYS}
    with fixed_server(reply_bytes=9_600, latency_s=LATENCY_S) as origin:
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(paced(way, origin, inputs, per_s))
    shutil.rmtree(inputs)
    table = Table(
        "durability",
        f"{items:,} items at {per_s} a second, {LATENCY_S} s latency, 13 KB replies; median of {rounds}",
        ["", "items/s", "time × none", "aim", "CPU ms/item", "CPU × none", "item p50, ms", "item p99, ms"],
    )
    middle = {
        way: Round(
            *(
                statistics.median(getattr(run, name) for run in runs)
                for name in ("loop_s", "cpu_ms", "p50_ms", "p99_ms")
            )
        )
        for way, runs in found.items()
    }
    none = middle["none"]
    for way, title in WAYS.items():
        one = middle[way]
        table.add(
            title,
            f"{items / one.loop_s:.0f}",
            f"{one.loop_s / none.loop_s:.2f}",
            at_most(one.loop_s / none.loop_s, 1.1) if way == "group" else "",
            f"{one.cpu_ms:.2f}",
            f"{one.cpu_ms / none.cpu_ms:.2f}",
            f"{one.p50_ms:.0f}",
            f"{one.p99_ms:.0f}",
        )
    yield table
    yield ledger_alone(200 if tiny else 4000, rounds)


def ledger_alone(items: int, rounds: int) -> Table:
    """Intent and outcome of each item, 64 at once, as fast as they go."""
    ways = {"group": group_commit.MAX_BATCH, "each": 1}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, batch in ways.items():
            before, group_commit.MAX_BATCH = group_commit.MAX_BATCH, batch
            try:
                found[way].append(asyncio.run(_recorded(items, place() / f"ledger-{way}-{number}.db")))
            finally:
                group_commit.MAX_BATCH = before
    table = Table(
        "durability",
        f"the ledger alone, intent and outcome of {items:,} items, 64 at once; median of {rounds}",
        ["", "items/s", "CPU ms/item"],
    )
    for way in ways:
        walls, cpus = zip(*found[way], strict=True)
        per_s = items / statistics.median(walls)
        table.add(WAYS[way], f"{per_s:,.0f}", f"{statistics.median(cpus) / items * 1000:.3f}")
    return table


async def _recorded(items: int, path: Path) -> tuple[float, float]:
    ledger = Ledger.open(path)
    queue = iter(range(items))

    async def work() -> None:
        for number in queue:
            await ledger.writer.record_intent(_attempt(number))
            await ledger.writer.record_outcome(*_end(number))

    try:
        began_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(work() for _ in range(64)))
        return time.monotonic() - began_s, time.process_time() - cpu_s
    finally:
        ledger.close()


def _attempt(number: int) -> Attempt:
    return Attempt(
        attempt_id=f"run-{number}",
        item_id=f"{number:06}.txt",
        turn=1,
        fingerprint="f" * 64,
        run_id="run",
        number=number,
        started_at=NOW,
        deployment="gpt-audio-1.5",
        provider="azure",
        transport="chat",
        model="gpt-audio-1.5",
        voice="alloy",
        format="wav",
        prompt=f"Say something about the number {number}.",
        input_sha256="a" * 64,
        settings_key="k" * 64,
    )


def _end(number: int) -> tuple[Outcome, AttemptEnd]:
    outcome = Outcome(
        item_id=f"{number:06}.txt",
        turn=1,
        fingerprint="f" * 64,
        status=Status.SUCCEEDED,
        run_id="run",
        started_at=NOW,
        finished_at=NOW,
        transcript="this is what was said",
    )
    return outcome, AttemptEnd(attempt_id=f"run-{number}", state=Status.SUCCEEDED, finished_at=NOW)
