"""A folder that is done: the next run reads and writes next to nothing, and still leaves true reports."""

import csv
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from audiobatch.ledger.ledger import Ledger
from audiobatch.model import Review
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import local, present
from tests.running import azure, read_manifest, rows_of, run_job, write_wav


@pytest.fixture
def job(tmp_path: Path, emulator: EmulatorProcess) -> dict[str, Any]:
    for name in ("a", "b", "c"):
        write_wav(tmp_path / "in" / f"{name}.wav")
    return {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), **azure(emulator)}


def made(folder: Path) -> dict[str, int]:
    """When each report was made."""
    return {
        name: (folder / name).stat().st_mtime_ns for name in ("manifest.csv", "manifest.xlsx", "report.html")
    }


def test_reports_that_show_all_there_is_are_left_alone(job: dict[str, Any], tmp_path: Path) -> None:
    run_job(**job)
    before = made(tmp_path / "out")
    again = run_job(**job)
    assert (again.sent, again.skipped_done) == (0, 3)
    assert made(tmp_path / "out") == before
    assert read_manifest(tmp_path / "out" / "runs" / f"{again.run_id}.csv") == []


def test_whatever_changes_a_row_makes_them_again(job: dict[str, Any], tmp_path: Path) -> None:
    run_job(**job)
    out = tmp_path / "out"

    (tmp_path / "in" / "b0.wav").write_bytes(b"no sound")
    seen = run_job(**job)
    assert [row["item_id"] for row in rows_of(seen)] == ["a.wav", "b.wav", "b0.wav", "c.wav"]
    assert [row["status"] for row in read_manifest(out / "runs" / f"{seen.run_id}.csv")] == ["refused"]

    (tmp_path / "in" / "b0.wav").unlink()
    assert [row["item_id"] for row in rows_of(run_job(**job))] == ["a.wav", "b.wav", "c.wav"]

    with closing(Ledger.open(out / "ledger.db")) as ledger:
        ledger.writer.put_reviews({("a.wav", 1): Review(review="ok")})
    assert [row["review"] for row in rows_of(run_job(**job))] == ["ok", "", ""]

    (out / "report.html").unlink()
    run_job(**job)
    assert (out / "report.html").exists()


def test_a_manifest_that_a_reviewer_saved_is_read_and_written_again(
    job: dict[str, Any], tmp_path: Path
) -> None:
    summary = run_job(**job)
    rows = rows_of(summary)
    with local(summary.manifest).open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.DictWriter(file, [*rows[0], "my notes"])
        out.writeheader()
        out.writerows({**row, "my notes": "heard"} for row in rows)
    assert [row["my notes"] for row in rows_of(run_job(**job))] == ["heard"] * 3
    assert [row["my notes"] for row in rows_of(run_job(**job))] == ["heard"] * 3


def test_a_run_that_was_killed_before_its_reports_leaves_them_to_the_next(
    job: dict[str, Any], tmp_path: Path
) -> None:
    run_job(**job)
    with closing(Ledger.open(tmp_path / "out" / "ledger.db")) as ledger:
        assert ledger.reader.reports_shown()
        outcome = ledger.reader.outcome("a.wav", 1)
        ledger.writer.record_outcome(present(outcome)).wait()
        assert not ledger.reader.reports_shown()
        ledger.writer.mark_reports_current("so")
        ledger.writer.put_note("any", "word")
        ledger.writer.mark_all_seen("run")
        assert ledger.reader.reports_shown() == "so"
        ledger.writer.record_outcome(present(outcome)).wait()
        assert not ledger.reader.reports_shown()
