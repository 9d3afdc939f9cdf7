"""Mutated recordings through the probe: whatever a file does to a decoder is that file's refusal.

    python -m tests.crash.probe_fuzz --files 20000        # by hand
    python -m tests.crash.probe_fuzz --seconds 60         # the gate

Prints each kind of exception that got through, with the seed of its file, and ends with 1 if there was any.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from audiobatch.audio.convert import prepare
from audiobatch.audio.probe import probe
from audiobatch.errors import InputError
from tests import audio_corpus as corpus

#: A decoder that asks for more is refused it, as on a machine with less.
MOST_MEMORY_BYTES = 9 << 30
#: A decoder that hangs. Shorter times say something of the machine alone: the gate has others at work beside this.
SLOW_S = 30.0
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    1024,
    65_535,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    192_000,
    2_000_000_000,
)


@dataclass
class Found:
    """What a campaign came across."""

    files: int = 0
    refused: int = 0
    read: int = 0
    uncaught: collections.Counter[str] = field(default_factory=collections.Counter)
    slow: list[str] = field(default_factory=list)


def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """One short recording of each kind in the corpus."""
    corpus.make(folder)
    kinds: tuple[str, ...] = (
        "pcm_16.wav",
        "pcm_24.wav",
        "float.wav",
        "ulaw.wav",
        "ima_adpcm.wav",
        "gsm.wav",
        "rf64.wav",
    )
    kinds += (
        "sixty-four.w64",
        "speech.flac",
        "speech.mp3",
        "speech.ogg",
        "speech.opus",
        "speech.aiff",
        "speech.au",
    )
    kinds += ("speech.caf", "phone.m4a", "lossless.m4a", "speech.aac", "film.mp4", "film.mkv", "browser.webm")
    kinds += ("phone.amr", "phone.3gp", "old.wma", "latin-title.mp3")
    return [(name, (folder / name).read_bytes()) for name in kinds]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same with a few numbers, bytes or stretches of it changed; mostly in its header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        within = min(len(changed), rng.choice((44, 128, 400, len(changed))))
        at = rng.randrange(max(1, within))
        match rng.randrange(5):
            case 0:
                changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(_NUMBERS))
            case 1:
                changed[at : at + 2] = struct.pack(rng.choice("<>") + "H", rng.choice(_NUMBERS) & 0xFFFF)
            case 2:
                changed[at : at + 1] = bytes((rng.randrange(256),))
            case 3:
                del changed[at : at + rng.randrange(1, 64)]
            case _:
                changed[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(changed)


def campaign(*, files: int, seconds: float, seed: int) -> Found:
    """Until so many files were tried, or so many seconds are over."""
    found = Found()
    ends_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="audiobatch-fuzz-") as scratch:
        originals = seeds(Path(scratch, "corpus"))
        path = Path(scratch, "mutated.bin")
        while found.files < files and time.monotonic() < ends_s:
            number = seed + found.files
            rng = random.Random(number)
            name, data = rng.choice(originals)
            path.write_bytes(mutated(data, rng))
            began_s = time.monotonic()
            try:
                prepare(path, probe(path).media)
                found.read += 1
            except InputError:
                found.refused += 1
            except Exception as error:
                found.uncaught[f"{type(error).__name__}: {str(error)[:90]} ({name}, seed {number})"] += 1
            if time.monotonic() - began_s > SLOW_S:
                found.slow.append(f"{name}, seed {number}")
            found.files += 1
    return found


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000_000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, hard))
    found = campaign(files=given.files, seconds=given.seconds, seed=given.seed)
    print(
        f"{found.files:,} mutated recordings: {found.read:,} read, {found.refused:,} refused, "
        f"{found.uncaught.total()} uncaught, {len(found.slow)} over {SLOW_S:.0f} s"
    )
    for what in (*found.uncaught, *found.slow):
        print(f"  {what}")
    return 1 if found.uncaught or found.slow else 0


if __name__ == "__main__":
    sys.exit(main())
