"""The plugin, as somebody else's tests use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
from openai import OpenAI


def ask(audio_emulator, text):
    client = OpenAI(base_url=f"{audio_emulator.base_url}/v1", api_key=audio_emulator.api_key, max_retries=0)
    return client.chat.completions.create(
        model="gpt-audio-1.5", modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"},
        messages=[{"role": "user", "content": text}],
    )


def test_a_call(audio_emulator):
    assert ask(audio_emulator, "Say hello.").choices[0].message.audio.data
    (call,) = audio_emulator.settled_journal(1)
    assert (call["status"], call["billed"]) == (200, True)
    audio_emulator.put_faults({"do": {"status": 500}})


def test_the_next_finds_it_as_at_the_start(audio_emulator):
    assert audio_emulator.journal() == []
    assert ask(audio_emulator, "Say hello again.").choices[0].message.audio.transcript
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_others_test_their_programs_with_it(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *workers],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


def test_a_project_that_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import sys\n\n\ndef test_mine():\n"
        "    ours = {name for name in sys.modules if name.startswith('audiobatch')}\n"
        "    assert ours <= {'audiobatch_emulator', 'audiobatch_emulator.pytest_plugin'}, ours\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
