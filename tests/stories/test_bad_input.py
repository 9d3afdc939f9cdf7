"""Bad inputs and settings: a clear word before any money is spent, and everything good still runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audiobatch.errors import ConfigError
from audiobatch.execution.job import Job
from audiobatch.limits.retry import RetryBudget
from audiobatch.planning.plan import Plan
from audiobatch_emulator.process import EmulatorProcess
from tests.running import audiobatch, azure, rows_of, run_job, write_wav

GOOD = "good.wav"


def broken_wav(path: Path, keep: float) -> None:
    write_wav(path, seconds=1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def other_codec(path: Path) -> None:
    """A WAV whose codec has a number that nobody knows."""
    data = bytearray(write_wav(path, seconds=1).read_bytes())
    data[20:22] = b"\x99\x99"
    path.write_bytes(data)


def other_rate(path: Path) -> None:
    """A WAV of 4 294 967 295 samples a second."""
    data = bytearray(write_wav(path, seconds=1).read_bytes())
    data[24:28] = b"\xff" * 4
    path.write_bytes(data)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.wav": (lambda path: path.write_bytes(b""), "0 bytes"),
    "text.wav": (lambda path: path.write_text("this is no sound"), "text"),
    "random.wav": (lambda path: path.write_bytes(os.urandom(4000)), ""),
    "truncated.wav": (lambda path: broken_wav(path, 0.5), "cut short"),
    "header.wav": (lambda path: broken_wav(path, 0.0009), ""),
    "codec.wav": (other_codec, "codec"),
    "4ghz.wav": (other_rate, "sample rate"),
    "nothing.mp3": (lambda path: path.write_bytes(b"\0" * 5000), ""),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_recording_is_refused_with_its_reason_and_the_good_one_is_sent(
    name: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    make, reason = BAD_FILES[name]
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    make(tmp_path / "in" / name)
    summary = run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))
    assert (summary.exit_code, summary.succeeded, summary.refused) == (3, 1, 1)
    rows = {row["item_id"]: row for row in rows_of(summary)}
    assert rows[GOOD]["status"] == "succeeded"
    assert rows[name]["status"] == "refused"
    assert rows[name]["error_type"] == "input"
    assert reason in rows[name]["error_message"]
    assert rows[name]["attempts"] == ""
    assert len(emulator.settled_journal(1)) == 1


def test_a_recording_that_cannot_be_converted_fails_alone_whatever_the_decoder_raises(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder may fail when a file is sent that it could read when it was found."""
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    write_wav(tmp_path / "in" / "odd.wav", seconds=0.3, rate_hz=96_000)  # is resampled before it goes

    def refuse(*_arguments: object) -> None:
        raise TypeError("open() got an unexpected keyword argument")

    monkeypatch.setattr("audiobatch.audio.convert._convert", refuse)
    summary = run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))
    rows = {row["item_id"]: row for row in rows_of(summary)}
    assert (rows["odd.wav"]["status"], rows["odd.wav"]["error_type"]) == ("failed", "input")
    assert "unexpected keyword argument" in rows["odd.wav"]["error_message"]
    assert (summary.exit_code, rows[GOOD]["status"]) == (3, "succeeded")
    assert len(emulator.settled_journal(1)) == 1


def test_a_file_that_cannot_be_read_is_refused(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    (tmp_path / "in" / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.wav")
    summary = run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))
    assert (summary.succeeded, summary.items) == (1, 1)


def test_a_file_that_is_gone_when_its_turn_comes_is_a_failed_row(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    lost = write_wav(tmp_path / "in" / "lost.wav", seconds=0.3)

    def remove(job: Job) -> None:
        prepare = job.prepare

        async def prepare_then_remove() -> Plan:
            plan = await prepare()
            lost.unlink()
            return plan

        job.prepare = prepare_then_remove  # type: ignore[method-assign]  # a stand-in

    summary = run_job(
        inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), on_open=remove, **azure(emulator)
    )
    rows = {row["item_id"]: row for row in rows_of(summary)}
    assert (rows["lost.wav"]["status"], rows["lost.wav"]["error_type"]) == ("failed", "input")
    assert "gone" in rows["lost.wav"]["error_message"]
    assert rows[GOOD]["status"] == "succeeded"


