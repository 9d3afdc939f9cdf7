"""What a table's file holds, and what becomes of its rows."""

import re
import zipfile

import pytest
import xlsxwriter

from pipeline.discover import Discovery
from pipeline.errors import ConfigError
from pipeline.jobspec import JobSpec


def found(path, **settings):
    """The sources of one input."""
    return list(Discovery(spec=JobSpec(inputs=(str(path),), output="out", **settings)).sources())


def texts(path, **settings):
    return [source.text for source in found(path, **settings)]


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def workbook(path, rows):
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        for at, cells in enumerate(rows):
            sheet.write_row(at, 0, cells)
    return path


def edited(path, member, change):
    """The same workbook with one of its files changed."""
    with zipfile.ZipFile(path) as book:
        files = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w") as book:
        for name, data in files.items():
            book.writestr(name, change(data) if name == member else data)
    return path


SHEET = "xl/worksheets/sheet1.xml"


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("prompt\nHello, world\nPlease close the door, the cat is out\n", 2),
        ("id,prompt\na,Hello, world\nb,Good bye, all\n", 2),
        ("id,prompt\na,Hello, world\nb,Good bye\n", 2),
        ("id,prompt\na,Hello\nb,Good bye, all\n", 3),
        ("id,prompt\na,Hello,\nb,Good bye,\n", 2),
    ],
    ids=["every row", "every row, with ids", "the first row", "a later row", "a comma at the end"],
)
def test_a_field_too_many_is_refused_with_its_line_and_what_to_do(table, line, tmp_path):
    with pytest.raises(ConfigError, match=rf"p\.csv.*line {line}\b[\s\S]*needs double quotes"):
        found(written(tmp_path / "p.csv", table))


def test_rows_with_fewer_fields_than_the_header_have_empty_cells(tmp_path):
    path = written(tmp_path / "p.csv", "id,prompt,guest,\r\na,Hello\r\nb,Bye,Ana\r\n")
    assert [(one.item_id, one.text, one.row) for one in found(path)] == [
        ("a", "Hello", {"guest": "", "Unnamed: 3": ""}),
        ("b", "Bye", {"guest": "Ana", "Unnamed: 3": ""}),
    ]


def test_quoted_fields_of_a_csv_keep_commas_and_lines(tmp_path):
    path = written(tmp_path / "p.csv", '\ufeff"prompt","n"\n"Hello, ""world""","007"\n"One\ntwo",NA\n')
    assert [(one.text, one.row["n"]) for one in found(path)] == [
        ('Hello, "world"', "007"),
        ("One\ntwo", "NA"),
    ]


@pytest.mark.parametrize("stored", ["A1", "A1:B3", "B1:B2", "A1:D90"])
def test_every_row_of_a_workbook_is_found_whatever_size_it_says_it_has(stored, tmp_path):
    rows = [[f"r{number}", f"Say {number}."] for number in range(1, 6)]
    path = workbook(tmp_path / "p.xlsx", [["id", "prompt", "guest"], *rows, [], ["r9", "", "Ana"]])
    edited(path, SHEET, lambda xml: re.sub(rb'ref="[^"]*"', f'ref="{stored}"'.encode(), xml, count=1))
    assert [(one.item_id, one.text, one.row) for one in found(path)] == [
        *((name, text, {"guest": ""}) for name, text in rows),
        ("r9", "", {"guest": "Ana"}),
    ]
    assert found(path)[-1].refusal == "the prompt of row 8 is empty"
