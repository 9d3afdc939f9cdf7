"""`large`: replies of 16 MB, and recordings of 19 MB, 16 at once: peak memory beside the script written by hand.

Start-up (the libraries of each) is measured apart, with a few short items, and both are shown: what grows with the
size of a reply is the difference.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.overhead import Work, fixed_server, prompts, run
from tests.benchmarks.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENDERS = {"engine": "this engine", "handwritten": "hand-written script"}
RATE_HZ = 24_000
#: 20 MB is the most that goes out in one piece.
INPUT_BYTES = 19_000_000


def recordings(folder: Path, count: int, size_bytes: int) -> Path:
    """WAV files, no two alike."""
    folder.mkdir(parents=True)
    frames = size_bytes // 2
    for number in range(count):
        samples = (np.sin(np.arange(frames) * (0.04 + number / 1e4)) * 9000).astype("<i2").tobytes()
        size = len(samples)
        form = struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, RATE_HZ * 2, 2, 16)
        head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
        (folder / f"{number:03}.wav").write_bytes(head + samples)
    return folder


def benchmark(*, tiny: bool) -> Iterator[Table]:
    at_once, items = (2, 4) if tiny else (16, 32)
    reply_bytes = 1_000_000 if tiny else 16_000_000
    input_bytes = 1_500_000 if tiny else INPUT_BYTES
    rounds = 1 if tiny else 3
    with tempfile.TemporaryDirectory(prefix="audiobatch-bench-") as place:
        root = Path(place)
        spoken = prompts(root / "prompts", items)
        heard = recordings(root / "recordings", at_once, input_bytes)
        short = prompts(root / "few", 2)
        yield _table(
            root / "out",
            short,
            spoken,
            Work(items, reply_bytes, 0.5, at_once),
            "replies",
            reply_bytes,
            rounds,
        )
        yield _table(
            root / "in", short, heard, Work(at_once, 9_600, 0.5, at_once), "recordings", input_bytes, rounds
        )


def _table(
    root: Path, short: Path, inputs: Path, work: Work, kind: str, size_bytes: int, rounds: int
) -> Table:
    peaks: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    starts: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with fixed_server(work) as origin, fixed_server(Work(2, 9_600, 0.1, 2)) as small:
        for number in range(rounds):
            for name in CONTENDERS:
                place = root / f"{name}-{number}"
                starts[name].append(run(name, small, short, place / "few", work)["peak_mb"])
                peaks[name].append(run(name, origin, inputs, place / "all", work)["peak_mb"])
    beside = min(peaks["handwritten"])
    growth = beside - min(starts["handwritten"])
    table = Table(
        name="large",
        work=f"{work.items} {kind} of {size_bytes / 1e6:.0f} MB, {work.concurrency} at once",
        columns=["", "peak MB", "× hand-written", "of it start-up, MB", "without start-up ×"],
    )
    for name, title in CONTENDERS.items():
        peak, start = min(peaks[name]), min(starts[name])
        grown = f"{(peak - start) / growth:.2f}" if growth > 0 else ""  # a tiny run may not grow at all
        table.add(title, f"{peak:.0f}", f"{peak / beside:.2f}", f"{start:.0f}", grown)
    return table
