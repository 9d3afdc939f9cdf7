"""WAV headers: sizes that are missing, wrong or right, and chunks that must not be lost."""

from __future__ import annotations

import contextlib
import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.audio.wav import pcm_to_wav, repair_header
from tests import audio_corpus as corpus

SAMPLES = corpus.speech(0.5, 24_000)
PLAIN = corpus.wav(SAMPLES, 24_000)
CHUNK = b"LIST" + struct.pack("<I", 26) + b"INFOINAM" + struct.pack("<I", 14) + b"A quiet room.\0"


def seconds(data: bytes) -> float:
    with wave.open(io.BytesIO(data)) as reader:
        return float(reader.getnframes() / reader.getframerate())


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0, 0x7FFFF000, 100, 0x10000000])
def test_whatever_the_header_says_the_repaired_one_is_true(size: int) -> None:
    assert repair_header(corpus.with_sizes(PLAIN, riff=size, sound=size)) == PLAIN


def test_a_true_header_comes_back_uncopied() -> None:
    assert repair_header(PLAIN) is PLAIN


def test_chunks_before_and_behind_the_samples_are_kept() -> None:
    before = PLAIN[:36] + CHUNK + PLAIN[36:]
    repaired = repair_header(corpus.with_sizes(before, riff=0xFFFFFFFF, sound=0xFFFFFFFF))
    assert repaired[36 : 36 + len(CHUNK)] == CHUNK
    assert seconds(repaired) == 0.5
    behind = repair_header(PLAIN + CHUNK)
    assert behind.endswith(CHUNK)
    assert struct.unpack_from("<I", behind, 4)[0] == len(behind) - 8


def test_an_incomplete_last_frame_is_dropped() -> None:
    streamed = corpus.with_sizes(PLAIN, riff=0xFFFFFFFF, sound=0xFFFFFFFF)
    assert repair_header(streamed[:-1]) == pcm_to_wav(PLAIN[44:-2])


def test_an_rf64_gets_true_sizes_too() -> None:
    rf64 = corpus.wav(SAMPLES, 24_000, "PCM_16", "RF64")
    at = rf64.index(b"ds64") + 8
    lying = rf64[:at] + b"\xff" * 24 + rf64[at + 24 :]
    repaired = repair_header(lying)
    assert struct.unpack_from("<Q", repaired, at + 8)[0] == len(SAMPLES) * 2
    assert repair_header(repaired) == repaired


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"<html>no</html>", PLAIN[:30], PLAIN[:36], b"ID3" + bytes(99)]
)
def test_what_is_no_wav_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        repair_header(data)


@given(pcm=st.binary(max_size=4000), channels=st.integers(1, 8), rate=st.sampled_from([8000, 24000, 44100]))
def test_bare_samples_become_a_file_that_every_reader_reads(pcm: bytes, channels: int, rate: int) -> None:
    data = pcm_to_wav(pcm, sample_rate_hz=rate, channels=channels)
    with wave.open(io.BytesIO(data)) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (rate, channels, 2)
        whole = len(pcm) - len(pcm) % (2 * channels)
        assert reader.readframes(1 << 20) == pcm[:whole]


@given(
    sound=st.binary(min_size=64, max_size=300).filter(lambda data: len(data) % 2 == 0),
    before=st.lists(
        st.tuples(st.sampled_from([b"LIST", b"bext", b"JUNK"]), st.binary(max_size=40)), max_size=3
    ),
    size=st.sampled_from([0xFFFFFFFF, 0xFFFFFFDB]),
)
def test_samples_and_chunks_survive_any_repair(
    sound: bytes, before: list[tuple[bytes, bytes]], size: int
) -> None:
    chunks = b"".join(
        name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in before
    )
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 24_000, 48_000, 2, 16)
    data = (
        b"RIFF" + struct.pack("<I", size) + b"WAVE" + fmt + chunks + b"data" + struct.pack("<I", size) + sound
    )
    repaired = repair_header(data)
    assert repaired[8:] == data[8 : -len(sound) - 4] + struct.pack("<I", len(sound)) + sound
    assert seconds(repaired) == len(sound) / 2 / 24_000


@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_value_error(data: bytes) -> None:
    for bytes_ in (data, b"RIFF\0\0\0\0WAVE" + data, PLAIN[:20] + data, PLAIN[:36] + data):
        with contextlib.suppress(ValueError):
            repair_header(bytes_)
