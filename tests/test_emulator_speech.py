"""The emulator's voice: distinct, the same every time, and alive after its engine dies."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soxr

from audiobatch_emulator import espeak_speech
from audiobatch_emulator.engine_process import EngineCrashed, EnginePool
from audiobatch_emulator.errors import EmulatorError
from audiobatch_emulator.espeak_speech import EspeakSpeech, language_of
from audiobatch_emulator.measuring import Measurements, Measurer
from audiobatch_emulator.speech import SAMPLE_RATE_HZ, open_speech
from audiobatch_emulator.voices import KNOWN_VOICES, Voice, voice_named
from tests.narrowing import present

SENTENCE = "We were away a year ago. Please call me back when you have received the new order."
LONG_TEXT = "The river carries the water to the sea. " * 600
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
async def speech() -> AsyncIterator[EspeakSpeech]:
    opened = EspeakSpeech()
    yield opened
    await opened.aclose()


def duration_s(pcm: bytes) -> float:
    return len(pcm) / 2 / SAMPLE_RATE_HZ


def measured(pcm: bytes) -> Measurements:
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    samples = soxr.resample(samples, SAMPLE_RATE_HZ, 16_000)
    measurer = Measurer()
    for start in range(0, len(samples), 16_000):
        measurer.add(samples[start : start + 16_000])
    return measurer.result()


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


async def test_a_sentence_is_spoken_at_the_pace_of_speech_and_no_sample_clips(speech: EspeakSpeech) -> None:
    for voice in KNOWN_VOICES:
        pcm = await speech.say(SENTENCE, voice)
        samples = np.frombuffer(pcm, "<i2")
        assert 4 < duration_s(pcm) < 7, voice
        assert 5_000 < np.abs(samples.astype(int)).max() < 32_000, voice


async def test_every_two_voices_differ_in_pitch_by_a_semitone(speech: EspeakSpeech) -> None:
    pitches = {voice: measured(await speech.say(SENTENCE, voice)).pitch_hz for voice in KNOWN_VOICES}
    assert len(pitches) == 13
    for (one, low), (other, high) in itertools.combinations(pitches.items(), 2):
        assert low is not None
        assert high is not None
        assert 12 * abs(math.log2(low / high)) > 1.0, f"{one} {low:.0f} Hz, {other} {high:.0f} Hz"


async def test_every_voice_speaks_within_the_pitches_of_its_table(speech: EspeakSpeech) -> None:
    for name, voice in KNOWN_VOICES.items():
        pitch_hz = present(measured(await speech.say(SENTENCE, name)).pitch_hz)
        assert voice.low_pitch_hz * 0.95 < pitch_hz < voice.high_pitch_hz * 1.05, name


async def test_the_same_text_is_the_same_bytes_whatever_was_said_before_and_in_another_process(
    speech: EspeakSpeech,
) -> None:
    first = await speech.say(SENTENCE, "sage")
    other = EspeakSpeech()
    try:
        for text, voice in (("Something else.", "cedar"), ("And more, with fuzzy sounds.", "sage")):
            await other.say(text, voice)
        assert await other.say(SENTENCE, "sage") == first
    finally:
        await other.aclose()


async def test_speech_is_the_same_after_the_cache_has_forgotten_it(
    speech: EspeakSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(espeak_speech, "CACHE_BYTES", 1)
    said = [await speech.say(SENTENCE, "echo") for _ in range(4)]
    assert len(set(said)) == 1
    assert said[0] is not said[1]


async def test_what_was_said_lately_is_answered_from_memory(speech: EspeakSpeech) -> None:
    assert await speech.say(SENTENCE, "echo") is await speech.say(SENTENCE, "echo")


async def test_an_unknown_voice_gets_one_of_its_own(speech: EspeakSpeech) -> None:
    one, two = [await speech.say(SENTENCE, name) for name in ("voice_abc123", "voice_abc124")]
    known = [await speech.say(SENTENCE, name) for name in KNOWN_VOICES]
    assert len({one, two, *known}) == 2 + len(known)


def test_a_voices_name_is_known_in_capitals_too() -> None:
    assert voice_named("Alloy") == voice_named("alloy")


def test_a_voice_with_a_name_that_is_no_file_name_is_refused_at_birth() -> None:
    with pytest.raises(ValueError, match="name"):
        Voice(
            name="../x",
            language="en-us",
            klatt=3,
            low_pitch_hz=80,
            high_pitch_hz=90,
            formant_percent=100,
            words_per_minute=160,
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "\0",
        "\ud83d",
        "😀😀",
        "<speak><break time='9s'/></speak>",
        "[[h@l'oU]]",
        "a" * 3000,
        "\x01\x7f\u200b",
    ],
    ids=[
        "empty",
        "blank",
        "dots",
        "nul",
        "lone surrogate",
        "emoji",
        "markup",
        "phonemes",
        "endless",
        "control",
    ],
)
async def test_odd_text_is_spoken_somehow_and_the_engine_lives(speech: EspeakSpeech, text: str) -> None:
    assert duration_s(await speech.say(text, "alloy")) >= 0.2
    assert len(speech.pids) == 1


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Привет, как дела?", "ru"),
        ("你好，今天天气很好。", "cmn"),
        ("こんにちは、世界の皆さん", "ja"),
        ("مرحبا بالعالم", "ar"),
        ("नमस्ते दुनिया", "hi"),
        ("안녕하세요", "ko"),
        ("Καλημέρα κόσμε", "el"),
        ("Grüße aus München", None),
        ("The word привет means hello", None),
        ("1234 + 5", None),
    ],
)
async def test_a_text_in_another_script_is_read_in_a_language_that_uses_it(
    speech: EspeakSpeech, text: str, language: str | None
) -> None:
    assert language_of(text) == language
    assert 0.5 < duration_s(await speech.say(text, "alloy")) < 10


async def test_thousands_of_words_are_spoken_to_the_end(speech: EspeakSpeech) -> None:
    pcm = await speech.say("The river carries the water to the sea. " * 300, "alloy")
    assert 500 < duration_s(pcm) < 1200


async def test_an_engine_killed_in_mid_request_is_one_failed_request(speech: EspeakSpeech) -> None:
    before = await speech.say(SENTENCE, "alloy")
    victim = speech.pids[0]
    doomed = asyncio.create_task(speech.say(LONG_TEXT, "alloy"))
    await asyncio.sleep(0.1)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(EngineCrashed):
        await doomed
    assert await speech.say(SENTENCE + " ", "alloy")
    assert speech.pids != (victim,)
    assert (await speech.say(SENTENCE, "alloy")) == before


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGSTOP on Windows")
async def test_an_engine_that_hangs_is_one_failed_request() -> None:
    pool = EnginePool("audiobatch_emulator.pocketsphinx_engine", processes=1, quiet_limit_s=8)
    try:
        assert (await pool.ask({}, b"no audio"))[0]["undecodable"]
        hung = pool.pids[0]
        pool._engines[0]._quiet_limit_s = 0.3
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(EngineCrashed, match="said nothing for"):
            await pool.ask({}, b"no audio")
        assert not is_running(hung)
        pool._engines[0]._quiet_limit_s = 30
        assert (await pool.ask({}, b"no audio"))[0]["undecodable"]
    finally:
        await pool.aclose()


async def test_an_engine_that_cannot_start_says_why() -> None:
    pool = EnginePool("audiobatch_emulator.no_such_engine", processes=1)
    with pytest.raises(EngineCrashed, match="No module named"):
        await pool.ask({})
    await pool.aclose()


async def test_a_caller_that_leaves_does_not_take_the_engine_with_it(speech: EspeakSpeech) -> None:
    await speech.say("warm", "alloy")
    pid = speech.pids[0]
    leaving = asyncio.create_task(speech.say("The river carries the water to the sea. " * 60, "alloy"))
    await asyncio.sleep(0.02)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await speech.say(SENTENCE, "alloy")
    assert speech.pids == (pid,)


async def test_closing_leaves_neither_a_process_nor_a_folder() -> None:
    speech = EspeakSpeech()
    await speech.say(SENTENCE, "alloy")
    pid, folder = speech.pids[0], speech._folder
    assert present(folder).is_dir()
    await speech.aclose()
    assert not is_running(pid)
    assert not present(folder).exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_the_engine_ends_and_cleans_up_when_its_parent_is_killed() -> None:
    code = (
        "import asyncio\n"
        "from audiobatch_emulator.espeak_speech import EspeakSpeech\n"
        "async def main():\n"
        "    speech = EspeakSpeech()\n"
        "    await speech.say('Hello.', 'alloy')\n"
        "    print(speech.pids[0], speech._folder, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with python(code) as parent:
        pid, folder = present(parent.stdout).readline().split()
        assert is_running(int(pid))
        parent.kill()
    deadline = time.monotonic() + 10
    while (is_running(int(pid)) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(pid))
    assert not Path(folder).exists()


@pytest.mark.skipif(os.name == "nt", reason="sessions are POSIX's")
async def test_ctrl_c_in_the_terminal_does_not_reach_the_engine(speech: EspeakSpeech) -> None:
    await speech.say("warm", "alloy")
    assert os.getsid(speech.pids[0]) != os.getsid(0)
    os.kill(speech.pids[0], signal.SIGINT)
    assert await speech.say(SENTENCE, "alloy")


async def test_a_temporary_folder_with_a_long_path_is_not_used(
    speech: EspeakSpeech, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    if os.name == "nt":
        with pytest.raises(EmulatorError, match="TMPDIR"):
            await speech.say(SENTENCE, "alloy")
    else:
        assert await speech.say(SENTENCE, "alloy")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmulatorError, match=r"pip install 'audiobatch\[local\]'.*--speech tone"):
        open_speech("real")


def test_the_tones_need_no_engine_in_the_process() -> None:
    code = (
        "import asyncio, sys\n"
        "from audiobatch_emulator.speech import open_speech\n"
        "asyncio.run(open_speech('tone').say('Hello', 'alloy'))\n"
        "assert not {'espeakng_loader', 'pocketsphinx'} & set(sys.modules)\n"
    )
    with python(code) as child:
        assert child.wait(120) == 0


async def test_tones_last_as_long_as_the_text_would() -> None:
    tones = open_speech("tone")
    for characters in (3, 150, 1500):
        assert duration_s(await tones.say("x" * characters, "alloy")) == pytest.approx(characters / 15)
    assert duration_s(await tones.say("", "alloy")) == pytest.approx(0.2)


async def test_tones_tell_voices_and_texts_apart_and_repeat() -> None:
    tones = open_speech("tone")
    texts = ["Good morning to all of you", "Good evening to all of us!"]
    said = {(text, voice): await tones.say(text, voice) for text in texts for voice in KNOWN_VOICES}
    assert len(set(said.values())) == len(said)
    again = open_speech("tone")
    assert said == {key: await again.say(*key) for key in said}
    assert -35 < measured(said[texts[0], "alloy"]).level_dbfs < -20