def test_a_file_that_is_gone_before_the_second_turn_takes_nothing_from_the_first(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = write_wav(tmp_path / "in" / "lost.wav", seconds=0.3)

    def allows(_budget: object) -> bool:
        lost.unlink()
        return False

    monkeypatch.setattr(RetryBudget, "allows", allows)
    emulator.put_faults({"when": {"text": "Shorter", "nth": 1}, "do": {"status": 503}})
    summary = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        turns=[{"prompt": "What?"}, {"prompt": "Shorter."}],
        **azure(emulator),
    )
    first, second = rows_of(summary)
    assert (summary.failed, first["status"]) == (1, "succeeded")
    assert (tmp_path / "out" / (first["audio_file"] or first["transcript_file"])).exists()
    assert (second["status"], second["error_type"]) == ("failed", "input")
    assert "gone" in second["error_message"]


def test_bad_rows_of_a_table_are_refused_and_the_good_ones_sent(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text(
        "id,prompt,format\ngood,Say hello.,\nempty,,\ngood,Say it twice.,\nodd,Say something.,wma\n"
    )
    summary = run_job(inputs=[str(tmp_path / "p.csv")], output=str(tmp_path / "out"), **azure(emulator))
    found = [(row["item_id"], row["status"], row["error_message"]) for row in rows_of(summary)]
    assert [item[:2] for item in found] == [
        ("good", "succeeded"), ("empty", "refused"), ("good#again", "refused"), ("odd", "refused"),
    ]  # fmt: skip
    assert "empty" in found[1][2]
    assert "row 4" in found[2][2]
    assert "row 2" in found[2][2]
    assert "'wma' is not one of" in found[3][2]


def test_a_broken_line_of_json_lines_is_refused_and_the_rest_sent(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say hello."}\n{"prompt": \n["a list"]\n')
    summary = run_job(inputs=[str(tmp_path / "p.jsonl")], output=str(tmp_path / "out"), **azure(emulator))
    assert [row["status"] for row in rows_of(summary)] == ["succeeded", "refused", "refused"]
    assert "line 2" in rows_of(summary)[1]["error_message"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.stat(), "no recordings"),
        (lambda folder: (folder / "photo.jpg").write_bytes(b"x"), "1 files with other endings"),
    ],
    ids=["empty folder", "no audio in it"],
)
def test_a_folder_without_inputs_is_said_to_be_one(
    make: Callable[[Path], object], message: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    with pytest.raises(ConfigError, match=message):
        run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))


def test_an_output_that_is_a_file_is_refused(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="out"):
        run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))
    assert emulator.journal() == []


def test_a_table_without_prompts_names_its_columns(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,text\nx,hello\n")
    with pytest.raises(ConfigError, match="no column 'prompt'; there are: id, text"):
        run_job(inputs=[str(tmp_path / "p.csv")], output=str(tmp_path / "out"), **azure(emulator))


def test_a_table_whose_prompts_have_bare_commas_is_refused_before_anything_is_sent(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt\nHello, world\nPlease close the door, the cat is out\n")
    with pytest.raises(ConfigError, match=r"line 2\b[\s\S]*double quotes"):
        run_job(inputs=[str(tmp_path / "p.csv")], output=str(tmp_path / "out"), **azure(emulator))
    assert emulator.journal() == []


def test_text_prompts_cannot_ask_for_text_alone(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    with pytest.raises(ConfigError, match="audio"):
        run_job(
            inputs=[str(tmp_path / "p.txt")],
            output=str(tmp_path / "out"),
            modalities="text",
            **azure(emulator),
        )
    assert emulator.journal() == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), ["no input given"]),
        (("nowhere",), ["nowhere", "no such file or folder"]),
        (("nowhere", "--format", "wma"), ["wma", "wav"]),
        (("nowhere", "--max-concurrency", "0"), ["--max-concurrency", "greater than or equal to 1"]),
        (("nowhere", "--stop-at", "late"), ["--stop-at", "HH:MM"]),
        (("nowhere", "--endpoint", "http://example.com"), ["https://"]),
    ],
)
def test_wrong_arguments_are_explained_with_exit_code_2(
    arguments: tuple[str, ...], wanted: list[str], tmp_path: Path
) -> None:
    done = audiobatch("run", *arguments, "--no-prefect", "--provider", "local", cwd=tmp_path)
    assert done.returncode == 2
    assert not done.stdout
    for word in wanted:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_with_nothing_set_up_one_message_says_what_to_set(tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / GOOD, seconds=0.3)
    done = audiobatch("run", "in", "--no-prefect", cwd=tmp_path)
    assert done.returncode == 2
    for word in ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENT_NAME", "az login", "--provider local"):
        assert word in done.stderr
