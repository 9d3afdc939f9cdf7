"""The emulator's README is true: its tests exist, its examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

from audiobatch_emulator.faults import RULES
from audiobatch_emulator.process import EmulatorProcess
from tests.running import ROOT

README = ROOT / "pipeline" / "audiobatch_emulator" / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_every_test_that_the_table_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text("utf-8")))
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_flag_that_it_names_is_there() -> None:
    from audiobatch_emulator.command import emulator

    flags = {flag for option in emulator.params for flag in (*option.opts, *option.secondary_opts)}
    assert set(re.findall(r"`(--[a-z-]+)", README.read_text("utf-8"))) <= flags


def test_the_rules_are_rules() -> None:
    (rules,) = blocks("json")
    assert len(RULES.validate_json(rules)) == 4


def test_the_python_example_runs(tmp_path: Path) -> None:
    example, _fixture = blocks("python")
    with EmulatorProcess("--speech", "tone") as server:
        ended = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            env={**os.environ, "EMULATOR_URL": server.base_url},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 0, ended.stderr
    assert "golden retriever" in ended.stdout
    assert (tmp_path / "reply.wav").read_bytes().startswith(b"RIFF")


def test_the_tables_name_every_condition_and_effect() -> None:
    from audiobatch_emulator.faults import Do, When

    text = README.read_text("utf-8")
    for name in (*When.model_fields, *Do.model_fields):
        assert f"`{name}`" in text, name


def test_the_fixture_s_example_says_what_happens(audio_emulator: EmulatorProcess) -> None:
    class Program:
        """Whatever calls the service, and asks once more when it is told to wait."""

        def run(self, base_url: str, api_key: str) -> None:
            with OpenAI(base_url=base_url, api_key=api_key, max_retries=1) as client:
                client.chat.completions.create(
                    model="gpt-audio-1.5",
                    modalities=["text", "audio"],
                    audio={"voice": "alloy", "format": "wav"},
                    messages=[{"role": "user", "content": "Say hello."}],
                )

    _, example = blocks("python")
    names: dict[str, Any] = {"my_program": Program()}
    exec(example, names)
    names["test_my_program_survives_a_busy_service"](audio_emulator)
