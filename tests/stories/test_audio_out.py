"""Replies as a product needs them: in any format, equally loud, cut close, checked, asked again where flawed."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiobatch.audio.finish import measure_loudness
from audiobatch.audio.probe import probe
from audiobatch.calls.stats import RunSummary
from audiobatch.errors import ConfigError
from audiobatch_emulator.process import EmulatorProcess
from tests.bare_server import BareServer, bare_server, completion
from tests.narrowing import local, present
from tests.running import azure, rows_of, run_job, write_wav


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "line.txt"
    path.parent.mkdir()
    path.write_text("The museum closes in ten minutes.")
    return path


def job(emulator: EmulatorProcess, tmp_path: Path, **settings: Any) -> RunSummary:
    return run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator, **settings))


def audio_of(summary: RunSummary) -> tuple[Path, dict[str, str]]:
    (row,) = rows_of(summary)
    return local(summary.output) / row["audio_file"], row


@pytest.mark.parametrize(("audio_format", "codec"), [("m4a", "aac"), ("ogg", "vorbis")])
def test_formats_that_the_service_does_not_give_are_encoded_here(
    audio_format: str, codec: str, prompt: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    path, row = audio_of(job(emulator, tmp_path, format=audio_format))
    assert (path.suffix, row["format"]) == (f".{audio_format}", audio_format)
    media = probe(path).media
    assert media.codec == codec
    assert media.duration_s == pytest.approx(float(row["audio_duration_s"]), abs=0.1)
    assert not media.notes


@pytest.mark.parametrize("audio_format", ["wav", "mp3", "pcm16"])
def test_replies_come_to_the_loudness_that_is_asked_for(
    audio_format: str, prompt: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    path, _ = audio_of(job(emulator, tmp_path, format=audio_format, normalize=-23))
    measured = measure_loudness(path.read_bytes())
    assert measured.integrated_lufs == pytest.approx(-23, abs=0.5)
    if audio_format == "pcm16":
        assert path.with_suffix(".pcm").read_bytes() == path.read_bytes()[44:]


def test_silence_around_a_reply_is_cut_and_its_edges_fade(tmp_path: Path, prompt: Path) -> None:
    import base64

    from tests.bare_server import voice

    with_silence = io.BytesIO()
    samples, rate = soundfile.read(io.BytesIO(voice(1.0)))
    quiet = np.zeros(rate)
    soundfile.write(with_silence, np.concatenate((quiet, samples, quiet)), rate, format="WAV")
    body = completion("Yes.", sound_s=1.0)
    body["choices"][0]["message"]["audio"]["data"] = base64.b64encode(with_silence.getvalue()).decode()
    common: dict[str, Any] = {"inputs": [str(prompt)], "provider": "openai"}
    with bare_server(lambda *_: body) as server:
        plain = run_job(output=str(tmp_path / "plain"), endpoint=server.url, **common)
        cut = run_job(
            output=str(tmp_path / "cut"), endpoint=server.url, trim_reply_silence=True, fade_s=0.3, **common
        )
    assert float(audio_of(plain)[1]["audio_duration_s"]) == pytest.approx(3.0, abs=0.01)
    path, row = audio_of(cut)
    assert float(row["audio_duration_s"]) == pytest.approx(1.2, abs=0.06)
    sound, _ = soundfile.read(path)
    beginning, middle = (
        np.abs(sound[: int(0.16 * 24_000)]),
        np.abs(sound[int(0.5 * 24_000) : int(0.7 * 24_000)]),
    )
    assert beginning.max() < 0.6 * middle.max()


def test_finishing_is_part_of_what_was_asked_for(
    prompt: Path, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    job(emulator, tmp_path)
    with pytest.raises(ConfigError, match="normalize"):
        job(emulator, tmp_path, normalize=True)
    assert job(emulator, tmp_path, normalize=True, redo=True).sent == 1
    assert job(emulator, tmp_path, normalize=True).sent == 0


def test_a_reply_as_it_came_is_not_decoded(
    prompt: Path, emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finishing costs nothing where it is not asked for: its code is not even called."""
    from audiobatch.storage import artifacts

    monkeypatch.setattr(artifacts, "finish_reply", lambda *_: pytest.fail("decoded"))
    assert job(emulator, tmp_path).succeeded == 1


