"""What versions before the packages' new names left goes on: nothing is sent again, and `verify` is content.

The archives were made by `fixtures/earlier/make.py`, each by the commit that it is called after.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from audiobatch.storage.spool import Spool
from audiobatch_emulator.process import EmulatorProcess
from tests.running import audiobatch, rows_of, run_job

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
TRANSPORTS: dict[str, dict[str, Any]] = {
    "chat": {"deployment": "gpt-audio-1.5"},
    "stream": {"deployment": "gpt-audio-1.5", "stream": True},
    "realtime": {"deployment": "gpt-realtime", "transport": "realtime"},
}


@pytest.fixture(params=["c3dbc08", "f4652fc"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as that version left it."""
    with tarfile.open(EARLIER / f"{request.param}.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def common(emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", emulator.api_key)
    return {
        "inputs": ["prompts.csv"],
        "provider": "azure",
        "endpoint": emulator.base_url,
        "format": "mp3",
        "max_completion_tokens": 40,
    }


@pytest.mark.parametrize("name", TRANSPORTS)
def test_an_output_folder_is_gone_on_with(
    name: str, place: Path, common: dict[str, Any], emulator: EmulatorProcess
) -> None:
    before = {path: path.read_bytes() for path in (place / name / "audio").iterdir()}
    summary = run_job(**common, output=name, **TRANSPORTS[name])
    assert (summary.exit_code, summary.sent, summary.skipped_done) == (0, 0, 2)
    assert emulator.journal() == []
    assert {path: path.read_bytes() for path in (place / name / "audio").iterdir()} == before
    assert [row["status"] for row in rows_of(summary)] == ["succeeded"] * 2
    checked = audiobatch("verify", name, cwd=place)
    assert checked.returncode == 0, checked.stdout


def test_what_was_left_to_send_is_all_that_is_sent(
    place: Path, common: dict[str, Any], emulator: EmulatorProcess
) -> None:
    summary = run_job(**common, output="half", **TRANSPORTS["chat"])
    assert (summary.exit_code, summary.sent, summary.skipped_done) == (0, 1, 1)
    assert len(emulator.settled_journal(1)) == 1


def test_a_job_file_is_the_same_job(place: Path, common: dict[str, Any], emulator: EmulatorProcess) -> None:
    env = {
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }
    ended = audiobatch("run", "--job", "job.toml", "--no-prefect", cwd=place, env=env)
    assert ended.returncode == 0, ended.stderr
    assert "done before        2" in ended.stdout
    assert emulator.journal() == []


def test_a_reply_in_the_spool_comes_home(
    place: Path, common: dict[str, Any], emulator: EmulatorProcess
) -> None:
    spool = Spool(place / "spool").folder
    spool.mkdir(parents=True)
    head, _, rest = (place / "kept.reply").read_bytes().partition(b"\n")
    # It was kept for the folder where that version ran.
    moved = json.dumps({**json.loads(head), "output": Spool(place / "spool").output}).encode()
    (spool / "1-0.reply").write_bytes(moved + b"\n" + rest)
    summary = run_job(**common, output="spool", limit=1, **TRANSPORTS["chat"])
    assert (summary.exit_code, summary.succeeded + summary.skipped_done) == (0, 2), summary
    assert [row["status"] for row in rows_of(summary)] == ["succeeded"] * 2
    assert len(emulator.settled_journal(1)) == 1, "the other row alone"
    checked = audiobatch("verify", "spool", cwd=place)
    assert checked.returncode == 0, checked.stdout
