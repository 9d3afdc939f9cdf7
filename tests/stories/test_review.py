"""The loop: listen, mark in a spreadsheet or on the page, and have only what is marked made again."""

import csv
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audiobatch.errors import ConfigError
from audiobatch.execution.job import Job
from audiobatch_emulator.process import EmulatorProcess
from tests.libreoffice import AS_CSV, IMPORT_EVALUATING, LibreOffice
from tests.running import audiobatch, azure, last_json, read_manifest, rows_of, run_job

MARKS = {"c03": ("redo", "speak more slowly"), "c17": ("redo", ""), "c40": ("redo", "say =the name first")}


@pytest.fixture(scope="module")
def libreoffice(tmp_path_factory: pytest.TempPathFactory) -> LibreOffice:
    return LibreOffice(tmp_path_factory.mktemp("profile"))


def table(path: Path, count: int) -> Path:
    lines = [f"c{n:02d},Say something about number {n}.,team {n % 3}" for n in range(count)]
    path.write_text("\n".join(["id,prompt,team", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def job(tmp_path: Path, emulator: EmulatorProcess) -> dict[str, Any]:
    """Settings of a job of a few prompts, as `run_job` and the command line use them."""
    path = table(tmp_path / "prompts.csv", 4)
    return {"inputs": [str(path)], "output": str(tmp_path / "out"), **azure(emulator)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return audiobatch(*arguments, env={"AZURE_OPENAI_API_KEY": os.environ["AZURE_OPENAI_API_KEY"]})


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "audio").iterdir()}


def marks_csv(path: Path, *rows: Sequence[Sequence[str]]) -> Path:
    """A file as the page exports it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "turn", "review", "review_note"])
        writer.writerows(rows)
    return path


def mark_in_workbook(out: Path) -> Path:
    """As a reviewer does it: marks, notes, and a column of one's own, in the rows where the ids are."""
    book = openpyxl.load_workbook(out / "manifest.xlsx")
    sheet = book["manifest"]
    names = [cell.value for cell in sheet[1]]
    review, note, own = names.index("review") + 1, names.index("review_note") + 1, len(names) + 1
    sheet.cell(1, own, "speaker")
    for at in range(2, sheet.max_row + 1):
        item_id = sheet.cell(at, 1).value
        sheet.cell(at, own, f"Anna {item_id}")
        if item_id in MARKS:
            sheet.cell(at, review, MARKS[item_id][0])
            sheet.cell(at, note, MARKS[item_id][1] or None).data_type = "s"
        if item_id == "c05":
            sheet.cell(at, review, "ok")
    book.save(out / "manifest.xlsx")
    return out / "manifest.xlsx"


def mark_in_csv(out: Path) -> Path:
    rows = read_manifest(out / "manifest.csv")
    for row in rows:
        row["review"], row["review_note"] = MARKS.get(row["item_id"], ("", ""))
        row["speaker"] = f"Anna {row['item_id']}"
        if row["item_id"] == "c05":
            row["review"] = "ok"
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out / "manifest.csv"


def in_workbook(libreoffice: LibreOffice, out: Path) -> Path:
    return libreoffice.save(mark_in_workbook(out), "xlsx").replace(out / "manifest.xlsx")


def in_csv(libreoffice: LibreOffice, out: Path) -> Path:
    return libreoffice.save(mark_in_csv(out), AS_CSV, f"--infilter={IMPORT_EVALUATING}").replace(
        out / "manifest.csv"
    )


@pytest.mark.parametrize("save", [in_workbook, in_csv])
def test_just_the_marked_rows_are_made_again(
    save: Callable[[LibreOffice, Path], Path],
    libreoffice: LibreOffice,
    emulator: EmulatorProcess,
    tmp_path: Path,
    out: Path,
) -> None:
    settings = {
        "inputs": [str(table(tmp_path / "prompts.csv", 50))],
        "output": str(out),
        **azure(emulator),
    }
    assert run_job(**settings).succeeded == 50
    first = {call["item_hash"] for call in emulator.settled_journal(50)}
    before = hashes(out)

    applied = command("review", out, "--apply", save(libreoffice, out))
    assert applied.returncode == 0, applied.stderr
    assert "c03: no mark → redo (speak more slowly)" in applied.stdout
    assert "4 rows changed, 46 as they were" in applied.stdout
    assert "marked: 1 ok, 3 redo" in applied.stdout

    again = command("retry", out, "--review", "redo", "--with-notes", "--no-prefect", "--json", "--quiet")
    assert again.returncode == 0, again.stderr
    assert (last_json(again.stdout)["sent"], last_json(again.stdout)["succeeded"]) == (3, 3)

    calls = emulator.settled_journal(53)
    assert len(calls) == 53
    assert sum(call["item_hash"] in first for call in calls[50:]) == 1, "two were steered by their notes"
    unmarked = {name: found for name, found in before.items() if name.removesuffix(".wav") not in MARKS}
    assert len(unmarked) == 47
    assert unmarked.items() <= hashes(out).items()
    for name in MARKS:
        kept = out / "versions" / "v1" / "audio" / f"{name}.wav"
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == before[f"{name}.wav"]

    for row in read_manifest(out / "manifest.csv"):
        assert row["speaker"] == f"Anna {row['item_id']}"
        assert row["version"] == ("2" if row["item_id"] in MARKS else "1")
        assert row["review"] == ("ok" if row["item_id"] == "c05" else "")
        assert row["review_note"] == ""
    sheet = openpyxl.load_workbook(out / "manifest.xlsx")["manifest"]
    names = [cell.value for cell in sheet[1]]
    speakers = {row[0].value: row[names.index("speaker")].value for row in sheet.iter_rows(min_row=2)}
    assert speakers == {f"c{n:02d}": f"Anna c{n:02d}" for n in range(50)}

    assert run_job(**settings).sent == 0, "what a note has steered counts for what the job asks"
    once_more = command("retry", out, "--review", "redo", "--no-prefect", "--json", "--quiet")
    assert last_json(once_more.stdout)["sent"] == 0
    assert len(emulator.journal()) == 53


def test_a_redo_without_notes_asks_just_what_was_asked_before(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run_job(**job)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "1", "redo", "slower")))
    command("retry", out, "--review", "redo", "--no-prefect", "--quiet")
    calls = emulator.settled_journal(5)
    assert calls[4]["item_hash"] in {call["item_hash"] for call in calls[:4]}


