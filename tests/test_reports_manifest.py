"""manifest.csv, written and read."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiobatch.errors import ConfigError, InputError
from audiobatch.model import Check
from audiobatch.reports.manifest import COLUMNS, choose_columns, read_manifest, write_csv

PINNED = (
    "item_id, turn, status, input, input_duration_s, prompt, transcript, audio_file, "
    "audio_duration_s, transcript_file, input_transcript, checks, review, review_note, version, "
    "voice, format, model, deployment, provider, transport, attempts, perhaps_billed, latency_s, "
    "input_text_tokens, input_audio_tokens, cached_tokens, output_text_tokens, output_audio_tokens, "
    "cost_usd, finish_reason, error_type, error_message, request_id, run_id, started_at, "
    "finished_at, parts, trimmed_s, word_error_rate, input_sha256, fingerprint, cost_basis"
)
ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from(list("=+-@'\"\t\r\n ,;x_0195F\x00\x1b\x85\u2028\ud800\U0001f600"))
)


def written(rows: Sequence[Mapping[Any, object]], **options: object) -> bytes:
    out = io.BytesIO()
    assert write_csv([rows], out, **options) == len(rows)  # type: ignore[arg-type]
    return out.getvalue()


def one_row(**values: object) -> dict[str, str]:
    text = written([values]).decode("utf-8-sig")
    return next(csv.DictReader(io.StringIO(text, newline="")))


def test_the_columns_are_those_that_users_scripts_rely_on() -> None:
    assert ", ".join(COLUMNS) == PINNED


def test_the_file_begins_with_the_mark_by_which_excel_knows_utf_8() -> None:
    assert written([]).startswith(b"\xef\xbb\xbfitem_id,turn,status,")


def test_a_job_without_rows_still_has_its_header() -> None:
    assert written([], extra_columns=["in.topic"]).decode("utf-8-sig").strip().split(",") == [
        *COLUMNS,
        "in.topic",
    ]


def test_values_are_written_plainly() -> None:
    row = one_row(
        item_id="a.wav",
        turn=1,
        latency_s=1.5,
        audio_duration_s=0.1 + 0.2,
        input_duration_s=0.0,
        cost_usd=Decimal("1E-7"),
        started_at=datetime(2026, 3, 1, 13, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=1))),
        finished_at=datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC),
        checks=(Check.SILENT, Check.CLIPPED),
        word_error_rate=float("nan"),
    )
    assert row["turn"] == "1"
    assert row["latency_s"] == "1.5"
    assert row["audio_duration_s"] == "0.3"
    assert row["input_duration_s"] == "0"
    assert row["cost_usd"] == "0.0000001"
    assert row["started_at"] == "2026-03-01T12:00:00.250Z"
    assert row["finished_at"] == "2026-03-01T12:00:01.000Z"
    assert row["checks"] == "silent clipped"
    assert row["word_error_rate"] == ""
    assert row["transcript"] == ""


def test_pandas_alone_reads_numbers_as_numbers_and_times_as_times() -> None:
    rows = [
        {"item_id": f"{n}", "cost_usd": Decimal("0.01"), "started_at": datetime.now(UTC)} for n in range(3)
    ]
    frame = pd.read_csv(io.BytesIO(written(rows)), parse_dates=["started_at"])
    assert frame["cost_usd"].sum() == pytest.approx(0.03)
    assert str(frame["started_at"].dt.tz) == "UTC"


@settings(max_examples=150)
@given(rows=st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), min_size=1, max_size=4))
def test_any_text_goes_into_the_csv_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    names = ("item_id", "prompt", "transcript")
    raw = written([dict(zip(names, row, strict=True)) for row in rows])
    path = tmp_path_factory.mktemp("csv") / "manifest.csv"
    path.write_bytes(raw)
    frame = read_manifest(path)
    assert [tuple(row) for row in frame[list(names)].itertuples(index=False)] == rows
    assert written(frame.to_dict("records")) == raw


def test_a_text_file_and_a_binary_file_get_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"item_id": "é", "transcript": "line\r\nline\nline\r"}]
    with (tmp_path / "m.csv").open("w", encoding="utf-8", newline="") as out:
        write_csv([rows], out)
    assert (tmp_path / "m.csv").read_bytes() == written(rows)


def test_rows_are_written_in_chunks_under_one_header() -> None:
    out = io.BytesIO()
    chunks = ([{"item_id": f"{chunk}-{n}"} for n in range(3)] for chunk in range(3))
    assert write_csv(chunks, out) == 9
    lines = out.getvalue().decode("utf-8-sig").splitlines()
    assert len(lines) == 10
    assert [line.split(",")[0] for line in lines[1:]] == [f"{c}-{n}" for c in range(3) for n in range(3)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_copies_that_spreadsheets_save_are_read_whatever_their_separator_and_encoding(
    tmp_path: Path, separator: str, encoding: str
) -> None:
    path = tmp_path / "saved.csv"
    table = f'item_id{separator}review{separator}note\r\n007{separator}redo{separator}"é{separator} x"\r\n'
    path.write_bytes(table.encode(encoding))
    assert read_manifest(path).to_dict("records") == [
        {"item_id": "007", "review": "redo", "note": f"é{separator} x"}
    ]


def test_words_that_look_like_missing_values_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(written([{"item_id": "NA", "transcript": "null", "voice": "1e5", "prompt": "007"}]))
    row = read_manifest(path).iloc[0]
    assert (row["item_id"], row["transcript"], row["voice"], row["prompt"]) == ("NA", "null", "1e5", "007")


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3\n", "\n\n"])
def test_what_is_no_table_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"odd\.csv"):
        read_manifest(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv"):
        read_manifest(tmp_path / "gone.csv")


def test_columns_are_chosen_and_ordered_by_name_and_by_pattern() -> None:
    extra = ["in.topic", "reply.mood"]
    assert choose_columns(["transcript", "item_id", "in.*"], extra) == ("transcript", "item_id", "in.topic")
    assert choose_columns(["transcript", "*"], extra)[:2] == ("transcript", "item_id")
    assert len(choose_columns(["transcript", "*"], extra)) == len(COLUMNS) + 2
    assert "fingerprint" not in choose_columns(["-fingerprint", "-*_tokens"], extra)
    assert choose_columns([], extra) == (*COLUMNS, *extra)


def test_a_column_that_does_not_exist_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'transcript'\? Known are: item_id, "):
        choose_columns(["transcrpt"])
    with pytest.raises(ConfigError, match=r"no column 'xyz'\. Known are: item_id, "):
        choose_columns(["xyz"])


def test_chosen_columns_are_written_in_their_order() -> None:
    raw = written([{"item_id": "a", "transcript": "hi"}], columns=choose_columns(["transcript", "item_id"]))
    assert raw.decode("utf-8-sig") == "transcript,item_id\r\nhi,a\r\n"