# Asked again.


def flawed_then(good_after: int) -> Callable[[str, bytes, int], object]:
    """Replies that ran out of tokens, and a good one after so many."""

    def reply(_path: str, _body: bytes, before: int) -> object:
        reason = "stop" if before >= good_after else "length"
        return completion(f"Reply number {before + 1}.", sound_s=1.5, finish_reason=reason)

    return reply


def bare_job(server: BareServer, prompt: Path, tmp_path: Path, **settings: Any) -> RunSummary:
    return run_job(
        inputs=[str(prompt)],
        output=str(tmp_path / "out"),
        provider="openai",
        endpoint=server.url,
        **settings,
    )


def attempts_of(summary: RunSummary) -> list[tuple[Any, ...]]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(local(summary.output / "ledger.db"))) as ledger:
        return ledger.execute("SELECT number, state, cost_usd FROM attempts ORDER BY started_at").fetchall()


def test_a_flaw_is_only_flagged_unless_the_job_says_otherwise(prompt: Path, tmp_path: Path) -> None:
    with bare_server(flawed_then(1)) as server:
        summary = bare_job(server, prompt, tmp_path)
    (row,) = rows_of(summary)
    assert (row["checks"], row["attempts"], len(server.bodies)) == ("truncated", "1", 1)


def test_a_flawed_reply_is_asked_for_again_and_kept_beside_the_new_one(prompt: Path, tmp_path: Path) -> None:
    with bare_server(flawed_then(1)) as server:
        summary = bare_job(server, prompt, tmp_path, on_check=("truncated=redo",))
    (row,) = rows_of(summary)
    assert (row["checks"], row["attempts"], row["version"]) == ("", "2", "2")
    assert row["transcript"] == "Reply number 2."
    assert (
        local(summary.output / "versions" / "v1" / "transcripts" / "line.txt")
    ).read_text() == "Reply number 1."
    attempts = attempts_of(summary)
    assert [attempt[:2] for attempt in attempts] == [(1, "succeeded"), (2, "succeeded")]
    assert all(attempt[2] is not None for attempt in attempts), "each call is in the account of money"


def test_it_is_asked_so_often_and_no_more(prompt: Path, tmp_path: Path) -> None:
    with bare_server(flawed_then(99)) as server:
        summary = bare_job(server, prompt, tmp_path, on_check=("truncated=redo:2",))
        again = bare_job(server, prompt, tmp_path, on_check=("truncated=redo:2",))
    (row,) = rows_of(summary)
    assert (row["checks"], row["attempts"], len(server.bodies)) == ("truncated", "3", 3)
    assert again.sent == 0


def test_other_flaws_are_left(prompt: Path, tmp_path: Path) -> None:
    with bare_server(flawed_then(99)) as server:
        summary = bare_job(server, prompt, tmp_path, on_check=("silent=redo", "truncated=flag"))
    assert len(server.bodies) == 1
    assert summary.exit_code == 0


@pytest.mark.parametrize("failure", [(400, {"error": {"message": "no", "code": "x"}}), (200, ["no choices"])])
def test_a_flawed_reply_stands_when_asking_again_fails(
    failure: tuple[int, dict[str, Any]] | tuple[int, list[str]], prompt: Path, tmp_path: Path
) -> None:
    def reply(path: str, body: bytes, before: int) -> object:
        return failure if before else flawed_then(99)(path, body, before)

    with bare_server(reply) as server:
        summary = bare_job(server, prompt, tmp_path, on_check=("truncated=redo:3",))
    (row,) = rows_of(summary)
    assert (summary.exit_code, row["status"], row["transcript"]) == (0, "succeeded", "Reply number 1.")
    assert (row["checks"], row["version"], len(server.bodies)) == ("truncated", "1", 2)
    assert local(summary.output / row["audio_file"]).exists()
    assert [attempt[1] for attempt in attempts_of(summary)] == ["succeeded", "failed"]


# Heard again, and written down.


@pytest.fixture(scope="module")
def speaking() -> Iterator[EmulatorProcess]:
    from audiobatch_emulator.process import EmulatorProcess

    pytest.importorskip("pocketsphinx", reason="the extra `local` is not installed")
    with EmulatorProcess() as emulator:
        yield emulator