def test_rows_that_cannot_be_right_are_refused_by_name_and_the_rest_is_taken(
    job: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    run_job(**job)
    file = marks_csv(
        tmp_path / "m.csv",
        ("c00", "1", "ok", ""),
        ("c99", "1", "redo", ""),
        ("c01", "1", "again", ""),
        ("c02", "7", "redo", ""),
    )
    applied = command("review", out, "--apply", file)
    assert applied.returncode == 3
    assert "row 3: c99: this job has no such item" in applied.stderr
    assert "row 4: c01: 'again' is not a mark; use ok, redo, reject" in applied.stderr
    assert "row 5: c02: this item has no turn 7" in applied.stderr
    shown = json.loads(command("review", out, "--json").stdout)
    assert [(row["item_id"], row["review"]) for row in shown["rows"]] == [("c00", "ok")]


def test_what_was_applied_last_holds_and_a_dry_run_changes_nothing(
    job: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    run_job(**job)
    command(
        "review",
        out,
        "--apply",
        marks_csv(tmp_path / "a.csv", ("c00", "1", "redo", "x"), ("c01", "1", "ok", "")),
    )
    second = marks_csv(tmp_path / "b.csv", ("c00", "1", "ok", ""), ("c01", "1", "", ""))
    dry = command("review", out, "--apply", second, "--dry-run")
    assert "c00: redo → ok" in dry.stdout
    assert "2 rows would change" in dry.stdout
    assert [row["review"] for row in read_manifest(out / "manifest.csv")] == ["redo", "ok", "", ""]
    command("review", out, "--apply", second)
    assert [row["review"] for row in read_manifest(out / "manifest.csv")] == ["ok", "", "", ""]
    run_job(**job)
    assert [row["review"] for row in read_manifest(out / "manifest.csv")] == ["ok", "", "", ""]


def test_a_mark_that_was_not_applied_stays_in_the_files_and_sends_nothing(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess
) -> None:
    run_job(**job)
    book = openpyxl.load_workbook(out / "manifest.xlsx")
    sheet = book["manifest"]
    sheet.cell(2, [cell.value for cell in sheet[1]].index("review") + 1, "redo")
    book.save(out / "manifest.xlsx")
    assert run_job(**job).sent == 0
    assert [row["review"] for row in read_manifest(out / "manifest.csv")] == ["redo", "", "", ""]
    assert command("retry", out, "--review", "redo", "--no-prefect", "--quiet").returncode == 0
    assert len(emulator.settled_journal(4)) == 4


def test_approved_results_are_never_replaced_without_force(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run_job(**job)
    before = hashes(out)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "1", "ok", "")))
    redone = run_job(**job, voice="echo", redo=True)
    assert redone.sent == 3
    assert "1 approved results were left as they are" in redone.message
    assert {row["item_id"]: row["voice"] for row in rows_of(redone)}["c01"] == "alloy"
    assert hashes(out)["c01.wav"] == before["c01.wav"]
    refused = command("retry", out, "--review", "ok", "--no-prefect")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert run_job(**job, voice="echo", redo=True, force=True).sent == 1
    assert {row["voice"] for row in read_manifest(out / "manifest.csv")} == {"echo"}


