"""Whatever people recorded goes in: any format, any side of it, and only what somebody says."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiobatch.audio.levels import LevelMeter
from audiobatch.calls.stats import RunSummary
from audiobatch_emulator.process import EmulatorProcess
from tests.audio_corpus import by_ffmpeg, make, speech, wav
from tests.narrowing import local
from tests.running import audiobatch, azure, last_json, read_manifest, rows_of, run_job, write_wav

RATE = 16_000


def job(emulator: EmulatorProcess, tmp_path: Path, **settings: Any) -> RunSummary:
    return run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        **azure(emulator, **{"modalities": "text", **settings}),
    )


def put(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def by_id(summary: RunSummary) -> dict[str, dict[str, str]]:
    return {row["item_id"]: row for row in rows_of(summary)}


def log_of(summary: RunSummary) -> str:
    return local(summary.output / "runs" / f"{summary.run_id}.log").read_text()


def test_every_kind_of_recording_is_sent_or_refused_with_its_reason(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    cases = {case.path.name: case for case in make(tmp_path / "in") if case.path.stat().st_size < 50e6}
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file() and path.name not in cases:
            path.unlink()
    summary = job(emulator, tmp_path, send_silent=True)
    rows = by_id(summary)
    assert summary.exit_code == 3
    assert len(rows) >= 55
    for name, row in rows.items():
        case = cases[name.rpartition("/")[2]]
        if case.refusal:
            assert (row["status"], row["error_type"]) == ("refused", "input"), name
            assert row["error_message"], name
        else:
            assert row["status"] == "succeeded", (name, row["error_message"])
            assert float(row["input_duration_s"]) == pytest.approx(case.duration_s, abs=0.2 + case.slack_s)
    refused = sum(bool(case.refusal) for case in cases.values())
    assert summary.refused == refused
    assert len(emulator.settled_journal(len(rows) - refused)) == len(rows) - refused


def test_a_wrong_ending_is_noted_in_the_log_and_not_refused(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    put(tmp_path, "memo.wav", by_ffmpeg(speech(1.0, RATE), RATE, "mp3", "libmp3lame"))
    summary = job(emulator, tmp_path)
    assert summary.succeeded == 1
    assert "memo.wav: extension says .wav, content is mp3" in log_of(summary)


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"include": ("*.wav",)}, {"a.wav", "calls/b.wav"}),
        ({"include": ("calls/*",)}, {"calls/b.wav", "calls/c.flac"}),
        ({"exclude": ("calls/*", "a.*")}, {"d.flac"}),
        ({"include": ("*.flac",), "exclude": ("d.*",)}, {"calls/c.flac"}),
    ],
)
def test_globs_choose_among_a_folder_s_files(
    settings: dict[str, tuple[str, ...]], sent: set[str], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    for name in ("a.wav", "calls/b.wav", "calls/c.flac", "d.flac"):
        sound = speech(0.5, RATE)
        put(tmp_path, name, wav(sound, RATE, container=name.rpartition(".")[2].upper()))
    assert set(by_id(job(emulator, tmp_path, **settings))) == sent


def test_silent_recordings_are_refused_unless_they_are_wanted(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "voice.wav", seconds=0.5)
    put(tmp_path, "silence.wav", wav(np.zeros(RATE, np.float32), RATE))
    first = job(emulator, tmp_path)
    assert (first.exit_code, first.succeeded, first.refused) == (3, 1, 1)
    row = by_id(first)["silence.wav"]
    assert (row["status"], row["error_type"]) == ("refused", "input")
    assert "--send-silent" in row["error_message"]
    second = job(emulator, tmp_path, send_silent=True)
    assert (second.sent, second.refused) == (1, 0)
    third = job(emulator, tmp_path)
    assert (third.sent, third.refused, third.exit_code) == (0, 0, 0), "what is done is not refused afterwards"


def two_sides(seconds: float = 2.0) -> NDArray[np.float32]:
    """A call: on the left somebody speaks, on the right somebody whistles at 1 kHz."""
    left = speech(seconds, RATE)
    right = (0.2 * np.sin(2 * np.pi * 1000 * np.arange(len(left)) / RATE)).astype(np.float32)
    return np.stack((left, right), axis=1)


def test_a_split_makes_two_items_of_a_call_and_leaves_the_others_alone(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    put(tmp_path, "call.wav", wav(two_sides(), RATE))
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.5)
    summary = job(emulator, tmp_path, channels="split")
    rows = by_id(summary)
    assert list(rows) == ["call.wav#left", "call.wav#right", "memo.wav"]
    assert rows["call.wav#left"]["input"] == rows["call.wav#right"]["input"] == "call.wav"
    assert rows["call.wav#left"]["transcript"] != rows["call.wav#right"]["transcript"]
    assert rows["call.wav#left"]["fingerprint"] != rows["call.wav#right"]["fingerprint"]
    assert job(emulator, tmp_path, channels="split").sent == 0


def test_one_side_is_another_question_and_the_mix_is_the_old_one(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    put(tmp_path, "call.wav", wav(two_sides(), RATE))
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.5)
    plain = by_id(job(emulator, tmp_path))
    assert job(emulator, tmp_path, channels="mix").sent == 0
    left = job(emulator, tmp_path, channels="left", redo=True)
    assert by_id(left)["call.wav"]["fingerprint"] != plain["call.wav"]["fingerprint"]
    assert by_id(left)["call.wav"]["transcript"] != plain["call.wav"]["transcript"]


def with_silences() -> NDArray[np.float32]:
    """Three sentences, eleven seconds of silence between them."""
    parts = [speech(2.0, RATE, seed=1), np.zeros(5 * RATE, np.float32), speech(2.0, RATE, seed=2)]
    return np.concatenate([*parts, np.zeros(6 * RATE, np.float32), speech(2.0, RATE, seed=3)])


def test_long_silences_are_not_sent_and_what_that_saves_is_told(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    put(tmp_path, "talk.wav", wav(with_silences(), RATE))
    summary = job(emulator, tmp_path, trim_silence=True)
    row = by_id(summary)["talk.wav"]
    assert float(row["trimmed_s"]) == pytest.approx(11 - 2 * 0.8, abs=1.5)
    assert float(row["input_duration_s"]) == pytest.approx(17, abs=0.1)
    (call,) = emulator.settled_journal(1)
    assert call["input_audio_tokens"] == pytest.approx(10 * (17 - float(row["trimmed_s"])), abs=2)
    saved = float(row["trimmed_s"])
    assert f"{saved:,.0f} s of silence were not sent, $" in summary.message
    assert f"{saved:.0f} s of silence will be left out, $" in log_of(summary)
    whole = job(emulator, tmp_path, redo=True)
    assert by_id(whole)["talk.wav"]["trimmed_s"] == ""


def test_what_the_service_takes_goes_out_bit_for_bit(tmp_path: Path) -> None:
    """A server of our own sees the request: the recording's bytes are those of the file."""
    from tests.bare_server import bare_server

    data = wav(speech(1.0, RATE), RATE)
    put(tmp_path, "memo.wav", data)
    odd = put(tmp_path, "odd.wav", wav(two_sides(1.0), RATE, "PCM_24"))
    with bare_server() as server:
        run_job(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"),
            modalities="text", provider="openai", endpoint=server.url,
        )  # fmt: skip
    sent: dict[int, bytes] = {}
    for body in server.bodies:
        part = json.loads(body)["messages"][-1]["content"][-1]["input_audio"]
        sent[len(sent)] = base64.b64decode(part["data"])
    assert data in sent.values()
    (other,) = [one for one in sent.values() if one != data]
    samples, rate = soundfile.read(io.BytesIO(other))
    assert (rate, samples.ndim) == (RATE, 1), "one channel of 16 bits of a 24-bit stereo file"
    assert odd.exists()


