"""What a table's file holds, and what becomes of its rows."""

import random
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError, InputError
from audiobatch.inputs.discover import Discovery
from audiobatch.ledger.ledger import Ledger
from audiobatch.model import Source
from audiobatch.planning.items import build_item


def found(path: Path, **settings: Any) -> list[Source]:
    """The sources of one input."""
    return list(Discovery(spec=JobSpec(inputs=(str(path),), output="out", **settings)).sources())


def texts(path: Path, **settings: Any) -> list[str | None]:
    return [source.text for source in found(path, **settings)]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def workbook(path: Path, rows: Sequence[object]) -> Path:
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        for at, cells in enumerate(rows):
            sheet.write_row(at, 0, cells)
    return path


def edited(path: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
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
def test_a_field_too_many_is_refused_with_its_line_and_what_to_do(
    table: str, line: int, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"p\.csv.*line {line}\b[\s\S]*needs double quotes"):
        found(written(tmp_path / "p.csv", table))


def test_rows_with_fewer_fields_than_the_header_have_empty_cells(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "id,prompt,guest,\r\na,Hello\r\nb,Bye,Ana\r\n")
    assert [(item.item_id, item.text, item.row) for item in found(path)] == [
        ("a", "Hello", {"guest": "", "Unnamed: 3": ""}),
        ("b", "Bye", {"guest": "Ana", "Unnamed: 3": ""}),
    ]


def test_quoted_fields_of_a_csv_keep_commas_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", '\ufeff"prompt","n"\n"Hello, ""world""","007"\n"One\ntwo",NA\n')
    assert [(item.text, item.row["n"]) for item in found(path)] == [
        ('Hello, "world"', "007"),
        ("One\ntwo", "NA"),
    ]


@pytest.mark.parametrize("stored", ["A1", "A1:B3", "B1:B2", "A1:D90"])
def test_every_row_of_a_workbook_is_found_whatever_size_it_says_it_has(stored: str, tmp_path: Path) -> None:
    rows = [[f"r{number}", f"Say {number}."] for number in range(1, 6)]
    path = workbook(tmp_path / "p.xlsx", [["id", "prompt", "guest"], *rows, [], ["r9", "", "Ana"]])
    edited(path, SHEET, lambda xml: re.sub(rb'ref="[^"]*"', f'ref="{stored}"'.encode(), xml, count=1))
    assert [(item.item_id, item.text, item.row) for item in found(path)] == [
        *((name, text, {"guest": ""}) for name, text in rows),
        ("r9", "", {"guest": "Ana"}),
    ]
    assert found(path)[-1].refusal == "the prompt of row 8 is empty"


@pytest.mark.parametrize("member", [SHEET, "xl/sharedStrings.xml", "xl/workbook.xml", "xl/styles.xml"])
@pytest.mark.parametrize("change", [lambda xml: xml[:-30], lambda xml: xml[:-60], lambda _: b""])
def test_a_workbook_whose_files_are_cut_is_refused(
    member: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = workbook(tmp_path / "p.xlsx", [["id", "prompt"], *([f"r{n}", f"Say {n}."] for n in range(9))])
    with pytest.raises(ConfigError, match=r"p\.xlsx: not an Excel workbook that can be read"):
        found(edited(path, member, change))


@pytest.mark.filterwarnings("ignore::UserWarning")  # openpyxl says what it leaves out
def test_a_workbook_that_is_damaged_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(20)
    path = workbook(tmp_path / "p.xlsx", [["id", "prompt"], *([f"r{n}", f"Say {n}."] for n in range(90))])
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as book:
        members = book.namelist()
    refused = 0
    for _ in range(150):
        path.write_bytes(whole)
        if chance.random() < 0.5:
            at = chance.randrange(len(whole))
            path.write_bytes(whole[:at] + chance.randbytes(3) + whole[at + 3 :])
        else:
            at, length = chance.randrange(200), chance.randrange(1, 30)
            edited(path, chance.choice(members), lambda xml: xml[:at] + xml[at + length :])  # noqa: B023
        try:
            found(path)
        except ConfigError:
            refused += 1
    assert refused > 30


def test_a_workbook_without_a_sheet_of_cells_is_refused(tmp_path: Path) -> None:
    with xlsxwriter.Workbook(tmp_path / "p.xlsx") as book:
        book.add_worksheet()
    with pytest.raises(ConfigError, match="the first sheet is empty"):
        found(tmp_path / "p.xlsx")


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ("Hello_x000D_\nworld", "Hello\nworld"),
        ("One_x000D__x000A_two_x0009_three", "One\ntwo\tthree"),
        ("A _xD83D__xDE00_ and half: _xD83D_", "A \U0001f600 and half: \ufffd"),
        ("my_xylophone, _x12_, __init__", "my_xylophone, _x12_, __init__"),
    ],
)
@pytest.mark.parametrize("inline", [False, True], ids=["shared", "inline"])
def test_line_breaks_and_controls_of_a_workbook_are_read_as_what_they_stand_for(
    stored: str, meant: str, inline: bool, tmp_path: Path
) -> None:
    with xlsxwriter.Workbook(tmp_path / "p.xlsx", {"constant_memory": inline}) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["prompt", "gu_x0065_st"])
        sheet.write_row(1, 0, ["PROMPT", "PROMPT"])

    def put(xml: bytes) -> bytes:
        return xml.replace(b"PROMPT", stored.encode()).replace(b"_x005F_x0065_", b"_x0065_")

    edited(tmp_path / "p.xlsx", SHEET if inline else "xl/sharedStrings.xml", put)
    (source,) = found(tmp_path / "p.xlsx")
    assert (source.text, source.row) == (meant, {"guest": meant})


def test_a_line_break_typed_in_excel_on_windows_is_no_part_of_the_words(tmp_path: Path) -> None:
    path = workbook(tmp_path / "p.xlsx", [["id", "prompt"], ["a", "Hello\r\nworld"]])
    assert texts(path) == ["Hello\nworld"]


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_columns_of_one_name_are_refused_by_that_name(ending: str, tmp_path: Path) -> None:
    rows = [["id", "prompt", "note", " prompt", "note "], ["a", "first", "1", "second", "2"]]
    path = tmp_path / f"p.{ending}"
    if ending == "csv":
        written(path, "".join(",".join(cells) + "\n" for cells in rows))
    else:
        workbook(path, rows)
    with pytest.raises(ConfigError, match=rf"p\.{ending}: more than one column is called 'prompt', 'note'; "):
        found(path)


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_several_columns_may_have_no_name(ending: str, tmp_path: Path) -> None:
    rows = [["", "prompt", "", "note"], ["1", "Say it.", "", "x"]]
    path = tmp_path / f"p.{ending}"
    if ending == "csv":
        written(path, "".join(",".join(cells) + "\n" for cells in rows))
    else:
        workbook(path, rows)
    (source,) = found(path)
    assert (source.text, source.row["note"]) == ("Say it.", "x")


LONG = "12345678901234567890123"


@pytest.mark.parametrize(
    "number",
    ["7", LONG, "-" + LONG, "18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 99],
)
def test_whole_numbers_of_json_lines_keep_every_digit(number: str, tmp_path: Path) -> None:
    line = f'{{"id": {number}, "prompt": "Say {LONG}.", "ref": {number}, "all": [{number}, {{"é": 0.5}}]}}\n'
    (source,) = found(written(tmp_path / "p.jsonl", line))
    assert (source.item_id, source.text) == (number, f"Say {LONG}.")
    assert source.row == {"ref": number, "all": f'[{number},{{"é":0.5}}]'}


def test_ids_that_differ_in_their_last_digits_alone_are_two(tmp_path: Path) -> None:
    rows = f'{{"id": {LONG}, "prompt": "a"}}\n{{"id": {LONG[:-1]}4, "prompt": "b"}}\n'
    path = written(tmp_path / "p.jsonl", rows)
    assert [item.refusal for item in found(path)] == ["", ""]


@pytest.mark.parametrize("line", [f'{{"n": {LONG}', f'{{"n": NaN, "m": {LONG}}}', f'{{"n": {"9" * 400}}}'])
def test_a_line_with_a_long_number_that_is_no_json_is_a_refused_row(line: str, tmp_path: Path) -> None:
    (source,) = found(written(tmp_path / "p.jsonl", line + "\n"))
    assert "line 1" in source.refusal
    assert "is not JSON" in source.refusal


@pytest.mark.parametrize("column", ["seed", "max_completion_tokens"])
def test_a_setting_that_no_request_can_carry_is_refused(column: str, tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", f"prompt,{column}\nOne.,{2**63 - 1}\nTwo.,{2**63}\nThree.,-{LONG}\n")
    first, *others = found(path)
    assert (getattr(first.settings, column), first.refusal) == (2**63 - 1, "")
    assert all(other.refusal.startswith(f"{column} ") for other in others)
    with closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        ledger.writer.put_sources([first, *others], "now")


def test_a_prompt_on_a_line_ends_where_the_line_does_and_nowhere_else(tmp_path: Path) -> None:
    said = ["One\u2028still one", "Two\x0bstill two", "Three\x85\x0c\x1c\u2029and more", "Four"]
    path = written(tmp_path / "lines.txt", "\ufeff" + "{}\n{}\r\n\r\n{}\r{}".format(*said))
    assert texts(path, one_prompt_per_line=True) == said


def rows_with_ids(path: Path, rows: Iterable[str]) -> Path:
    """A table with these ids; the prompts are numbered."""
    return written(path, "id,prompt\n" + "".join(f"{name},Say {n}.\n" for n, name in enumerate(rows)))


def test_a_row_whose_id_is_taken_never_takes_that_of_another(tmp_path: Path) -> None:
    wanted = ["a", "a", "a-2", "a#again", "a", "a#again-2", "b", "a#again"]
    given = [(item.item_id, bool(item.refusal)) for item in found(rows_with_ids(tmp_path / "p.csv", wanted))]
    assert [name for name, refused in given if not refused] == ["a", "a-2", "b"]
    assert len({name for name, _ in given}) == len(wanted)


def test_a_row_that_is_refused_for_more_than_its_id_takes_none_either(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "id,prompt,voice,format\na,One.,,\na,,,\na,Two.,,wma\na-2,Three.,,\n")
    assert [item.item_id for item in found(path) if not item.refusal] == ["a", "a-2"]


def prompts(path: Path, *asked: str) -> list[tuple[str | None, ...]]:
    """What each row is asked, turn by turn, or why it cannot be."""
    spec = JobSpec(inputs=(str(path),), output="out", prompt=asked)
    return [tuple(turn.text for turn in build_item(item, spec).turns) for item in found(path, prompt=asked)]


def test_a_prompt_can_name_every_column_of_its_table(tmp_path: Path) -> None:
    columns = {
        "id": "17",
        "name": "Anna",
        "filename": "anna",
        "voice": "ash",
        "format": "mp3",
        "system": "Be kind.",
        "deployment": "east",
        "temperature": "0.50",
        "seed": "007",
        "max_completion_tokens": "90",
    }
    path = written(tmp_path / "p.csv", f"{','.join(columns)}\n{','.join(columns.values())}\n")
    asked = "; ".join(f"{{{name}}}" for name in columns)
    assert prompts(path, asked) == [("; ".join(columns.values()),)]


def test_an_empty_cell_fills_in_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "id,name,voice,seed\n,Anna,,\n17,Bea,ash,4\n")
    assert prompts(path, "Order <{id}> for {name} <{voice}{seed}>", "And {id}?") == [
        ("Order <> for Anna <>", "And ?"),
        ("Order <17> for Bea <ash4>", "And 17?"),
    ]


def test_a_follow_up_can_name_a_column_that_the_first_prompt_does_not(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "id,prompt\n17,Say it.\n")
    assert prompts(path, "", "And {id}?") == [("Say it.", "And 17?")]


def test_a_column_that_the_table_does_not_have_is_still_unknown(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "id,name\n17,Anna\n")
    with pytest.raises(InputError, match=r"asks for \{seed\}; there is only: filename, id, item_id, name, "):
        prompts(path, "Seed {seed}")


def test_what_a_prompt_may_name_changes_no_fingerprint(tmp_path: Path) -> None:
    asked = "Greet {name} as {voice}."
    (source,) = found(written(tmp_path / "p.csv", "id,name,voice,seed\n17,Anna, ash,4\n"), prompt=asked)
    spec = JobSpec(inputs=("p.csv",), output="out", prompt=(asked,))
    (turn,) = build_item(source, spec).turns
    assert turn.text == "Greet Anna as ash."
    assert turn.fingerprint == build_item(replace(source, row={"name": "Anna"}), spec).turns[0].fingerprint
