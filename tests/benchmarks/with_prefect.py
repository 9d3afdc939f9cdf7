"""`prefect`: the same job through the flow and without it; and as one Prefect task an item, as one would by hand.

The loop's time runs from the first call to the last one's end, as the ledger has them, so that start-up (see
`start`) is out of it. Each way takes its turn in each round. What Prefect's server has on record is counted
afterwards, once it has had the time to record it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.loopback import fixed_server, job, prompts
from tests.benchmarks.prefect_server import started_server, task_states
from tests.benchmarks.session import AUDIOBATCH, Took, place, run
from tests.benchmarks.tables import Table, at_most

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CONCURRENCY = 64
LATENCY_S = 0.5
REPLY_BYTES = 9_600


@dataclass(frozen=True)
class Round:
    """One way's turn; `states` are those of its task runs on Prefect's server."""

    loop_s: float
    took: Took
    states: dict[str, int]


def ours(origin: str, inputs: Path, *flags: str, env: Mapping[str, str], home: Path | None) -> Round:
    output = place() / "prefect-out"
    shutil.rmtree(output, ignore_errors=True)
    began = time.time()
    command = [*AUDIOBATCH, "run", *job(origin, inputs, output, CONCURRENCY), "--reports", "none", "-q"]
    took = run([*command, "--json", *flags], env=env)
    summary = json.loads(took.out.splitlines()[-1])
    assert summary["succeeded"] == summary["items"], summary
    return Round(loop_s(output), took, task_states(home, since=began) if home else {})


def loop_s(output: Path) -> float:
    """From the first call to the last one's end."""
    query = "SELECT min(started_at), max(finished_at) FROM attempts"
    with contextlib.closing(sqlite3.connect(output / "ledger.db")) as ledger:
        first, last = (datetime.fromisoformat(text) for text in ledger.execute(query).fetchone())
    return (last - first).total_seconds()


def task_an_item(origin: str, inputs: Path, *, env: Mapping[str, str], home: Path) -> Round:
    output = place() / "prefect-out"
    shutil.rmtree(output, ignore_errors=True)
    began = time.time()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.benchmarks.task_an_item",
        origin,
        inputs,
        output,
    ]
    took = run([*command, str(CONCURRENCY)], env=env)
    states = task_states(home, since=began)
    return Round(json.loads(took.out.strip().splitlines()[-1])["loop_s"], took, states)


def benchmark(*, tiny: bool) -> Iterator[Table]:
    items, rounds = (12, 1) if tiny else (5000, 2)
    server = started_server()
    found: dict[str, list[Round]] = {"without": [], "started": [], "embedded": []}
    inputs = prompts(place() / "prefect-prompts", items)
    with fixed_server(reply_bytes=REPLY_BYTES, latency_s=0.05 if tiny else LATENCY_S) as origin:
        for _ in range(rounds):
            found["without"].append(ours(origin, inputs, "--no-prefect", env={}, home=None))
            found["started"].append(ours(origin, inputs, env=server.env, home=server.home))
            if not tiny:  # `start` has it
                found["embedded"].append(ours(origin, inputs, env={}, home=place() / "prefect"))
        found["task"] = [task_an_item(origin, inputs, env=server.env, home=server.home)]
    shutil.rmtree(inputs)

    table = Table(
        "prefect",
        f"{items:,} items, {CONCURRENCY} in flight, {LATENCY_S} s latency, 13 KB replies; median of {rounds}",
        ["", "loop, s", "× without", "aim", "CPU s", "task runs", "not completed", "aim"],
    )
    titles = {
        "without": "`run --no-prefect`",
        "started": "`run`, server running",
        "embedded": "`run`, embedded server",
        "task": "by hand: one Prefect task an item (one round)",
    }
    beside_s = statistics.median(round_.loop_s for round_ in found["without"])
    for name, title in titles.items():
        if not found[name]:
            continue
        took_s = statistics.median(item.loop_s for item in found[name])
        cpu_s = statistics.median(item.took.cpu_s for item in found[name])
        states: dict[str, int] = {}
        for item in found[name]:
            for state, count in item.states.items():
                states[state] = states.get(state, 0) + count
        lost = sum(count for state, count in states.items() if state != "COMPLETED")
        on_server = name != "without"
        ours_on_it = name in ("started", "embedded")
        table.add(
            title,
            f"{took_s:.1f}",
            f"{took_s / beside_s:.2f}",
            at_most(took_s / beside_s, 1.1) if ours_on_it else "",
            f"{cpu_s:.1f}",
            f"{sum(states.values()) // len(found[name]):,}" if on_server else "",
            f"{lost}" if on_server else "",
            at_most(lost, 0) if ours_on_it else "",
        )
    table.notes.append(
        "CPU is of the whole process, start and reports included; on the embedded server, the server's too. "
        "By hand nothing is written but the sound: no ledger, no checks, no flush."
    )
    yield table