def test_a_recording_whose_sides_are_in_opposite_phase_is_not_sent_as_silence(tmp_path: Path) -> None:
    """A server of our own sees the request: one side alone, so that nobody can mix them."""
    from tests.bare_server import bare_server

    said = speech(1.0, RATE)
    put(tmp_path, "wired-wrongly.wav", wav(np.stack((said, -said), axis=1), RATE))
    with bare_server() as server:
        summary = run_job(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"),
            modalities="text", provider="openai", endpoint=server.url,
        )  # fmt: skip
    part = json.loads(server.bodies[0])["messages"][-1]["content"][-1]["input_audio"]
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(part["data"])))
    np.testing.assert_allclose(np.abs(samples), np.abs(said), atol=1e-3)
    assert "wired-wrongly.wav: its channels cancel each other when mixed" in log_of(summary)


def test_the_flags_do_the_same_as_the_settings(tmp_path: Path) -> None:
    put(tmp_path, "call.flac", wav(two_sides(0.6), RATE, container="FLAC"))
    put(tmp_path, "draft.wav", wav(two_sides(0.6), RATE))
    done = audiobatch(
        *(
            "run",
            tmp_path / "in",
            "--output",
            tmp_path / "out",
            "--provider",
            "local",
            "--no-prefect",
            "--json",
        ),
        *("--channels", "split", "--exclude", "draft*", "--trim-silence", "--modalities", "text"),
    )
    assert done.returncode == 0, done.stderr
    rows = read_manifest(tmp_path / "out" / "manifest.csv")
    assert [row["item_id"] for row in rows] == ["call.flac#left", "call.flac#right"]
    assert last_json(done.stdout)["succeeded"] == 2


def test_a_level_is_measured_of_every_side() -> None:
    meter = LevelMeter(RATE)
    meter.add(two_sides())
    assert meter.result().silence_share < 0.01


def test_the_plan_tells_what_is_refused_cut_and_left_out_before_anything_is_sent(tmp_path: Path) -> None:
    put(tmp_path, "talk.wav", wav(with_silences(), RATE))
    put(tmp_path, "long.wav", wav(np.tile(speech(10.0, RATE), 4), RATE))
    put(tmp_path, "silence.wav", wav(np.zeros(RATE, np.float32), RATE))
    done = audiobatch(
        *("plan", tmp_path / "in", "--output", tmp_path / "out", "--provider", "local", "--json"),
        *("--trim-silence", "--max-part", "0.25"),
    )
    assert done.returncode == 0, done.stderr
    plan = last_json(done.stdout)
    assert (plan["to_send"], [row["item_id"] for row in plan["refused"]]) == (2, ["silence.wav"])
    assert plan["calls"] == 5, "one of six seconds, four of forty: a cut may lie late"
    assert plan["trimmed_s"] == pytest.approx(10.5, abs=1)
    assert plan["trimmed_usd"] == pytest.approx(plan["trimmed_s"] * 10 * 32 / 1e6, rel=0.01)
    words = audiobatch(
        "plan", tmp_path / "in", "--output", tmp_path / "out", "--provider", "local", "--trim-silence"
    ).stdout
    assert "silence left out" in words
    assert "saving $0.00" in words
