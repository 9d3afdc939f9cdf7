"""`quota`: a quota that nobody told, used by this engine and by what one would write by hand.

The hand-written ones are a semaphore with tenacity's back-off (it finds the quota by refusals alone), and a loop
that sleeps after each call for as long as the quota says (it was told). Figures come from the emulator's journal:
calls accepted in the second half of the run, of those that the quota allows. `tests/benchmarks/quota.py` has the
engine's own campaign: hidden, halved and doubled quotas, of requests and tokens, several deployments.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch_emulator.process import EmulatorProcess
from tests.benchmarks.quota import FLAGS, Seen, run_for, seen_by
from tests.benchmarks.session import ROOT, environment
from tests.benchmarks.tables import Table, at_least

if TYPE_CHECKING:
    from collections.abc import Iterator

CONCURRENCY = 16


def by_hand(way: str, rpm: int, seconds: float) -> Seen:
    """A hand-written loop in a process of its own, stopped after so many seconds."""
    with EmulatorProcess(*FLAGS, "--quota", f"gpt-audio-1.5=rpm:{rpm}") as emulator:
        told = json.dumps(
            {"origin": emulator.base_url, "key": emulator.api_key, "rpm": rpm, "seconds": seconds}
        )
        command = [sys.executable, "-m", "tests.benchmarks.quota_by_hand", way, str(CONCURRENCY), told]
        subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=seconds + 120)
        return seen_by(emulator)


def engine(rpm: int, seconds: float) -> Seen:
    with (
        tempfile.TemporaryDirectory() as folder,
        EmulatorProcess(*FLAGS, "--quota", f"gpt-audio-1.5=rpm:{rpm}") as emulator,
    ):
        items = int(rpm * seconds / 60 * 1.5) + 100
        return asyncio.run(run_for(emulator, Path(folder), seconds=seconds, items=items))


def benchmark(*, tiny: bool) -> Iterator[Table]:
    rpm, seconds = (600, 2.0) if tiny else (600, 120.0)
    found = {
        "this engine": engine(rpm, seconds),
        f"by hand: semaphore ({CONCURRENCY}), tenacity": by_hand("semaphore", rpm, seconds),
        "by hand: a sleep after each call, the quota told": by_hand("sleep", rpm, seconds),
    }
    table = Table(
        "quota",
        f"{rpm} requests a minute, not told, 0.5 s latency; the second half of {seconds:g} s",
        ["", "of the quota", "aim", "refused calls", "refused, of all"],
    )
    for title, seen in found.items():
        half_s = seconds / 2
        share = seen.accepted(half_s, seconds - 2) / (rpm / 60 * (half_s - 2)) if half_s > 2 else 0.0
        refused = seen.refused()
        table.add(
            title,
            f"{100 * share:.1f} %",
            at_least(100 * share, 98, " %") if title == "this engine" else "",
            f"{refused}",
            f"{100 * refused / max(1, len(seen.calls)):.1f} %",
        )
    yield table
