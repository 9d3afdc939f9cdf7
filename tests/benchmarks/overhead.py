"""`overhead`: this engine beside a script written by hand and beside the raw floor, on the same loopback server.

Each contender runs in a process of its own, twice: with all items and with a few. CPU per item is the difference
over the difference, so that start-up is out of it. Contenders take turns; ratios are of one run.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.tables import Table
from tests.narrowing import present

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENDERS = {"engine": "this engine", "handwritten": "hand-written script", "raw_floor": "raw floor"}


@dataclass(frozen=True)
class Work:
    """What every contender has to do."""

    items: int
    audio_bytes: int
    latency_s: float
    concurrency: int

    def __str__(self) -> str:
        size_kb = self.audio_bytes * 4 / 3 / 1000
        return (
            f"{self.items} items, {size_kb:.0f} KB replies, {self.latency_s} s latency, "
            f"{self.concurrency} in flight"
        )


FULL = (Work(1000, 480_000, 0.5, 64), Work(3000, 9_600, 0.5, 128))
TINY = (Work(40, 48_000, 0.05, 8),)


@contextlib.contextmanager
def fixed_server(work: Work) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.fixed_server",
        str(work.audio_bytes),
        str(work.latency_s),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield present(server.stdout).readline().strip()
        finally:
            present(server.stdin).close()
            server.wait(10)


def prompts(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06}.txt").write_text(f"Say something about the number {number}.")
    return folder


def run(contender: str, origin: str, folder: Path, output: Path, work: Work) -> dict[str, float]:
    command = [sys.executable, "-m", f"tests.benchmarks.{contender}", origin, str(folder), str(output)]
    done = subprocess.run(
        [*command, str(work.concurrency)], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr}")
    reported: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return reported


def measure(work: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by contender: CPU ms an item, share of the ideal time, peak memory."""
    few = max(2, work.concurrency // 4)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as place, fixed_server(work) as origin:
        root = Path(place)
        all_items, few_items = prompts(root / "all", work.items), prompts(root / "few", few)
        for number in range(rounds):
            for name in CONTENDERS:
                whole = run(name, origin, all_items, root / f"{name}-{number}-all", work)
                start = run(name, origin, few_items, root / f"{name}-{number}-few", work)
                waves = math.ceil(work.items / work.concurrency)
                scout_s = work.latency_s if name == "engine" else 0.0
                found[name].append(
                    {
                        "cpu_ms": (whole["cpu_s"] - start["cpu_s"]) / (work.items - few) * 1000,
                        "of_ideal": waves * work.latency_s / (whole["loop_s"] - scout_s),
                        "items_s": work.items / whole["loop_s"],
                        "peak_mb": whole["peak_mb"],
                        "late_p99_ms": whole.get("late_p99_ms", math.nan),
                    }
                )
    return {
        name: {key: statistics.median(trial[key] for trial in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def benchmark(*, tiny: bool) -> Iterator[Table]:
    for work in TINY if tiny else FULL:
        results = measure(work, 1 if tiny else 3)
        beside = results["handwritten"]["cpu_ms"]
        table = Table(
            name="overhead",
            work=str(work),
            columns=[
                "",
                "CPU ms/item",
                "× hand-written",
                "waves × latency ÷ loop",
                "items/s",
                "peak MB",
                "loop late, p99 ms",
            ],
        )
        for name, title in CONTENDERS.items():
            one = results[name]
            table.add(
                title,
                f"{one['cpu_ms']:.2f}",
                f"{one['cpu_ms'] / beside:.2f}",
                f"{one['of_ideal']:.3f}",
                f"{one['items_s']:.0f}",
                f"{one['peak_mb']:.0f}",
                "" if math.isnan(one["late_p99_ms"]) else f"{one['late_p99_ms']:.0f}",
            )
        yield table
