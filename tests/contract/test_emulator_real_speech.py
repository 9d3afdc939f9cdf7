"""With the real voice and the real recognizer: what is spoken is speech, and what is heard are its words."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import ask, client, heard, recording

pytest.importorskip("espeakng_loader", reason="the extra `local` is not installed")
pytest.importorskip("pocketsphinx", reason="the extra `local` is not installed")

ALOUD = {"role": "system", "content": "Read the user's text aloud, word for word."}
SENTENCE = "Good morning. The weather is very nice today."


@pytest.fixture(scope="module")
def speaking() -> Iterator[EmulatorProcess]:
    with EmulatorProcess() as emulator:
        yield emulator


def spoken(emulator: EmulatorProcess, voice: str = "sage", audio_format: str = "wav") -> bytes:
    messages = [ALOUD, {"role": "user", "content": SENTENCE}]
    with client(emulator) as openai:
        reply = ask(openai, messages=messages, audio={"voice": voice, "format": audio_format})
    message = reply.choices[0].message
    assert message.audio.transcript == SENTENCE
    return base64.b64decode(message.audio.data)


def test_a_spoken_sentence_is_heard_again(speaking: EmulatorProcess) -> None:
    with client(speaking) as openai:
        reply = ask(openai, messages=heard(recording(spoken(speaking))), modalities=["text"], audio=None)
    answer = reply.choices[0].message.content
    words = [word for word in ("good", "morning", "weather", "very", "nice", "today") if word in answer]
    assert len(words) >= 3, answer
    assert "seconds" in answer


def test_the_same_text_is_the_same_audio_after_a_restart(speaking: EmulatorProcess) -> None:
    with EmulatorProcess() as other:
        assert spoken(other, "echo", "mp3") == spoken(speaking, "echo", "mp3")


def test_voices_differ(speaking: EmulatorProcess) -> None:
    voices = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
    assert len({spoken(speaking, voice) for voice in voices}) == len(voices)


def test_words_have_times_in_every_format_that_has_any(speaking: EmulatorProcess) -> None:
    wav = spoken(speaking)
    with client(speaking, "openai") as openai:

        def transcribe(**settings: Any) -> Any:
            return openai.audio.transcriptions.create(file=("memo.wav", wav), model="whisper-1", **settings)

        verbose = transcribe(response_format="verbose_json", timestamp_granularities=["word", "segment"])
        srt, vtt = transcribe(response_format="srt"), transcribe(response_format="vtt")
    assert {"good", "morning", "weather"} & set(verbose.text.lower().split())
    starts = [word.start for word in verbose.words]
    assert len(starts) == len(verbose.text.split())
    assert starts == sorted(starts)
    assert verbose.segments[0].start == starts[0]
    assert verbose.segments[-1].end == verbose.words[-1].end <= verbose.duration + 0.3
    assert " ".join(segment.text.strip() for segment in verbose.segments) == verbose.text
    number, times, *_ = srt.splitlines()
    assert number == "1"
    assert times.replace(",", ".") in vtt.splitlines()
