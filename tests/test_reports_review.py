"""Marks and columns on their way back from a reviewer."""

import csv
import os
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiobatch.errors import InputError
from audiobatch.reports.carry_over import AdditionsReader, merge_additions, read_additions
from audiobatch.reports.columns import COLUMNS
from audiobatch.reports.manifest import write_csv
from audiobatch.reports.review import Mark, RecordedMark, changes, read_marks
from audiobatch.reports.workbook import write_workbook
from tests.reports_samples import chunks_of, sample_row

ROWS = [sample_row(n, item_id=f"{n:03d}.wav", status="succeeded", version=1) for n in range(50)]
KNOWN = {(f"{n:03d}.wav", 1): RecordedMark(version=1) for n in range(50)}


def csv_file(path: Path, header: str, *lines: str) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def marked_workbook(path: Path) -> Path:
    write_workbook(chunks_of(ROWS), path)
    book = openpyxl.load_workbook(path)
    sheet = book["manifest"]
    review, note = COLUMNS.index("review") + 1, COLUMNS.index("review_note") + 1
    for at, word in ((4, "redo"), (11, "Redo "), (30, "redo"), (31, "ok"), (32, "reject")):
        sheet.cell(at, review, word)
    sheet.cell(4, note, "slower, please")
    sheet.cell(11, note, "=too loud").data_type = "s"
    book.save(path)
    return path


def test_marks_are_read_from_a_workbook(tmp_path: Path) -> None:
    read = read_marks(marked_workbook(tmp_path / "manifest.xlsx"), KNOWN)
    assert read.refused == ()
    assert [(mark.item_id, mark.note) for mark in read.marks if mark.review == "redo"] == [
        ("002.wav", "slower, please"),
        ("009.wav", "=too loud"),
        ("028.wav", ""),
    ]
    assert [mark.item_id for mark in read.marks if mark.review == "ok"] == ["029.wav"]
    assert [mark.item_id for mark in read.marks if mark.review == "reject"] == ["030.wav"]
    assert len(read.marks) == 50


def test_marks_mean_the_same_from_a_workbook_a_csv_and_a_pages_export(tmp_path: Path) -> None:
    workbook = read_marks(marked_workbook(tmp_path / "manifest.xlsx"), KNOWN)
    marks = {mark.key: mark for mark in workbook.marks}
    rows = [
        {**row, "review": marks[row["item_id"], 1].review, "review_note": marks[row["item_id"], 1].note}
        for row in ROWS
    ]
    with (tmp_path / "manifest.csv").open("wb") as out:
        write_csv([rows], out)
    with (tmp_path / "review.csv").open("wb") as out:
        only = [row for row in rows if row["review"]]
        write_csv([only], out, columns=["item_id", "turn", "version", "review", "review_note"])
    from_csv = read_marks(tmp_path / "manifest.csv", KNOWN)
    from_page = read_marks(tmp_path / "review.csv", KNOWN)
    wanted = [str(change) for change in changes(workbook.marks, KNOWN)]
    assert len(wanted) == 5
    assert [str(change) for change in changes(from_csv.marks, KNOWN)] == wanted
    assert [str(change) for change in changes(from_page.marks, KNOWN)] == wanted


def test_rows_are_known_by_their_id_wherever_a_sort_put_them(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "r.csv", "review,item_id,turn", "redo,040.wav,1", "ok,003.wav,1")
    assert [(mark.item_id, mark.review) for mark in read_marks(path, KNOWN).marks] == [
        ("040.wav", "redo"),
        ("003.wav", "ok"),
    ]


def test_rows_that_cannot_be_right_are_refused_one_by_one_with_their_row_and_reason(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "r.csv",
        "item_id,turn,review,version",
        "001.wav,1,redo,1",
        "nobody.wav,1,redo,1",
        ",1,ok,1",
        "2.0,1,ok,1",
        "002.wav,7,ok,1",
        "003.wav,1,maybe,1",
        "004.wav,1,ok,1",
        "004.wav,1,redo,1",
    )
    read = read_marks(path, KNOWN)
    assert [mark.item_id for mark in read.marks] == ["001.wav"]
    reasons = [str(refused) for refused in read.refused]
    assert len(reasons) == 6
    for reason, place, words in zip(
        reasons,
        ("row 3", "row 4", "row 5", "row 6", "row 7", "row 9"),
        ("no such item", "no item_id", "turned the id into a number", "no turn 7", "'maybe'", "twice"),
        strict=True,
    ):
        assert reason.startswith(place)
        assert words in reason


def test_a_mark_made_on_an_earlier_version_is_refused_so_that_nothing_is_bought_unheard(
    tmp_path: Path,
) -> None:
    known = {("a", 1): RecordedMark(version=2, review="ok"), ("b", 1): RecordedMark(version=2, review="ok")}
    path = csv_file(tmp_path / "r.csv", "item_id,turn,version,review", "a,1,1,redo", "b,1,1,")
    read = read_marks(path, known)
    assert "version 2 has replaced it" in read.refused[0].reason
    assert changes(read.marks, known) == []


def test_the_file_applied_last_holds_and_what_it_changes_is_told(tmp_path: Path) -> None:
    known = {
        ("a", 1): RecordedMark(review="redo", note="x", version=1),
        ("b", 1): RecordedMark(review="ok", version=1),
        ("c", 1): RecordedMark(review="ok", version=1),
        ("d", 2): RecordedMark(version=1),
    }
    path = csv_file(
        tmp_path / "r.csv", "item_id,review,review_note", "a,ok,x", "b,,", "c,ok,new words", "d,reject,"
    )
    assert [str(change) for change in changes(read_marks(path, known).marks, known)] == [
        "a: redo → ok",
        "b: ok → no mark",
        "c: ok, new note",
        "d turn 2: no mark → reject",
    ]


