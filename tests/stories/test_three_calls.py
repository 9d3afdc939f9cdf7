"""The three calls of the quickstart, as batches: over every form of address, with a key and without one."""

import hashlib
import os
import wave
from pathlib import Path
from typing import Any

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.running import azure, rows_of, run_job, write_wav

ADDRESSES = {
    "azure dated": {"api_version": "2025-01-01-preview"},
    "azure v1": {"api_version": "v1"},
    "openai": {"provider": "openai"},
}


@pytest.fixture(
    params=[("azure dated", "key"), ("azure dated", "entra"), ("azure v1", "key"), ("azure v1", "entra"),
            ("openai", "key")],
    ids=" ".join,
)  # fmt: skip
def service(
    request: pytest.FixtureRequest, emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """JobSpec fields for one form of address and one kind of credential."""
    address, kind = request.param
    settings = {"endpoint": emulator.base_url, "deployment": "gpt-audio-1.5", **ADDRESSES[address]}
    if address == "openai":
        monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
        settings["endpoint"] += "/v1"
    elif kind == "key":
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", emulator.api_key)
    else:
        for name, value in emulator.identity_env.items():
            monkeypatch.setenv(name, value)
    return settings


def test_a_text_prompt_is_answered_in_speech(
    service: dict[str, Any], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "sky.txt").write_text("Why is the sky blue?")
    summary = run_job(inputs=[str(tmp_path / "prompts")], output=str(tmp_path / "out"), **service)

    assert (summary.exit_code, summary.succeeded, summary.sent) == (0, 1, 1)
    (row,) = rows_of(summary)
    assert row["item_id"] == "sky.txt"
    assert row["status"] == "succeeded"
    assert "sky" in row["transcript"]
    with wave.open(str(tmp_path / "out" / row["audio_file"])) as sound:
        assert sound.getframerate() == 24_000
        assert sound.getnframes() / 24_000 == pytest.approx(float(row["audio_duration_s"]), abs=0.01)
    assert (tmp_path / "out" / row["transcript_file"]).read_text() == row["transcript"]
    assert float(row["audio_duration_s"]) * 20 == pytest.approx(int(row["output_audio_tokens"]), abs=1)
    (call,) = emulator.settled_journal(1)
    assert (call["status"], call["billed"], call["delivered"]) == (200, True, True)


def test_a_recording_is_answered_in_speech(
    service: dict[str, Any], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    recording = write_wav(tmp_path / "in" / "memo.wav", seconds=2.0)
    summary = run_job(
        inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), prompt="Describe this.", **service
    )

    (row,) = rows_of(summary)
    assert row["status"] == "succeeded"
    assert float(row["input_duration_s"]) == pytest.approx(2.0, abs=0.01)
    assert row["input_sha256"] == hashlib.sha256(recording.read_bytes()).hexdigest()
    assert int(row["input_audio_tokens"]) == pytest.approx(20, abs=1)
    assert (tmp_path / "out" / row["audio_file"]).stat().st_size > 1000
    assert emulator.settled_journal(1)[0]["input_audio_tokens"] == int(row["input_audio_tokens"])


def test_a_follow_up_names_the_earlier_reply_and_has_its_own_row(
    service: dict[str, Any], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "memo.wav")
    summary = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        prompt=("Describe this.", "Now in one sentence."),
        **service,
    )

    first, second = rows_of(summary)
    assert (first["turn"], second["turn"]) == ("1", "2")
    assert first["audio_file"]
    assert not second["audio_file"], "a follow-up asks for text alone unless it says otherwise"
    assert second["transcript"]
    assert (tmp_path / "out" / second["transcript_file"]).name == "memo.wav.t2.txt"
    assert len(emulator.settled_journal(2)) == 2
    assert (summary.sent, summary.succeeded) == (1, 1), "counts are of items"


def test_only_text_is_asked_for_and_saved(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav")
    summary = run_job(
        inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), modalities="text", **azure(emulator)
    )
    (row,) = rows_of(summary)
    assert (row["status"], row["audio_file"], row["output_audio_tokens"]) == ("succeeded", "", "0")
    assert not (tmp_path / "out" / "audio").exists()


def test_a_recording_is_sent_alone_without_a_prompt(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav")
    summary = run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator))
    (row,) = rows_of(summary)
    assert row["status"] == "succeeded"
    assert row["prompt"] == ""


def test_read_aloud_speaks_the_prompt_word_for_word(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("The museum closes in ten minutes.")
    summary = run_job(
        inputs=[str(tmp_path / "line.txt")], output=str(tmp_path / "out"), read_aloud=True, **azure(emulator)
    )
    (row,) = rows_of(summary)
    assert row["transcript"] == "The museum closes in ten minutes."
    assert "not_verbatim" not in row["checks"]


@pytest.mark.parametrize("audio_format", ["wav", "mp3", "flac", "opus", "aac", "pcm16"])
def test_every_format_is_saved_so_that_it_plays(
    audio_format: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from audiobatch.audio.probe import probe

    (tmp_path / "line.txt").write_text("Good morning.")
    summary = run_job(
        inputs=[str(tmp_path / "line.txt")],
        output=str(tmp_path / "out"),
        format=audio_format,
        **azure(emulator),
    )
    (row,) = rows_of(summary)
    saved = tmp_path / "out" / row["audio_file"]
    assert saved.suffix == (".wav" if audio_format == "pcm16" else f".{audio_format}")
    assert probe(saved).media.duration_s == pytest.approx(float(row["audio_duration_s"]), abs=0.15)
    if audio_format == "pcm16":
        assert saved.with_suffix(".pcm").stat().st_size == saved.stat().st_size - 44


def test_an_expired_audio_id_is_replaced_by_the_words_and_nothing_is_bought_twice(tmp_path: Path) -> None:
    from audiobatch_emulator.process import EmulatorProcess

    write_wav(tmp_path / "in" / "memo.wav")
    with EmulatorProcess("--speech", "tone", "--audio-id-life", "0.2") as emulator:
        common = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), **azure(emulator)}
        run_job(prompt=("Describe this.",), **common)
        summary = run_job(prompt=("Describe this.", "And now?"), keep=True, **common)
        journal = emulator.settled_journal(2)
    assert [row["status"] for row in rows_of(summary)] == ["succeeded", "succeeded"]
    assert sum(call["billed"] for call in journal) == 2


def test_the_key_is_nowhere_in_what_was_written(emulator: EmulatorProcess, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("Good morning.")
    run_job(inputs=[str(tmp_path / "line.txt")], output=str(tmp_path / "out"), **azure(emulator))
    key = os.environ["AZURE_OPENAI_API_KEY"].encode()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert key not in path.read_bytes(), path
