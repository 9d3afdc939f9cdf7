"""Hostile file names from end to end: every item has its own output, and whatever else is there changes nothing."""

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from audiobatch.storage.names import collision_key
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import local
from tests.running import azure, read_manifest, run_job, write_wav

NAMES = (
    "anna.wav", "Anna.wav", "ANNA.wav", "anna.mp3.wav", "b/anna.wav", "B/anna.wav",
    unicodedata.normalize("NFC", "Zoë.wav"), unicodedata.normalize("NFD", "Zoë.wav"),
    "con.wav", "CON.wav", "aux/nul.wav", "lpt1.wav", "-rf.wav", "--help.wav", " leading.wav", "trailing .wav",
    "two\nlines.wav", "tab\there.wav", "right\u202eto-left.wav", "zero\u200bwidth.wav", "dots...wav", "x.t2.wav",
    "semi;colon,comma.wav", "=cmd|' /C calc'!A0.wav", "quote'\".wav", "a" * 251 + ".wav", "ж" * 125 + ".wav",
    "%2e%2e.wav", "~tilde.wav", "audio/audio.wav", "job.json.wav",
)  # fmt: skip


def result_files(
    emulator: EmulatorProcess, tmp_path: Path, names: Sequence[str], which: str
) -> dict[str, tuple[str, str]]:
    folder = tmp_path / which
    for n, name in enumerate(names):
        write_wav(folder / name, seconds=0.3, pitch_hz=200 + 10 * n)
    summary = run_job(**azure(emulator, inputs=(str(folder),), output=str(tmp_path / f"out-{which}")))
    rows = read_manifest(local(summary.manifest))
    assert (summary.exit_code, len(rows)) == (0, len(names)), [row["error_message"] for row in rows]
    for row in rows:
        for path in (row["audio_file"], row["transcript_file"]):
            assert (tmp_path / f"out-{which}" / path).is_file()
    return {row["input_sha256"]: (row["audio_file"], row["transcript_file"]) for row in rows}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="such names cannot be there")
def test_every_item_has_its_own_output_and_the_mapping_does_not_depend_on_the_others(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    whole = result_files(emulator, tmp_path, NAMES, "whole")
    for files in zip(*whole.values(), strict=True):
        assert len({collision_key(path) for path in files}) == len(NAMES)
        for path in files:
            assert path.isprintable()
            assert all(len(os.fsencode(part)) <= 255 for part in path.split("/"))
            assert not any(
                part.startswith(("-", " ", ".")) or part.endswith((" ", ".")) for part in path.split("/")
            )
    # The same recordings under the same names, every other one absent.
    names = NAMES[::2]
    folder = tmp_path / "half"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    summary = run_job(**azure(emulator, inputs=(str(folder),), output=str(tmp_path / "out-half")))
    half = {
        row["input_sha256"]: (row["audio_file"], row["transcript_file"])
        for row in read_manifest(local(summary.manifest))
    }
    assert half == {sha256: whole[sha256] for sha256 in half}
    assert len(half) == len(names)