def test_replies_are_heard_again_and_recordings_written_down(
    speaking: EmulatorProcess, tmp_path: Path
) -> None:
    speaking.reset()
    out = {"output": str(tmp_path / "out"), **azure(speaking)}
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.txt").write_text("Good morning. The weather is very nice today.")
    spoken = run_job(
        inputs=[str(tmp_path / "lines")],
        **out,
        read_aloud=True,
        voice="sage",
        verify_speech="gpt-4o-transcribe",
    )
    path, row = audio_of(spoken)
    assert 0 < float(row["word_error_rate"]) <= 0.7 or float(row["word_error_rate"]) == 0.0
    assert [call["transport"] for call in speaking.settled_journal(2)] == ["chat", "transcription"]

    speaking.reset()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "memo.wav").write_bytes(path.read_bytes())
    common = {"inputs": [str(tmp_path / "in")], **azure(speaking), "output": str(tmp_path / "heard")}
    first = run_job(**common, modalities="text")
    assert rows_of(first)[0]["input_transcript"] == ""
    later = run_job(**common, modalities="text", transcribe_inputs="whisper-1")
    (row,) = rows_of(later)
    words = {"good", "morning", "weather", "nice", "today"}
    assert len(words & set(row["input_transcript"].lower().split())) >= 2, row["input_transcript"]
    assert [call["transport"] for call in speaking.settled_journal(2)] == ["chat", "transcription"], (
        "words are added to what is there; no reply is bought again"
    )
    srt = (tmp_path / "heard" / "transcripts" / "memo.wav.srt").read_text()
    vtt = (tmp_path / "heard" / "transcripts" / "memo.wav.vtt").read_text()
    assert srt.startswith("1\n00:00:0")
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    assert run_job(**common, modalities="text", transcribe_inputs="whisper-1").sent == 0


def test_words_cost_and_are_journalled_like_any_call(emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=3)
    summary = job(emulator, tmp_path, transcribe_inputs="whisper-1", verify_speech=True)
    (row,) = rows_of(summary)
    calls = emulator.settled_journal(3)
    assert sorted(call["transport"] for call in calls) == ["chat", "transcription", "transcription"]
    attempts = attempts_of(summary)
    assert len(attempts) == 3
    assert float(row["cost_usd"]) == pytest.approx(sum(float(attempt[2]) for attempt in attempts))
    assert float(present(summary.cost_usd)) == pytest.approx(float(row["cost_usd"]))
    assert row["word_error_rate"] == "1"
    assert job(emulator, tmp_path, transcribe_inputs="whisper-1", verify_speech=True).sent == 0


def test_a_result_without_its_words_still_stands_and_the_next_run_tries_again(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=1)
    emulator.put_faults({"when": {"deployment": "whisper-1"}, "do": {"status": 400}})
    first = job(emulator, tmp_path, transcribe_inputs="whisper-1")
    assert (first.exit_code, first.succeeded) == (0, 1)
    assert "1 results could not be transcribed" in first.message
    emulator.put_faults()
    second = job(emulator, tmp_path, transcribe_inputs="whisper-1")
    assert (second.sent, second.message) == (1, "")
    assert [call["status"] for call in emulator.settled_journal(3)] == [200, 400, 200]
    assert job(emulator, tmp_path, transcribe_inputs="whisper-1").sent == 0


def test_a_deployment_that_is_not_there_ends_the_words_and_not_the_job(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_wav(tmp_path / "in" / name, seconds=0.5)
    summary = job(emulator, tmp_path, transcribe_inputs="no-such-model")
    assert (summary.exit_code, summary.succeeded) == (0, 3)
    assert "3 results could not be transcribed" in summary.message
    calls = [call["transport"] for call in emulator.settled_journal(4)]
    assert calls.count("chat") == 3, "what is to be written down goes nowhere else"


def test_gpt_models_and_unknown_names_are_asked_in_the_form_they_take(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=1)
    job(emulator, tmp_path, transcribe_inputs="gpt-4o-transcribe")
    assert [call["status"] for call in emulator.settled_journal(2)] == [200, 200]
