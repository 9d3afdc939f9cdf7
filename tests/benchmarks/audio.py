"""`audio`: probing and converting recordings, beside ffprobe and ffmpeg doing the same work in the same run.

Each contender is a process of its own with its start in the figures; CPU is user and system time of it and of its
children. Ours measures more than ffprobe does: every sample is decoded, for level, silence and defects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from tests.benchmarks.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]

_PROBE = """
import sys
from pathlib import Path
from audiobatch.audio.probe import probe_many
found = list(probe_many(sorted(Path(sys.argv[1]).iterdir())))
print(sum(one.media.duration_s for _, one in found))
"""
_CONVERT = """
import sys
from pathlib import Path
import soundfile
from audiobatch.audio.channels import pick_channel
from audiobatch.audio.convert import resampled
from audiobatch.audio.decode import open_recording
from audiobatch.audio.encode import to_int16
with open_recording(Path(sys.argv[1])) as sound, soundfile.SoundFile(sys.argv[2], "w", 16000, 1, "PCM_16") as out:
    mixed = (pick_channel(block, "mix") for block in sound.blocks())
    for block in resampled(mixed, sound.sample_rate_hz, 16000):
        out.write(to_int16(block))
"""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of CPU."""

    wall_s: float
    cpu_s: float

    def row(self, name: str, beside: Cost) -> tuple[str, str, str, str, str]:
        return (
            name,
            f"{self.wall_s:.2f}",
            f"{self.cpu_s:.2f}",
            f"{self.wall_s / beside.wall_s:.2f}",
            f"{self.cpu_s / beside.cpu_s:.2f}",
        )


def run(commands: Sequence[Sequence[str | Path]]) -> Cost:
    """Runs commands one after the other."""
    env = {**os.environ}
    before, began = os.times(), time.monotonic()
    for command in commands:
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall_s, after = time.monotonic() - began, os.times()
    return Cost(
        wall_s=wall_s,
        cpu_s=after.children_user - before.children_user + after.children_system - before.children_system,
    )


def sound(seconds: float, rate_hz: int, channels: int) -> np.ndarray:
    random = np.random.default_rng(7)
    at = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = 0.2 * np.sin(2 * np.pi * 180 * at) * (np.sin(2 * np.pi * 0.5 * at) > 0)
    noise = 0.001 * random.standard_normal((len(at), channels))
    return (wave[:, None] + noise).astype(np.float32)


def short_files(folder: Path, count: int, ending: str) -> None:
    for number in range(20):
        soundfile.write(folder / f"{number:05}.{ending}", sound(2.0 + number / 10, 16_000, 1), 16_000)
    for number in range(20, count):
        shutil.copyfile(folder / f"{number % 20:05}.{ending}", folder / f"{number:05}.{ending}")


def long_file(path: Path, minutes: int) -> None:
    minute = sound(60.0, 44_100, 2)
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)


def benchmark(*, tiny: bool) -> Iterator[Table]:
    """The tables; none where ffmpeg is not installed."""
    ffmpeg, ffprobe = shutil.which("ffmpeg"), shutil.which("ffprobe")
    if ffmpeg is None or ffprobe is None:
        print("audio: ffmpeg is not installed, so that there is nothing to measure beside\n")
        return
    files, minutes = (40, 1) if tiny else (1000, 60)
    with tempfile.TemporaryDirectory() as place:
        for ending in ("wav", "flac"):
            folder = Path(place) / ending
            folder.mkdir()
            short_files(folder, files, ending)
            yield probing(folder, ffprobe, ending)
            shutil.rmtree(folder)
        yield converting(Path(place), ffmpeg, minutes)


def probing(folder: Path, ffprobe: str, ending: str) -> Table:
    show = [ffprobe, "-v", "error", "-show_entries", "format=duration", "-of", "csv"]
    paths = sorted(folder.iterdir())
    table = Table(
        "audio", f"probing {len(paths)} {ending} files of 2 to 4 s", ["", "s", "CPU s", "s ÷", "CPU ÷"]
    )
    theirs = run([[*show, path] for path in paths])
    ours = run([[sys.executable, "-c", _PROBE, folder]])
    table.add(*theirs.row("one ffprobe each", theirs))
    table.add(*ours.row("this engine, every sample measured", theirs))
    return table


def converting(place: Path, ffmpeg: str, minutes: int) -> Table:
    source = place / "long.wav"
    long_file(source, minutes)
    table = Table(
        "audio",
        f"{minutes} minutes of 44.1 kHz stereo to 16 kHz mono WAV",
        ["", "s", "CPU s", "s ÷", "CPU ÷"],
    )
    convert: list[str | Path] = [ffmpeg, "-v", "error", "-y", "-i", source, "-ac", "1", "-ar", "16000"]
    contenders: dict[str, list[str | Path]] = {
        "ffmpeg": [*convert, place / "theirs.wav"],
        "ffmpeg, resampling with soxr": [*convert, "-af", "aresample=resampler=soxr", place / "theirs.wav"],
        "this engine (soxr, HQ)": [sys.executable, "-c", _CONVERT, source, place / "ours.wav"],
    }
    beside: Cost | None = None
    for name, command in contenders.items():
        try:
            cost = run([command])
        except subprocess.CalledProcessError:
            table.add(name, "not in this build", "", "", "")
            continue
        beside = beside or cost
        table.add(*cost.row(name, beside))
    return table
