"""The emulator's recognizer: hears what was said, the same every time, and is not fooled by what is not speech."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import re
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiobatch_emulator import pocketsphinx_recognizer
from audiobatch_emulator.decoding import decode
from audiobatch_emulator.errors import EmulatorError
from audiobatch_emulator.espeak_speech import EspeakSpeech
from audiobatch_emulator.pocketsphinx_engine import pieces
from audiobatch_emulator.pocketsphinx_recognizer import PocketsphinxRecognizer
from audiobatch_emulator.recognition import EngineCrashed, Recognizer, Undecodable, open_recognizer
from audiobatch_emulator.speech_gate import can_be_speech
from audiobatch_emulator.tones import tone_speech
from audiobatch_emulator.voices import voice_named
from tests import audio_corpus, make_samples
from tests.narrowing import present

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT / "sample_inputs" / "recordings"
Kind = Literal["real", "tone"]
QUESTION = (RECORDINGS / "question.wav").read_bytes()


@pytest.fixture(scope="module", params=["real", "tone"])
def kind(request: pytest.FixtureRequest) -> Kind:
    wanted: Kind = request.param
    return wanted


@pytest.fixture
async def recognizer() -> AsyncIterator[PocketsphinxRecognizer]:
    opened = PocketsphinxRecognizer(processes=2)
    yield opened
    await opened.aclose()


@pytest.fixture
async def any_recognizer(kind: Kind) -> AsyncIterator[Recognizer]:
    opened = open_recognizer(kind, processes=1)
    yield opened
    await opened.aclose()


def wav(samples: np.ndarray, rate_hz: int = 16_000, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def sine(pitch_hz: float, duration_s: float = 2.0, peak: float = 0.3) -> np.ndarray:
    return peak * np.sin(2 * np.pi * pitch_hz * np.arange(round(duration_s * 16_000)) / 16_000)


def noise(duration_s: float = 2.0, rms: float = 0.1) -> np.ndarray:
    return np.random.default_rng(7).normal(0, rms, round(duration_s * 16_000))


def errors(said: str, heard: str) -> tuple[int, int]:
    """Word errors (wrong, missing and added), and the number of words said."""
    one, other = [re.findall(r"[a-z']+", text.lower()) for text in (said, heard)]
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        previous, row = row, [i]
        for j, candidate in enumerate(other, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != candidate)))
    return row[-1], len(one)


def sample_table() -> dict[str, tuple[float, str]]:
    """What `sample_inputs/README.md` says of each recording: its length in seconds and its words."""
    readme = (ROOT / "sample_inputs" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+\.(?:wav|mp3))` \| ([\d.]+) s \|.*\| ([^|]+) \|$", readme, re.MULTILINE)
    return {path: (float(length_s), said) for path, length_s, said in rows}


async def test_the_sample_recordings_are_speech_of_the_length_that_their_readme_gives() -> None:
    table, recognizer = sample_table(), open_recognizer("tone")
    assert set(table) == {path.relative_to(RECORDINGS).as_posix() for path in RECORDINGS.rglob("*.*")}
    for path, (length_s, _) in table.items():
        hearing = await recognizer.hear((RECORDINGS / path).read_bytes())
        assert hearing.duration_s == pytest.approx(length_s, abs=0.06), path
        assert 60 < present(hearing.pitch_hz) < 300, path
        assert -35 < hearing.level_dbfs < -20, path
        assert 0.1 < hearing.silence_share < 0.5, path


async def test_sample_recordings_are_understood_by_several_processes_at_once(
    recognizer: PocketsphinxRecognizer,
) -> None:
    paths = ["question.wav", "order-pizza.wav", "meetings/decision.wav", "meetings/Café order – Zoë.wav"]
    hearings = await asyncio.gather(*(recognizer.hear((RECORDINGS / path).read_bytes()) for path in paths))
    counts = [
        errors(sample_table()[path][1], hearing.text) for path, hearing in zip(paths, hearings, strict=True)
    ]
    assert sum(wrong for wrong, _ in counts) / sum(words for _, words in counts) < 0.25
    assert len(set(recognizer.pids)) == 2


def test_the_readme_of_the_samples_quotes_what_their_script_has_said() -> None:
    for recording in make_samples.SAMPLES:
        _, said = sample_table()[recording.path]
        assert said.replace(" / ", " ").strip() == " ".join(part.text for part in recording.parts)


async def test_words_come_with_their_times_and_confidence(recognizer: PocketsphinxRecognizer) -> None:
    hearing = await recognizer.hear(QUESTION)
    assert errors("What time does the library open on Saturday?", hearing.text)[0] <= 2
    assert hearing.text == " ".join(word.text for word in hearing.words)
    times = [time for word in hearing.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= hearing.duration_s
    assert all(0 <= word.confidence <= 1 for word in hearing.words)
    mean = sum(word.confidence for word in hearing.words) / len(hearing.words)
    assert hearing.confidence == pytest.approx(mean)


async def test_what_was_heard_before_changes_nothing(
    recognizer: PocketsphinxRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocketsphinx_recognizer, "CACHED_HEARINGS", 0)
    pizza = (RECORDINGS / "order-pizza.wav").read_bytes()
    first = await recognizer.hear(QUESTION)
    await recognizer.hear(pizza)
    assert await recognizer.hear(QUESTION) == first
    assert len(recognizer.pids) == 1


async def test_a_recording_heard_before_is_answered_from_memory(recognizer: PocketsphinxRecognizer) -> None:
    tone = wav(sine(200))
    assert await recognizer.hear(tone) is await recognizer.hear(tone)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(32_000),
        noise(rms=0.0005),
        noise(),
        sine(440),
        sine(697) + sine(1209),
        np.frombuffer(tone_speech("A text that is hummed.", voice_named("coral")), "<i2")[::2] / 32768,
        np.array([0.5]),
    ],
    ids=["digital silence", "a quiet room", "noise", "a tone", "a dialled digit", "humming", "a click"],
)
async def test_what_is_not_speech_is_given_no_words(
    recognizer: PocketsphinxRecognizer, sound: NDArray[np.float32]
) -> None:
    hearing = await recognizer.hear(wav(sound))
    assert (hearing.text, hearing.words, hearing.confidence) == ("", (), 0.0)


async def test_measured_facts_are_true(any_recognizer: Recognizer) -> None:
    hearing = await any_recognizer.hear(wav(np.concatenate([sine(200, 3.0), np.zeros(16_000)])))
    assert hearing.duration_s == pytest.approx(4.0)
    assert hearing.silence_share == pytest.approx(0.25, abs=0.02)
    assert hearing.pitch_hz == pytest.approx(200, rel=0.02)
    assert hearing.level_dbfs == pytest.approx(20 * np.log10(0.3 / np.sqrt(2)) + 10 * np.log10(0.75), abs=0.1)


async def test_silence_has_a_level_and_no_pitch(any_recognizer: Recognizer) -> None:
    hearing = await any_recognizer.hear(wav(np.zeros(16_000)))
    assert (hearing.level_dbfs, hearing.silence_share, hearing.pitch_hz) == (-120.0, 1.0, None)


FLAVOURS = {
    "16 bit": wav(sine(200)),
    "24 bit": wav(sine(200), subtype="PCM_24"),
    "float": wav(sine(200), subtype="FLOAT"),
    "8 bit": wav(sine(200), subtype="PCM_U8"),
    "mu-law": wav(sine(200), subtype="ULAW"),
    "ADPCM": wav(sine(200), subtype="IMA_ADPCM"),
    "RF64": wav(sine(200), container="RF64"),
    "extensible": wav(sine(200), container="WAVEX"),
    "8 channels": wav(np.repeat(sine(200)[:, np.newaxis], 8, axis=1)),
    "24 channels": wav(np.repeat(sine(200)[:, np.newaxis], 24, axis=1)),
    "sizes unknown": wav(sine(200))[:4]
    + b"\xff" * 4
    + wav(sine(200))[8:40]
    + b"\xff" * 4
    + wav(sine(200))[44:],
    "data size 0": wav(sine(200))[:40] + bytes(4) + wav(sine(200))[44:],
    "flac": wav(sine(200), container="FLAC"),
    "ogg": wav(sine(200), container="OGG", subtype="VORBIS"),
    "mp3": wav(sine(200), container="MP3", subtype="MPEG_LAYER_III"),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_every_flavour_of_audio_is_decoded_whole(flavour: str) -> None:
    hearing = await open_recognizer("tone").hear(FLAVOURS[flavour])
    assert hearing.duration_s == pytest.approx(2.0, abs=0.08)
    assert hearing.pitch_hz == pytest.approx(200, rel=0.02)


async def test_a_recording_cut_off_is_heard_up_to_there() -> None:
    hearing = await open_recognizer("tone").hear(wav(sine(200, 4.0))[:64_044])
    assert hearing.duration_s == pytest.approx(2.0)


def test_a_tag_that_is_not_utf_8_does_no_harm() -> None:
    sound = audio_corpus.speech(1.0, 16_000)
    mp3 = audio_corpus.tagged(audio_corpus.wav(sound, 16_000, "MPEG_LAYER_III", "MP3"))
    assert sum(len(block) for block in decode(mp3)) == pytest.approx(16_000, abs=2_000)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"this is a text",
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"RIFF",
        wav(sine(200))[:30],
        wav(sine(200))[:44],
        b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(200),
        b"\xff\xfb" + bytes(range(256)) * 20,
        b"ID3" + bytes(500),
        b"OggS" + bytes(500),
        np.random.default_rng(1).bytes(5_000),
        struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, 1, 0, 0, 2, 16, b"data", 0),
    ],
    ids=[
        "nothing",
        "text",
        "a playlist",
        "four bytes",
        "a cut header",
        "only a header",
        "an empty format",
        "not an MP3",
        "only a tag",
        "not an Ogg",
        "random",
        "a rate of zero",
    ],
)
async def test_what_is_not_audio_is_undecodable(any_recognizer: Recognizer, junk: bytes) -> None:
    with pytest.raises(Undecodable):
        await any_recognizer.hear(junk)


async def test_a_recognizer_killed_in_mid_request_is_one_failed_request(
    recognizer: PocketsphinxRecognizer,
) -> None:
    long = np.tile(noise(1.0), 60) * np.repeat([1.0, 0.01], 480_000)
    await recognizer.hear(wav(sine(200)))
    victim = recognizer.pids[0]
    doomed = asyncio.create_task(recognizer.hear(QUESTION + bytes(2)))
    await asyncio.sleep(0.1)
    os.kill(victim, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    with pytest.raises(EngineCrashed):
        await doomed
    assert (await recognizer.hear(wav(long))).duration_s == pytest.approx(60)
    assert victim not in recognizer.pids


async def test_a_long_recording_is_cut_at_its_pauses() -> None:
    speech, rate_hz = soundfile.read(RECORDINGS / "lesson-river.wav", dtype="float32")
    assert rate_hz == 16_000
    recording = np.concatenate([speech, np.zeros(16_000, np.float32), speech])
    blocks = np.split(recording, range(16_000, len(recording), 16_000))
    found = list(pieces(iter(blocks)))
    assert len(found) > 3
    ends = [start_s + len(piece) / 16_000 for start_s, piece in found]
    assert all(end <= start + 0.01 for end, (start, _) in zip(ends, found[1:], strict=False))
    # Between the two halves is the longest pause, and no piece reaches over it.
    middle_s = (len(speech) + 8_000) / 16_000
    assert not any(start < middle_s < end for (start, _), end in zip(found, ends, strict=True))


async def test_speech_without_a_pause_is_cut_nevertheless() -> None:
    speech, _ = soundfile.read(RECORDINGS / "question.wav", dtype="float32")
    loud = speech[8_000:50_000]
    recording = np.tile(loud, 30)
    found = list(pieces(iter(np.split(recording, range(16_000, len(recording), 16_000)))))
    assert max(len(piece) for _, piece in found) <= 31 * 16_000
    covered = sum(len(piece) for _, piece in found)
    assert covered > 0.9 * len(recording)


def test_a_short_recording_is_heard_in_one_piece() -> None:
    blocks = [np.ones(16_000, np.float32), np.ones(8_000, np.float32)]
    [(start_s, piece)] = pieces(iter(blocks))
    assert (start_s, len(piece)) == (0.0, 24_000)


def test_speech_can_be_speech_until_it_is_too_quiet_to_hear() -> None:
    speech, _ = soundfile.read(RECORDINGS / "lesson-river.wav", dtype="float32")
    assert can_be_speech(speech)
    assert can_be_speech(speech * np.float32(0.1))
    assert not can_be_speech(speech * np.float32(0.001))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmulatorError, match=r"pip install 'audiobatch\[local\]'.*--speech tone"):
        open_recognizer("real")


async def test_the_sample_recordings_are_what_their_script_makes(tmp_path: Path) -> None:
    question = make_samples.SAMPLES[0]
    speech = EspeakSpeech()
    try:
        written = make_samples.write(tmp_path, question, await make_samples.acted(speech, question))
    finally:
        await speech.aclose()
    again, _ = soundfile.read(written)
    kept, _ = soundfile.read(RECORDINGS / question.path)
    assert np.abs(again - kept).max() < 2e-3  # of full scale: another processor may round another way
