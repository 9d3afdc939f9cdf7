"""A ledger from an old backup: nothing is bought again without a word, and what the folder shows can be adopted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from audiobatch.errors import ConfigError
from audiobatch_emulator.process import EmulatorProcess
from tests.running import audiobatch, azure, rows_of, run_job, write_wav

ITEMS = 6


@pytest.fixture
def job(emulator: EmulatorProcess, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(ITEMS):
        (folder / f"{number}.txt").write_text(f"Say the number {number}.")
    return azure(emulator, inputs=[str(folder)], output=str(tmp_path / "out"))


@pytest.fixture
def older(emulator: EmulatorProcess, job: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """The folder after two runs, with the ledger as it was after the first; the manifest of the second."""
    run_job(**job, limit=2)
    shutil.copy(tmp_path / "out" / "ledger.db", tmp_path / "backup.db")
    rows = rows_of(run_job(**job))
    restore(tmp_path)
    return rows


def restore(tmp_path: Path) -> None:
    for path in (tmp_path / "out").glob("ledger.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "out" / "ledger.db")


def test_a_run_that_the_ledger_does_not_know_stops_the_next_one_before_it_sends(
    emulator: EmulatorProcess, job: dict[str, Any], older: list[dict[str, Any]]
) -> None:
    before = len(emulator.journal())
    with pytest.raises(ConfigError, match=r"holds run .* that its ledger does not know.*--adopt"):
        run_job(**job)
    assert len(emulator.journal()) == before


def test_a_file_in_a_result_s_place_that_the_ledger_does_not_know_stops_it_too(
    emulator: EmulatorProcess, job: dict[str, Any], older: list[dict[str, Any]], tmp_path: Path
) -> None:
    for path in (tmp_path / "out" / "runs").iterdir():
        path.unlink()
    before = len(emulator.journal())
    with pytest.raises(ConfigError, match=r"holds audio/.*a result that its ledger does not know"):
        run_job(**job)
    assert len(emulator.journal()) == before


def test_what_the_folder_shows_is_adopted_and_nothing_is_bought_again(
    emulator: EmulatorProcess, job: dict[str, Any], older: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = len(emulator.journal())
    summary = run_job(**job, adopt=True)
    assert (summary.exit_code, summary.sent, summary.skipped_done) == (0, 0, ITEMS)
    assert len(emulator.journal()) == before
    assert run_job(**job).sent == 0, "also without the flag, from now on"
    same = (
        "item_id",
        "status",
        "transcript",
        "audio_file",
        "audio_duration_s",
        "cost_usd",
        "run_id",
        "fingerprint",
    )
    assert [[row[name] for name in same] for row in rows_of(summary)] == [
        [row[name] for name in same] for row in older
    ]
    verified = audiobatch("verify", tmp_path / "out", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    spent = json.loads(audiobatch("status", tmp_path / "out", "--json").stdout)["spent_usd"]
    assert spent == pytest.approx(sum(float(row["cost_usd"]) for row in older)), "caps know it"


def test_what_is_not_what_its_row_says_is_listed_set_aside_and_made_again(
    emulator: EmulatorProcess, job: dict[str, Any], older: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gone, cut, long = (out / row["audio_file"] for row in older[3:6])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:60])
    write_wav(long, seconds=9)
    before = len(emulator.journal())
    warned = []
    summary = run_job(**job, adopt=True, on_open=lambda opened: warned.append(opened.warnings))
    assert (summary.exit_code, summary.sent) == (0, 3)
    assert len(emulator.journal()) == before + 3
    said = "\n".join(warned[0])
    assert "1 results were adopted; 3 rows could not be" in said
    assert f"{older[3]['item_id']} turn 1: " in said
    assert "lasts 9.00 s" in said
    assert (out / "versions" / "unrecorded" / older[5]["audio_file"]).is_file(), "nothing is written over"
    assert {row["status"] for row in rows_of(summary)} == {"succeeded"}


def test_lists_that_leave_columns_out_are_no_reason_to_guess(
    emulator: EmulatorProcess, job: dict[str, Any], tmp_path: Path
) -> None:
    narrow = {**job, "manifest_columns": ("item_id", "status", "transcript", "audio_file")}
    run_job(**narrow, limit=1)
    shutil.copy(tmp_path / "out" / "ledger.db", tmp_path / "backup.db")
    run_job(**narrow)
    restore(tmp_path)
    with pytest.raises(ConfigError, match="--adopt"):
        run_job(**narrow)


def test_a_new_folder_and_one_that_was_killed_are_not_taken_for_older(job: dict[str, Any]) -> None:
    assert run_job(**job, limit=3).exit_code == 0
    assert run_job(**job).exit_code == 0
    assert run_job(**job, redo=True, voice="echo").exit_code == 0
