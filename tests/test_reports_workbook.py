"""manifest.xlsx as a reviewer gets it."""

import gc
import re
import resource
import zipfile
from contextlib import nullcontext
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiobatch.errors import StorageError
from audiobatch.reports import workbook
from audiobatch.reports.columns import COLUMNS
from audiobatch.reports.manifest import CELL_LIMIT_UTF16, utf16_length
from audiobatch.reports.tables import read_table
from audiobatch.reports.workbook import SheetLimits, write_workbook
from tests.reports_samples import chunks_of, sample_row

NOON = datetime(2026, 3, 1, 12, 0)  # noqa: DTZ001 - a workbook knows no zones
APRIL = datetime(2026, 4, 1)  # noqa: DTZ001
ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from(list("=+-@'\"\t\r\n ,;x_0195F<&>\x00\x1b\x85\u2028\u202e\ud800\ufffe\U0001f600"))
)


def column(name: str) -> int:
    return COLUMNS.index(name)


def write(path: Path, rows: list[dict[str, Any]], **options: object) -> Any:
    return write_workbook([rows], path, **options)  # type: ignore[arg-type]


@pytest.fixture
def book_path(tmp_path: Path) -> Path:
    rows = [sample_row(n) for n in range(60)]
    written = write_workbook(
        chunks_of(rows, 7),
        tmp_path / "manifest.xlsx",
        settings={"voice": "alloy", "limits": {"rpm": 60}, "turns": [{"text": "one"}, {"text": "two"}]},
        title="Support calls",
    )
    assert written.rows == 60
    assert written.path == tmp_path / "manifest.xlsx"
    return written.path


def test_it_has_the_rows_a_summary_and_the_settings_on_three_sheets(book_path: Path) -> None:
    book = openpyxl.load_workbook(book_path)
    assert book.sheetnames == ["manifest", "summary", "settings"]
    assert [cell.value for cell in book["manifest"][1]] == list(COLUMNS)
    assert book["manifest"].max_row == 61
    assert {row[0].value: row[1].value for row in book["settings"].iter_rows(min_row=2)} == {
        "voice": "alloy",
        "limits.rpm": "60",
        "turns.1.text": "one",
        "turns.2.text": "two",
    }


def test_header_and_id_stay_in_sight_and_every_column_can_be_filtered(book_path: Path) -> None:
    sheet = openpyxl.load_workbook(book_path)["manifest"]
    assert sheet.freeze_panes == "B2"
    assert sheet.auto_filter.ref == "A1:AQ61"


def test_amounts_durations_and_times_are_numbers_and_ids_are_text(book_path: Path) -> None:
    row = openpyxl.load_workbook(book_path)["manifest"][2]
    assert row[column("cost_usd")].value == pytest.approx(0.009125)
    assert row[column("cost_usd")].number_format == "#,##0.000000"
    assert row[column("input_duration_s")].data_type == "n"
    assert row[column("started_at")].value == NOON
    assert row[column("input_sha256")].data_type in ("s", "inlineStr")


def test_the_review_column_offers_the_three_marks(book_path: Path) -> None:
    (rule,) = openpyxl.load_workbook(book_path)["manifest"].data_validations.dataValidation
    assert rule.formula1 == '"ok,redo,reject"'
    assert str(rule.sqref) == "M2:M61"
    assert rule.errorTitle == "Not a mark"


def test_statuses_and_marks_are_coloured_by_rules_that_follow_what_is_typed(book_path: Path) -> None:
    sheet = openpyxl.load_workbook(book_path)["manifest"]
    ranges = {str(found.sqref) for found in sheet.conditional_formatting}
    assert ranges == {"C2:C61", "M2:M61"}


def test_the_summary_adds_up(book_path: Path) -> None:
    cells = openpyxl.load_workbook(book_path)["summary"].iter_rows(values_only=True)
    summary = {row[0]: row[1:3] for row in cells if row[0]}
    rows = [sample_row(n) for n in range(60)]
    assert summary["succeeded"][0] == sum(row["status"] == "succeeded" for row in rows)
    assert summary["content_filter"][0] == 2
    assert summary["all"][1] == pytest.approx(float(sum(row["cost_usd"] or Decimal(0) for row in rows)))
    assert summary["truncated"][0] == sum("truncated" in row["checks"] for row in rows)
    with zipfile.ZipFile(book_path) as parts:
        assert [name for name in parts.namelist() if "charts/chart" in name] != []


def test_links_are_relative_with_forward_slashes_so_that_the_folder_can_be_moved(tmp_path: Path) -> None:
    row = {"item_id": "x", "audio_file": "audio/é #1 [50%].wav", "transcript_file": "transcripts/a:b.txt"}
    path = write(tmp_path / "manifest.xlsx", [row]).path
    with zipfile.ZipFile(path) as parts:
        relations = parts.read("xl/worksheets/_rels/sheet1.xml.rels").decode()
    assert re.findall(r'Target="([^"]+)" TargetMode="External"', relations) == [
        "audio/é%20%231%20%5B50%25%5D.wav",
        "transcripts/a:b.txt",
    ]
    assert openpyxl.load_workbook(path)["manifest"]["H2"].value == "audio/é #1 [50%].wav"