def test_an_item_of_several_turns_needs_its_turn_named(tmp_path: Path) -> None:
    known = {("a", 1): RecordedMark(version=1), ("a", 2): RecordedMark(version=1)}
    read = read_marks(csv_file(tmp_path / "r.csv", "item_id,review", "a,ok"), known)
    assert "its turns: 1, 2" in read.refused[0].reason


@pytest.mark.parametrize("name", ["r.csv", "r.xlsx"])
def test_a_file_without_ids_is_refused_as_a_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        csv_file(path, "review,turn", "ok,1")
    else:
        openpyxl.Workbook().save(path)
    with pytest.raises(InputError, match="item_id"):
        read_marks(path, KNOWN)


def test_a_file_that_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.xlsx"
    path.write_bytes(b"PK not really")
    with pytest.raises(InputError, match="workbook"):
        read_marks(path, KNOWN)


ANY_ID = st.text(st.characters(exclude_categories=()), min_size=1).filter(lambda text: text.strip())


@settings(max_examples=40)
@given(ids=st.lists(ANY_ID, min_size=1, max_size=4, unique=True))
def test_an_item_is_found_again_whatever_its_id_is_made_of(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    rows = [{"item_id": item_id, "turn": 1, "review": "redo", "version": 1} for item_id in ids]
    with (folder / "m.csv").open("wb") as out:
        write_csv([rows], out)
    write_workbook([rows], folder / "m.xlsx")
    known = {(item_id, 1): RecordedMark(version=1) for item_id in ids}
    for name in ("m.csv", "m.xlsx"):
        read = read_marks(folder / name, known)
        assert [mark.item_id for mark in read.marks if mark.review == "redo"] == ids
        assert read.refused == ()


def test_added_columns_and_marks_not_yet_applied_survive_a_rewrite_by_id(tmp_path: Path) -> None:
    path = marked_workbook(tmp_path / "manifest.xlsx")
    book = openpyxl.load_workbook(path)
    sheet = book["manifest"]
    sheet.cell(1, len(COLUMNS) + 1, "speaker")
    sheet.cell(5, len(COLUMNS) + 1, "Anna")
    sheet.cell(1, len(COLUMNS) + 2, "score")
    sheet.cell(5, len(COLUMNS) + 2, 4.5)
    book.save(path)
    additions = read_additions([path, tmp_path / "manifest.csv"])
    assert additions.columns == ["speaker", "score"]
    again = [{"item_id": "new.wav", "turn": 1, "version": 1}, *ROWS[::-1]]  # inserted and turned round
    rows = {row["item_id"]: row for chunk in merge_additions([again], additions) for row in chunk}
    assert (rows["003.wav"]["speaker"], rows["003.wav"]["score"]) == ("Anna", 4.5)
    assert "speaker" not in rows["new.wav"]
    assert rows["002.wav"]["review"] == "redo"
    assert rows["002.wav"]["review_note"] == "slower, please"
    written = write_workbook([list(rows.values())], path, extra_columns=additions.columns)
    assert read_additions([written.path]).values == {("003.wav", 1): {"speaker": "Anna", "score": 4.5}}


def test_a_mark_on_record_stands_and_a_mark_on_an_older_version_is_not_carried_over(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "manifest.csv", "item_id,turn,version,review", "a,1,1,redo", "b,1,1,redo", "c,1,1,redo"
    )
    rows = [
        {"item_id": "a", "turn": 1, "version": 1, "review": "ok"},
        {"item_id": "b", "turn": 1, "version": 2, "review": ""},
        {"item_id": "c", "turn": 1, "version": 1, "review": ""},
    ]
    (merged,) = merge_additions([rows], read_additions([path]))
    assert [row.get("review") for row in merged] == ["ok", "", "redo"]


def test_of_two_manifests_the_one_changed_last_wins(tmp_path: Path) -> None:
    older = csv_file(tmp_path / "manifest.csv", "item_id,turn,who", "a,1,Anna", "b,1,Ben")
    newer = tmp_path / "manifest.xlsx"
    write_workbook([[{"item_id": "a", "turn": 1, "who": "Zoë"}]], newer, extra_columns=["who"])
    os.utime(older, (1, 1))
    assert read_additions([newer, older]).values == {("a", 1): {"who": "Zoë"}, ("b", 1): {"who": "Ben"}}


def test_a_manifest_that_cannot_be_read_is_noted_and_never_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.xlsx").write_bytes(b"broken")
    additions = read_additions([tmp_path / "manifest.xlsx"])
    assert additions.notes == ["manifest.xlsx could not be read; what was added to it is not carried over."]


def test_what_a_reviewer_saves_during_a_run_outlives_our_own_rewriting(tmp_path: Path) -> None:
    table, book = tmp_path / "manifest.csv", tmp_path / "manifest.xlsx"
    reader = AdditionsReader([table, book])
    rows = [{"item_id": "a", "turn": 1, "version": 1}]

    def rewrite() -> None:
        additions = reader.read()
        with table.open("wb") as out:
            write_csv(merge_additions([rows], additions), out, extra_columns=additions.columns)
        reader.mark_written(table)

    rewrite()
    write_workbook(
        [[{**rows[0], "review": "redo", "who": "Anna"}]], book, extra_columns=["who"]
    )  # a reviewer
    rewrite()
    rewrite()
    with table.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["review"], row["who"]) == ("redo", "Anna")


def test_a_mark_knows_its_row() -> None:
    assert Mark(item_id="a", turn=2, review="ok").key == ("a", 2)
