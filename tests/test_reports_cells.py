"""Text in spreadsheet cells: nothing evaluates, nothing is lost."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.reports.manifest import (
    CELL_LIMIT_UTF16,
    cut,
    is_formula_like,
    protect,
    unprotect,
    utf16_length,
)

ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from(
        list(
            "=+-@'\"\t\r\n ,;x_0195F|!()"
            "\uff1d\uff0b\uff0d\uff20\x00\x1b\x7f\x85\u200b\u202e\ufeff\ud800\U0001f600"
        )
    )
)


@given(ANY_TEXT)
def test_what_is_protected_comes_back_unchanged(text: str) -> None:
    assert unprotect(protect(text)) == text


@given(ANY_TEXT)
def test_a_protected_cell_never_begins_like_a_formula_unless_an_apostrophe_is_before_it(text: str) -> None:
    cell = protect(text)
    assert cell.startswith("'") or not is_formula_like(cell)


@given(ANY_TEXT)
def test_a_protected_cell_holds_nothing_but_what_every_reader_accepts(text: str) -> None:
    cell = protect(text)
    cell.encode("utf-8")
    assert not any(ord(c) < 32 and c not in "\t\r\n" for c in cell)
    assert not any(0x7F <= ord(c) <= 0x9F for c in cell)


@given(ANY_TEXT, ANY_TEXT)
def test_two_texts_never_share_a_cell(one: str, other: str) -> None:
    assert (protect(one) == protect(other)) == (one == other)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(1)",
        "\t=1",
        "\rx",
        "\nx",
        " =1",
        "\u00a0=1",
        '"=1',
        "'=1",
        "''=1",
        "“=1",
        "\u200b=1",
        "\ufeff=1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20x",
        "=cmd|' /C calc'!A0",
        '=HYPERLINK("http://x","y")',
    ],
)
def test_every_known_beginning_of_a_formula_gets_an_apostrophe(text: str) -> None:
    assert protect(text).startswith("'")
    assert unprotect(protect(text)) == text


@pytest.mark.parametrize(
    "text", ["", "hello", "'tis fine", "a=b", "1-2", "“Yes,” she said", "שלום", "😀", "x_y", "rock 'n' roll"]
)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert protect(text) == text
    assert unprotect(text) == text


def test_control_characters_become_visible_escapes_and_such_escapes_are_escaped() -> None:
    assert protect("a\x1b[31mb") == "a_x001B_[31mb"
    assert protect("_x001B_") == "_x005F_x001B_"
    assert unprotect("_x005F_x001B_") == "_x001B_"


@given(ANY_TEXT)
def test_a_protected_cell_survives_a_csv_file(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([protect(text), "end"])
    file.seek(0)
    assert next(csv.reader(file, strict=True)) == [protect(text), "end"]


@given(st.integers(32_000, 40_000), st.sampled_from(["a", "é", "😀", "a😀", "😀a"]))
def test_a_text_too_long_for_excel_is_cut_at_a_whole_character_and_says_where_the_whole_is(
    n: int, unit: str
) -> None:
    text = (unit * n)[:n]
    shown, was_cut = cut(text, "transcripts/a.txt")
    assert utf16_length(shown) <= CELL_LIMIT_UTF16
    shown.encode("utf-8")
    assert was_cut == (utf16_length(text) > CELL_LIMIT_UTF16)
    if was_cut:
        assert utf16_length(shown) >= CELL_LIMIT_UTF16 - 1
        assert shown.endswith(f" … [cut: {n} characters, whole in transcripts/a.txt]")
        assert text.startswith(shown[: shown.rindex(" … [cut")])
    else:
        assert shown == text