def test_an_approved_result_stands_when_its_own_input_changes(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run_job(**job)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "1", "ok", "")))
    text = (tmp_path / "prompts.csv").read_text()
    (tmp_path / "prompts.csv").write_text(text.replace("number", "figure"))
    assert run_job(**job).sent == 3


def test_rejected_rows_are_not_made_again(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults({"when": {"text": "number 2"}, "do": {"status": 400}})
    run_job(**job, limit=3)
    emulator.put_faults()
    command(
        "review",
        out,
        "--apply",
        marks_csv(tmp_path / "m.csv", ("c02", "1", "reject", ""), ("c03", "1", "reject", "")),
    )
    left = run_job(**job)
    assert left.sent == 0
    assert "2 items are marked reject" in left.message
    assert [row["status"] for row in rows_of(left)] == ["succeeded", "succeeded", "failed", "pending"]
    assert command("retry", out, "--no-prefect", "--quiet").returncode == 0
    assert len(emulator.settled_journal(3)) == 3
    wanted = command("retry", out, "--review", "reject", "--no-prefect", "--quiet", "--json")
    assert last_json(wanted.stdout)["succeeded"] == 2


def test_a_redo_that_fails_leaves_reply_and_mark_as_they_were(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run_job(**job)
    before = hashes(out)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "1", "redo", "louder")))
    emulator.put_faults({"do": {"reset": "in"}})
    failed = command("retry", out, "--review", "redo", "--no-prefect", "--quiet", "--json")
    assert failed.returncode == 3
    assert hashes(out) == before
    row = read_manifest(out / "manifest.csv")[1]
    assert (row["status"], row["review"], row["review_note"]) == ("succeeded", "redo", "louder")


def test_the_approved_clips_are_handed_out_alone(job: dict[str, Any], out: Path, tmp_path: Path) -> None:
    run_job(**job)
    command(
        "review",
        out,
        "--apply",
        marks_csv(tmp_path / "m.csv", ("c01", "1", "ok", ""), ("c02", "1", "ok", "")),
    )
    done = command("review", out, "--export", tmp_path / "handover")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "handover").iterdir()) == [
        "c01.wav",
        "c02.wav",
        "manifest.csv",
    ]
    rows = read_manifest(tmp_path / "handover" / "manifest.csv")
    assert [(row["item_id"], row["audio_file"], row["in.team"]) for row in rows] == [
        ("c01", "c01.wav", "team 1"),
        ("c02", "c02.wav", "team 2"),
    ]


