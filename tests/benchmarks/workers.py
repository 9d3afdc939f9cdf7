"""`workers`: several `audiobatch run` processes on one PostgreSQL ledger, beside one.

All start at once with the same command. What counts is the time in which every one of them sends: from the first
call of the last to join to the last call of the first to end; calls that ended in it, by the second. So their
start, and the seconds in which they make room for each other, are out of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from audiobatch.ledger.engine import schema_of
from tests.benchmarks.loopback import fixed_server, job, prompts
from tests.benchmarks.session import AUDIOBATCH, ROOT, environment, place
from tests.benchmarks.tables import Table, at_least
from tests.postgresql_server import PostgresqlServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE_S = 900


@dataclass(frozen=True)
class Work:
    """What binds, and the aim for so many workers: their speed by that of one."""

    title: str
    reply_bytes: int
    latency_s: float
    concurrency: int
    items_each: int
    aims: dict[int, float]


FULL = (
    Work("latency binds", 9_600, 1.0, 16, 400, {2: 1.9, 4: 3.8}),
    Work("CPU binds", 480_000, 0.0, 16, 1000, {2: 1.8}),
)
TINY = (Work("latency binds", 9_600, 0.2, 4, 30, {2: 1.9}),)


@dataclass(frozen=True)
class Sent:
    """Calls a second while all were sending; and whether each item was sent once."""

    per_s: float
    together_s: float
    cpu_ms: float
    calls: int


def run_workers(count: int, work: Work, server: PostgresqlServer, origin: str, inputs: Path) -> Sent:
    output = place() / f"workers-{count}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    items = len(list(inputs.iterdir()))
    command = [*AUDIOBATCH, "run", *job(origin, inputs, output, work.concurrency), "--ledger", server.url]
    command += ["--reports", "none", "--no-prefect", "-q"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((place() / "workers.log").open("ab"))
        workers = [
            subprocess.Popen(
                command, env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            for _ in range(count)
        ]
        cpu_s = 0.0
        for worker in workers:
            _, status, usage = os.wait4(worker.pid, 0)
            worker.returncode = os.waitstatus_to_exitcode(status)
            cpu_s += usage.ru_utime + usage.ru_stime
    if any(worker.returncode for worker in workers):
        raise RuntimeError((place() / "workers.log").read_text(errors="replace")[-4000:])
    with server.connect() as connection:
        query = f'SELECT run_id, started_at, finished_at FROM "{schema_of(str(output.resolve()))}".attempts'
        calls = [
            (run, datetime.fromisoformat(start), datetime.fromisoformat(end))
            for run, start, end in connection.execute(query).fetchall()
        ]
    runs = {run for run, _, _ in calls}
    first = max(min(start for run, start, _ in calls if run == trial) for trial in runs)
    last = min(max(end for run, _, end in calls if run == trial) for trial in runs)
    together_s = (last - first).total_seconds()
    ended = sum(1 for _, _, end in calls if first < end <= last)
    # One that came when all was sent has sent nothing: then there is no time together.
    per_s = ended / together_s if len(runs) == count and together_s > 0 else float("nan")
    return Sent(per_s, together_s, cpu_s / items * 1000, len(calls))


def benchmark(*, tiny: bool) -> Iterator[Table]:
    counts = (1, 2) if tiny else (1, 2, 4)
    with PostgresqlServer() as server:
        for work in TINY if tiny else FULL:
            with fixed_server(reply_bytes=work.reply_bytes, latency_s=work.latency_s) as origin:
                found: dict[int, Sent] = {}
                for count in counts:
                    inputs = prompts(place() / f"worker-prompts-{count}", work.items_each * count)
                    found[count] = run_workers(count, work, server, origin, inputs)
                    shutil.rmtree(inputs)
            table = Table(
                "workers",
                f"{work.title}: {work.items_each} items a worker, {work.concurrency} in flight each, "
                f"{work.reply_bytes * 4 / 3000:.0f} KB replies, {work.latency_s} s latency",
                [
                    "workers",
                    "calls/s",
                    "× one",
                    "aim",
                    "CPU ms/item",
                    "calls beyond one an item",
                    "together, s",
                ],
            )
            for count, sent in found.items():
                ratio = sent.per_s / found[1].per_s
                table.add(
                    f"{count}",
                    f"{sent.per_s:.1f}",
                    f"{ratio:.2f}",
                    at_least(ratio, work.aims[count]) if count in work.aims else "",
                    f"{sent.cpu_ms:.1f}",
                    f"{sent.calls - work.items_each * count}",
                    f"{sent.together_s:.0f}",
                )
            yield table
