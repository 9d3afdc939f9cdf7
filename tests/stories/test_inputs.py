"""What counts as an input, what its id is, and what its row may say for itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from audiobatch.calls.stats import RunSummary
from audiobatch.errors import ConfigError
from audiobatch_emulator.process import EmulatorProcess
from tests.running import azure, rows_of, run_job, write_wav


def send(emulator: EmulatorProcess, tmp_path: Path, *inputs: Path, **settings: Any) -> RunSummary:
    return run_job(
        inputs=[str(path) for path in inputs], output=str(tmp_path / "out"), **azure(emulator, **settings)
    )


def ids(summary: RunSummary) -> list[str]:
    return [row["item_id"] for row in rows_of(summary)]


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    columns = list(rows[0])
    if path.suffix == ".csv":
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".xlsx":
        book = Workbook()
        book.active.append(columns)
        for row in rows:
            book.active.append([row[name] for name in columns])
        book.save(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_walked_in_order_and_other_files_are_only_counted(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    for name in ("b.wav", "a.wav", "sub/c.wav", "sub/deeper/d.wav"):
        write_wav(tmp_path / "in" / name, seconds=0.3)
    (tmp_path / "in" / "notes.txt").write_text("a note beside recordings is no prompt")
    (tmp_path / "in" / ".hidden.wav").write_bytes(b"")
    (tmp_path / "in" / "link.wav").symlink_to(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert ids(send(emulator, tmp_path, tmp_path / "in")) == [
        "a.wav",
        "b.wav",
        "sub/c.wav",
        "sub/deeper/d.wav",
    ]


def test_several_roots_put_their_names_in_front(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "north" / "x.wav", seconds=0.3)
    write_wav(tmp_path / "south" / "x.wav", seconds=0.3)
    assert ids(send(emulator, tmp_path, tmp_path / "north", tmp_path / "south")) == [
        "north/x.wav",
        "south/x.wav",
    ]


def test_files_of_one_folder_keep_their_own_names(emulator: EmulatorProcess, tmp_path: Path) -> None:
    paths = [write_wav(tmp_path / "in" / name, seconds=0.3) for name in ("x.wav", "y.wav")]
    assert ids(send(emulator, tmp_path, *paths)) == ["x.wav", "y.wav"]


def test_an_input_given_twice_is_not_paid_twice(emulator: EmulatorProcess, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "in" / "x.wav", seconds=0.3)
    with pytest.raises(ConfigError, match="already part of"):
        send(emulator, tmp_path, tmp_path / "in", path)


def test_an_output_folder_inside_the_input_is_never_taken_for_inputs(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "x.wav", seconds=0.3)
    common = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "in" / "out"), **azure(emulator)}
    assert run_job(**common).sent == 1
    assert run_job(**common).items == 1


@pytest.mark.parametrize("ending", ["csv", "xlsx", "jsonl"])
def test_a_table_gives_prompts_with_ids_settings_and_columns_of_its_own(
    ending: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    path = table(
        tmp_path / f"prompts.{ending}",
        [
            {
                "id": "hello",
                "prompt": "Say hello.",
                "voice": "echo",
                "format": "mp3",
                "filename": "greeting",
                "n": 1,
            },
            {"id": "", "prompt": "Say goodbye.", "voice": "", "format": "", "filename": "", "n": 2},
            {"id": "", "prompt": "Say goodbye.", "voice": "", "format": "", "filename": "", "n": 3},
        ],
    )
    summary = send(emulator, tmp_path, path)
    first, second, third = rows_of(summary)
    assert first["item_id"] == "hello"
    assert (first["voice"], first["format"], first["audio_file"]) == ("echo", "mp3", "audio/greeting.mp3")
    assert second["item_id"].startswith("prompt-")
    assert third["item_id"] == second["item_id"] + "-2"
    assert (second["voice"], second["format"]) == ("alloy", "wav")
    assert [row["in.n"] for row in (first, second, third)] == ["1", "2", "3"]


def test_a_semicolon_table_from_a_spreadsheet_is_read(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes("\ufeffid;prompt\r\nx;Grüße, bitte\r\n".encode())
    (row,) = rows_of(send(emulator, tmp_path, tmp_path / "p.csv"))
    assert (row["item_id"], row["prompt"]) == ("x", "Grüße, bitte")


def test_placeholders_are_filled_from_the_row(emulator: EmulatorProcess, tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", [{"id": "x", "name": "Ada", "city": "Turin"}])
    (row,) = rows_of(send(emulator, tmp_path, path, prompt="Greet {name} from {city}. {{literal}}"))
    assert row["prompt"] == "Greet Ada from Turin. {literal}"


def test_a_placeholder_can_be_a_column_that_also_sets_something(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    path = table(tmp_path / "p.csv", [{"id": "17", "name": "Ada", "seed": "4", "voice": ""}])
    (row,) = rows_of(send(emulator, tmp_path, path, prompt="Order {id} for {name}, {seed}.{voice}"))
    assert (row["item_id"], row["prompt"], row["voice"]) == ("17", "Order 17 for Ada, 4.", "alloy")
    assert [name for name in row if name.startswith("in.")] == ["in.name"]


def test_an_unknown_placeholder_is_an_error_before_anything_is_sent(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    path = table(tmp_path / "p.csv", [{"id": "x", "prompt": "hi", "name": "Ada"}])
    with pytest.raises(ConfigError, match=r"\{nmae\}.*name"):
        send(emulator, tmp_path, path, prompt="Greet {nmae}.")
    assert emulator.journal() == []


def test_a_job_prompt_without_placeholders_goes_before_each_text(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("Good morning.")
    (row,) = rows_of(send(emulator, tmp_path, tmp_path / "t.txt", prompt="Translate to French:"))
    assert row["prompt"] == "Translate to French:\n\nGood morning."


def test_each_line_can_be_a_prompt(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("One.\n\nTwo.\n")
    rows = rows_of(send(emulator, tmp_path, tmp_path / "lines.txt", one_prompt_per_line=True))
    assert [row["prompt"] for row in rows] == ["One.", "Two."]


def test_json_lines_come_from_standard_input(emulator: EmulatorProcess, tmp_path: Path) -> None:
    from tests.running import audiobatch

    done = audiobatch(
        *("run", "-", "--no-prefect", "--output", tmp_path / "out", "--deployment", "gpt-audio-1.5"),
        env={"AZURE_OPENAI_ENDPOINT": emulator.base_url, "AZURE_OPENAI_API_KEY": emulator.api_key},
        stdin='{"id": "a", "prompt": "Say a."}\n{"prompt": "Say b.", "voice": "echo"}\n',
    )
    assert done.returncode == 0, done.stderr
    from tests.running import read_manifest

    rows = read_manifest(tmp_path / "out" / "manifest.csv")
    assert [(row["prompt"], row["voice"]) for row in rows] == [("Say a.", "alloy"), ("Say b.", "echo")]


def test_two_items_never_share_an_output(emulator: EmulatorProcess, tmp_path: Path) -> None:
    path = table(
        tmp_path / "p.csv",
        [
            {"id": "a", "prompt": "Say a.", "filename": "same"},
            {"id": "b", "prompt": "Say b.", "filename": "Same"},
            {"id": "same", "prompt": "Say c.", "filename": ""},
        ],
    )
    summary = send(emulator, tmp_path, path)
    assert [row["status"] for row in rows_of(summary)] == ["succeeded", "refused", "refused"]
    assert "'a'" in rows_of(summary)[1]["error_message"]