def test_what_is_handed_out_overwrites_no_file_of_the_user_s(
    job: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    run_job(**job)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "1", "ok", "")))
    mine = tmp_path / "mine"
    for name, text in {"manifest.csv": "a,b\n1,2\n", "c01.wav": "my own", "notes.txt": "my own"}.items():
        mine.mkdir(exist_ok=True)
        (mine / name).write_text(text)
        done = command("review", out, "--export", mine)
        assert (done.returncode, "could overwrite" in done.stderr) == (2, True)
        assert [(path.name, path.read_text()) for path in mine.iterdir()] == [(name, text)]
        (mine / name).unlink()
    for _ in range(2):  # again into its own folder
        assert command("review", out, "--export", mine).returncode == 0
    assert {path.name for path in mine.iterdir()} == {"c01.wav", "manifest.csv"}


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "# A heading\n"])
def test_a_file_that_holds_no_marks_is_a_mistake_that_is_told(
    job: dict[str, Any], out: Path, tmp_path: Path, content: str | None
) -> None:
    run_job(**job)
    path = tmp_path / "marks.csv"
    if content is not None:
        path.write_text(content)
    done = command("review", out, "--apply", path)
    assert (done.returncode, "marks.csv" in done.stderr) == (2, True), done.stderr
    assert "internal error" not in done.stderr


def test_a_follow_up_is_marked_and_made_again_alone(
    tmp_path: Path, out: Path, emulator: EmulatorProcess
) -> None:
    settings = {
        "inputs": [str(table(tmp_path / "prompts.csv", 2))],
        "output": str(out),
        "prompt": ("{prompt}", "And in short?"),
        **azure(emulator),
    }
    run_job(**settings)
    command("review", out, "--apply", marks_csv(tmp_path / "m.csv", ("c01", "2", "redo", "shorter")))
    again = command("retry", out, "--review", "redo", "--with-notes", "--no-prefect", "--quiet", "--json")
    assert last_json(again.stdout)["sent"] == 1
    assert len(emulator.settled_journal(5)) == 5
    versions = {(row["item_id"], row["turn"]): row["version"] for row in read_manifest(out / "manifest.csv")}
    assert versions == {("c00", "1"): "1", ("c00", "2"): "1", ("c01", "1"): "1", ("c01", "2"): "2"}
    assert run_job(**settings).sent == 0


def test_manifest_columns_choose_and_order_and_a_wrong_name_stops_before_sending(
    job: dict[str, Any], out: Path, emulator: EmulatorProcess
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'transcript'"):
        run_job(**job, manifest_columns="item_id,transkript")
    assert emulator.journal() == []
    summary = run_job(**job, manifest_columns="item_id,status,in.*,transcript")
    assert list(rows_of(summary)[0]) == ["item_id", "status", "in.team", "transcript"]


def test_json_lines_and_parquet_are_written_when_asked_for(job: dict[str, Any], out: Path) -> None:
    run_job(**job, reports="xlsx,jsonl,parquet")
    assert not (out / "report.html").exists()
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["item_id"] for line in lines] == ["c00", "c01", "c02", "c03"]
    import pandas as pd

    assert list(pd.read_parquet(out / "manifest.parquet")["in.team"]) == [
        "team 0",
        "team 1",
        "team 2",
        "team 0",
    ]
    done = command("report", out, "--jsonl")
    assert str(out / "manifest.jsonl") in done.stdout


def test_a_manifest_that_is_open_elsewhere_is_written_beside(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    run_job(**job)
    replace = Path.replace

    def locked(self: Path, target: Path) -> Path:
        if Path(target).name in ("manifest.csv", "manifest.xlsx"):
            raise PermissionError(13, "The process cannot access the file because it is being used")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", locked)
    (Path(job["inputs"][0])).write_text("id,prompt,team\nc00,Say something else.,team 9\n")
    jobs: list[Job] = []
    summary = run_job(**job, on_open=jobs.append)
    assert summary.exit_code == 0
    assert summary.manifest == out / "manifest.new.csv"
    assert "team 9" in (out / "manifest.new.csv").read_text()
    assert (out / "manifest.new.xlsx").exists()
    assert any("manifest.csv is open in another program" in warning for warning in jobs[0].warnings)


def test_a_run_that_changes_nothing_rewrites_no_workbook_and_no_page(job: dict[str, Any], out: Path) -> None:
    run_job(**job)
    before = {name: (out / name).stat().st_mtime_ns for name in ("manifest.xlsx", "report.html")}
    run_job(**job)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