@settings(max_examples=60)
@given(texts=st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), min_size=1, max_size=5))
def test_any_text_goes_into_the_workbook_and_comes_back_as_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, ...]]
) -> None:
    names = ("item_id", "prompt", "transcript")
    path = tmp_path_factory.mktemp("xlsx") / "manifest.xlsx"
    # The fourth column keeps a row of empty texts a row.
    rows = [{**dict(zip(names, row, strict=True)), "turn": 1} for row in texts]
    write(path, rows, columns=[*names, "turn"])
    assert [tuple(row.text(name) for name in names) for row in read_table(path)] == texts
    book = openpyxl.load_workbook(path)
    for row in book["manifest"].iter_rows(min_row=2, max_col=3):
        assert all(cell.data_type != "f" for cell in row)


@pytest.mark.parametrize("text", ["x" * 40_000, "\U0001f600" * 20_000, "é\U0001f600" * 15_000])
def test_a_text_past_excels_limit_is_cut_marked_linked_and_told_of(tmp_path: Path, text: str) -> None:
    row = {"item_id": "long", "transcript": text, "transcript_file": "transcripts/long.txt"}
    written = write(tmp_path / "manifest.xlsx", [row])
    cell = openpyxl.load_workbook(written.path)["manifest"].cell(2, column("transcript") + 1)
    assert utf16_length(cell.value) <= CELL_LIMIT_UTF16
    assert cell.value.endswith(f"[cut: {len(text)} characters, whole in transcripts/long.txt]")
    assert cell.hyperlink.target == "transcripts/long.txt"
    assert any("32 767" in note for note in written.notes)


@pytest.mark.parametrize("limits", [SheetLimits(rows=21), SheetLimits(links=41)])
def test_what_one_sheet_cannot_hold_goes_on_in_the_next_and_the_summary_says_so(
    tmp_path: Path, limits: SheetLimits
) -> None:
    rows = [sample_row(n) for n in range(50)]
    written = write_workbook(chunks_of(rows), tmp_path / "manifest.xlsx", limits=limits)
    book = openpyxl.load_workbook(written.path)
    assert book.sheetnames == ["manifest", "summary", "settings", "manifest 2", "manifest 3"]
    assert [row.text("item_id") for row in read_table(written.path)] == [row["item_id"] for row in rows]
    assert any("split over 3 sheets" in note for note in written.notes)
    summary = [row[0] for row in book["summary"].iter_rows(values_only=True)]
    assert written.notes[0] in summary
    for name in ("manifest 2", "manifest 3"):
        assert book[name].freeze_panes == "B2"
        assert book[name].data_validations.dataValidation


def test_past_so_many_links_paths_are_plain_text_on_the_same_sheet(tmp_path: Path) -> None:
    rows = [sample_row(n) for n in range(50)]
    limits = SheetLimits(links=41, links_in_all=41)
    written = write_workbook(chunks_of(rows), tmp_path / "manifest.xlsx", limits=limits)
    book = openpyxl.load_workbook(written.path)
    assert book.sheetnames == ["manifest", "summary", "settings"]
    linked = [cell.coordinate for row in book["manifest"].iter_rows() for cell in row if cell.hyperlink]
    assert 30 < len(linked) <= 41
    assert [row.text("audio_file") for row in read_table(written.path)] == [
        row["audio_file"] or "" for row in rows
    ]
    assert any(f"The first {len(linked)} files are linked" in note for note in written.notes)


def test_a_reviewers_own_columns_keep_their_kind(tmp_path: Path) -> None:
    row = {"item_id": "a", "score": 4.5, "due": APRIL, "fine": True, "who": "Zoë"}
    path = write(tmp_path / "manifest.xlsx", [row], extra_columns=["score", "due", "fine", "who"]).path
    (read,) = read_table(path)
    assert {name: read.cells[name] for name in ("score", "due", "fine", "who")} == {
        "score": 4.5,
        "due": APRIL,
        "fine": True,
        "who": "Zoë",
    }


def test_numbers_that_excel_would_round_stay_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.xlsx", [{"item_id": "a", "in.n": 12345678901234567}], extra_columns=["in.n"]
    ).path
    (read,) = read_table(path)
    assert read.cells["in.n"] == "12345678901234567"


def test_a_workbook_without_rows_opens_too(tmp_path: Path) -> None:
    path = write(tmp_path / "manifest.xlsx", []).path
    assert openpyxl.load_workbook(path)["manifest"].max_row == 1


def test_a_workbook_that_is_open_in_excel_is_left_and_the_new_one_is_put_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "manifest.xlsx"
    target.write_bytes(b"open elsewhere")
    replace = Path.replace

    def locked(self: Path, other: Path) -> Path:
        if Path(other) == target:
            raise PermissionError(13, "The process cannot access the file", str(other))
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", locked)
    written = write(target, [sample_row(0)])
    assert written.path == tmp_path / "manifest.new.xlsx"
    assert "manifest.xlsx is open in another program" in written.notes[-1]
    assert target.read_bytes() == b"open elsewhere"
    assert openpyxl.load_workbook(written.path)["manifest"].max_row == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.new.xlsx", "manifest.xlsx"]


def test_a_folder_that_is_gone_is_a_storage_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "gone" / "manifest.xlsx", [sample_row(0)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_error_and_nothing_is_said_when_the_archive_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "draft_beside", lambda _path: nullcontext(Path("/dev/full")))
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path / "manifest.xlsx", [sample_row(1)])
    gc.collect()  # an error in a destructor fails this test


def test_a_disk_that_is_full_after_some_bytes_is_one_error_too(tmp_path: Path) -> None:
    draft = workbook._Draft(tmp_path / "draft", "w")
    archive = zipfile.ZipFile(draft, "w")
    archive.writestr("a", b"a" * 1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (draft.tell() + 100, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="too large"):
            archive.writestr("b", b"b" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    draft.close()
    del archive
    gc.collect()
