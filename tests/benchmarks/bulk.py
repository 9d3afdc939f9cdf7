"""`memory` and `growth`: the same job with a thousand, ten thousand and a hundred thousand recordings.

Both tables, and the folders that `resume` works on, come of the same runs: each size is run once. All reports are
on, as they are by default. Recordings are of 0.3 s and replies tiny, so that what is measured is what an item costs
whatever its size.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.loopback import fixed_server, recordings
from tests.benchmarks.session import place, run
from tests.benchmarks.tables import Table, at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = (1_000, 10_000, 100_000)
TINY = (30, 60)
PHASES = ("find and plan", "send", "report")
CONCURRENCY = 64
LATENCY_S = 0.02
REPLY_BYTES = 960


@dataclass(frozen=True)
class Bulk:
    """One size's run."""

    items: int
    inputs: Path
    output: Path
    phases: dict[str, dict[str, float]]

    def each_ms(self, kind: str, *phases: str) -> float:
        return sum(self.phases[name][kind] for name in phases or PHASES) / self.items * 1000

    @property
    def peak_mb(self) -> float:
        return max(phase["peak_mb"] for phase in self.phases.values())


@functools.cache
def bulk(items: int) -> Bulk:
    """The run of so many recordings; made when it is first asked for, and kept till this process ends."""
    inputs, output = place() / f"recordings-{items}", place() / f"out-{items}"
    recordings(inputs, items)
    with fixed_server(reply_bytes=REPLY_BYTES, latency_s=LATENCY_S) as origin:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.benchmarks.bulk_run",
            origin,
            inputs,
            output,
        ]
        took = run([*command, str(CONCURRENCY)])
    found = json.loads(took.out.strip().splitlines()[-1])
    assert found["items"] == items, found
    return Bulk(items=items, inputs=inputs, output=output, phases=found["phases"])


def sizes(*, tiny: bool) -> tuple[int, ...]:
    return TINY if tiny else FULL


def memory(*, tiny: bool) -> Iterator[Table]:
    runs = [bulk(items) for items in sizes(tiny=tiny)]
    table = Table(
        "memory",
        f"{CONCURRENCY} in flight, tiny replies, workbook and page written: peak RSS in MB after each phase",
        ["items", *PHASES, "× the smallest", "aim", "aim"],
    )
    for trial in runs:
        ratio = trial.peak_mb / runs[0].peak_mb
        table.add(
            f"{trial.items:,}",
            *(f"{trial.phases[name]['peak_mb']:.0f}" for name in PHASES),
            f"{ratio:.2f}",
            at_most(ratio, 1.3),
            at_most(trial.peak_mb, 400, " MB"),
        )
    yield table


def growth(*, tiny: bool) -> Iterator[Table]:
    runs = [bulk(items) for items in sizes(tiny=tiny)]
    kinds = ("find and plan, CPU ms", "send, CPU ms", "report, CPU ms")
    table = Table(
        "growth",
        f"{CONCURRENCY} in flight, tiny replies: an item's share of each phase",
        ["items", *kinds, "send, wall ms", "send, CPU × the smallest", "aim", "whole, CPU × the smallest"],
    )
    first = runs[0]
    for trial in runs:
        ratio = trial.each_ms("cpu_s", "send") / first.each_ms("cpu_s", "send")
        table.add(
            f"{trial.items:,}",
            *(f"{trial.each_ms('cpu_s', name):.2f}" for name in PHASES),
            f"{trial.each_ms('wall_s', 'send'):.2f}",
            f"{ratio:.2f}",
            at_most(ratio, 1.1),
            f"{trial.each_ms('cpu_s') / first.each_ms('cpu_s'):.2f}",
        )
    table.notes.append(
        "CPU is of the whole process with its probe workers. The smallest run carries the start-up of each phase "
        "(imports, the probe workers, the first connections)."
    )
    yield table
