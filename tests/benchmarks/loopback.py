"""The fixed server as a child of this process, and inputs to send to it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import wave
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.session import ROOT, environment
from tests.narrowing import present

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RATE_HZ = 8000


@contextlib.contextmanager
def fixed_server(*, reply_bytes: int, latency_s: float) -> Iterator[str]:
    """A loopback server whose replies have so many bytes of sound; its origin."""
    command = [sys.executable, "-m", "tests.benchmarks.fixed_server", str(reply_bytes), str(latency_s)]
    with subprocess.Popen(
        command,
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            yield present(server.stdout).readline().strip()
        finally:
            present(server.stdin).close()
            server.wait(20)


def prompts(folder: Path, count: int) -> Path:
    """So many prompt files."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06}.txt").write_text(f"Say something about the number {number}.")
    return folder


def recordings(folder: Path, count: int, *, seconds: float = 0.3) -> Path:
    """So many small recordings, no two alike, a thousand a sub-folder."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.wav"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        samples = (9000 * np.sin(2 * np.pi * (200 + number % 97) * times)).astype("<i2")
        samples[:2] = number % 30_000, number // 30_000
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE_HZ)
            out.writeframes(samples.tobytes())
    return folder


def job(origin: str, inputs: Path, output: Path, concurrency: int) -> list[str]:
    """What `audiobatch run` and `plan` are told."""
    service = ["--endpoint", origin, "--deployment", "gpt-audio-1.5", "--api-version", "v1"]
    return [str(inputs), "--output", str(output), *service, "--max-concurrency", str(concurrency)]
