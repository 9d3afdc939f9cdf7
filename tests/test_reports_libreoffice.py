"""What a real spreadsheet makes of our files: nothing is evaluated, and what it saves is read again."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audiobatch.reports.columns import COLUMNS
from audiobatch.reports.manifest import protect, write_csv
from audiobatch.reports.review import RecordedMark, read_marks
from audiobatch.reports.tables import read_table
from audiobatch.reports.workbook import write_workbook
from tests.libreoffice import AS_CSV, IMPORT_EVALUATING, LibreOffice
from tests.reports_samples import sample_row

HOSTILE = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1;1)",
    " =1+1",
    "\u00a0=1+1",
    "'=1+1",
    '"=1+1"',
    '=HYPERLINK("http://127.0.0.1:1/";"x")',
    '=WEBSERVICE("http://127.0.0.1:1/")',
    "=cmd|' /C calc'!A0",
    "\uff1d1+1",
    "{=1+1}",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "a\n=1+1",
    'a,"=1+1"',
    "a;=1+1",
    "'tis fine",
    "1e5",
    "007",
    "\u202e=1+1",
    "שלום =1",
    "\U0001f600=1+1",
    "_x0041_x0042_",
    "=" + "x" * 40_000,
)
# Numbers are shown as numbers, and LibreOffice writes an escape into an XLSX unescaped: no harm in either.
SHOWN_OTHERWISE = ("1e5", "007", "_x0041_x0042_")


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Open a file in LibreOffice and save it as another."""
    return LibreOffice(tmp_path_factory.mktemp("profile")).save


def cells_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def rows_of_texts() -> list[dict[str, Any]]:
    return [{"item_id": f"row {n}", "turn": 1, "transcript": text} for n, text in enumerate(HOSTILE)]


def as_saved(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_no_cell_of_the_csv_is_evaluated_even_by_the_dangerous_way_to_open_it(
    tmp_path: Path, convert: Callable[..., Path]
) -> None:
    path = tmp_path / "manifest.csv"
    with path.open("wb") as out:
        write_csv([rows_of_texts()], out, columns=["item_id", "turn", "transcript"])
        out.write(b'control,1,"=1+1"\r\n')  # not protected, so that this test can fail
    saved = convert(path, "xlsx", f"--infilter={IMPORT_EVALUATING}")
    sheet = openpyxl.load_workbook(saved).active
    *rows, (control,) = sheet.iter_rows(min_row=2, min_col=3, max_col=3)
    assert control.data_type == "f"
    assert len(rows) == len(HOSTILE)
    for (cell,), text in zip(rows, HOSTILE, strict=True):
        assert cell.data_type != "f", text
        if len(text) < 32_000 and text not in SHOWN_OTHERWISE:
            assert as_saved(str(cell.value)) == as_saved(protect(text)), text


def test_no_cell_of_the_workbook_is_evaluated(tmp_path: Path, convert: Callable[..., Path]) -> None:
    written = write_workbook([rows_of_texts()], tmp_path / "manifest.xlsx")
    saved = cells_of(convert(written.path, "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false"))
    column = saved[0].index("transcript")
    shown = [row[column] for row in saved[1:]]
    for text, cell in zip(HOSTILE, shown, strict=True):
        if len(text) < 32_000:
            assert as_saved(cell) == as_saved(text)
        else:
            assert cell.startswith(text[:30_000])
            assert cell.endswith("[cut: 40001 characters]")


def test_marks_and_columns_survive_a_workbook_that_libreoffice_has_saved(
    tmp_path: Path, convert: Callable[..., Path]
) -> None:
    rows = [sample_row(n, item_id=f"{n:03d}.wav", status="succeeded", version=1) for n in range(50)]
    marks = {3: ("redo", "slower"), 17: ("redo", ""), 40: ("redo", "name is wrong"), 41: ("ok", "")}
    for n, (review, note) in marks.items():
        rows[n] |= {"review": review, "review_note": note, "speaker": f"Anna {n}"}
    written = write_workbook([rows], tmp_path / "manifest.xlsx", extra_columns=["speaker"])
    saved = convert(written.path, "xlsx")
    known = {(str(row["item_id"]), 1): RecordedMark(version=1) for row in rows}
    read = read_marks(saved, known)
    assert read.refused == ()
    assert len(read.marks) == 50
    assert {mark.item_id: mark.note for mark in read.marks if mark.review == "redo"} == {
        "003.wav": "slower",
        "017.wav": "",
        "040.wav": "name is wrong",
    }
    assert {row.text("item_id"): row.text("speaker") for row in read_table(saved) if row.text("speaker")} == {
        f"{n:03d}.wav": f"Anna {n}" for n in marks
    }
    sheet = openpyxl.load_workbook(saved)["manifest"]
    links = [cell.hyperlink for row in sheet.iter_rows(min_row=2) for cell in row if cell.hyperlink]
    assert len(links) == 2 * sum(bool(row["audio_file"]) for row in rows)
    assert sheet.data_validations.dataValidation


def test_marks_survive_a_csv_that_libreoffice_has_saved(tmp_path: Path, convert: Callable[..., Path]) -> None:
    rows = [sample_row(n, item_id=f"=id {n}", status="succeeded", version=1) for n in range(10)]
    rows[2] |= {"review": "redo", "review_note": "+louder"}
    rows[5] |= {"review": "reject"}
    path = tmp_path / "manifest.csv"
    with path.open("wb") as out:
        write_csv([rows], out)
    saved = convert(path, AS_CSV, f"--infilter={IMPORT_EVALUATING}")
    read = read_marks(saved, {(str(row["item_id"]), 1): RecordedMark(version=1) for row in rows})
    assert read.refused == ()
    assert [(mark.item_id, mark.note) for mark in read.marks if mark.review == "redo"] == [
        ("=id 2", "+louder")
    ]
    assert [mark.item_id for mark in read.marks if mark.review == "reject"] == ["=id 5"]
    assert list(cells_of(saved)[0]) == list(COLUMNS)
