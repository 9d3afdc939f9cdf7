"""The emulator's README is true: its tests exist, its examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path

from emulator_process import ROOT, EmulatorProcess

from pipeline.emulator.faults import RULES

README = ROOT / "pipeline" / "emulator" / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_every_test_that_the_table_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text("utf-8")))
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_flag_that_it_names_is_there() -> None:
    from pipeline.emulator.command import emulator

    flags = {flag for option in emulator.params for flag in (*option.opts, *option.secondary_opts)}
    assert set(re.findall(r"`(--[a-z-]+)", README.read_text("utf-8"))) <= flags


def test_the_rules_are_rules() -> None:
    (rules,) = blocks("json")
    assert len(RULES.validate_json(rules)) == 4


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")
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
    from pipeline.emulator.faults import Do, When

    text = README.read_text("utf-8")
    for name in (*When.model_fields, *Do.model_fields):
        assert f"`{name}`" in text, name
