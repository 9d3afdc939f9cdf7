"""What comes out is audio, in each format, and each voice is another one."""

import base64
import io

import av
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import ask, client, heard, recording

VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")


def audio_of(server: EmulatorProcess, voice: str, audio_format: str) -> bytes:
    with client(server) as openai:
        reply = ask(openai, audio={"voice": voice, "format": audio_format})
    return base64.b64decode(reply.choices[0].message.audio.data, validate=True)


@pytest.mark.parametrize(
    ("audio_format", "start", "codec"),
    [
        ("wav", b"RIFF", "pcm_s16le"),
        ("mp3", b"", "mp3"),
        ("flac", b"fLaC", "flac"),
        ("opus", b"OggS", "opus"),
        ("aac", b"\xff", "aac"),
    ],
)
def test_each_format_decodes_to_the_same_length(
    server: EmulatorProcess, audio_format: str, start: bytes, codec: str
) -> None:
    expected_s = len(audio_of(server, "ash", "pcm16")) / 48_000
    audio = audio_of(server, "ash", audio_format)
    assert audio.startswith(start)
    with av.open(io.BytesIO(audio), "r") as file:
        stream = file.streams.audio[0]
        assert stream.codec_context.name in (codec, codec + "float", "lib" + codec)
        assert stream.channels == 1
        duration_s = sum(float(frame.samples / frame.sample_rate) for frame in file.decode(stream))
    assert duration_s == pytest.approx(expected_s, abs=0.12)
    assert audio == audio_of(server, "ash", audio_format), "the same request gave other bytes"


def test_pcm16_is_the_wav_without_its_header(server: EmulatorProcess) -> None:
    assert audio_of(server, "echo", "wav")[44:] == audio_of(server, "echo", "pcm16")


def test_ten_voices_are_ten_sounds(server: EmulatorProcess) -> None:
    assert len({audio_of(server, voice, "pcm16") for voice in VOICES}) == len(VOICES)


@pytest.mark.parametrize("audio_format", ["wav", "mp3"])
def test_a_reply_can_be_sent_back_as_a_recording(server: EmulatorProcess, audio_format: str) -> None:
    reply = audio_of(server, "coral", audio_format)
    with client(server) as openai:
        again = ask(openai, messages=heard(recording(reply, audio_format)))
    assert again.usage.prompt_tokens_details.audio_tokens > 50
