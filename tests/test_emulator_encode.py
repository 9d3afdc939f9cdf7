"""Encoding is exact: the same samples give the same bytes, and the lengths are right."""

import io
import math
import struct

import av
import pytest

from audiobatch_emulator.encode import FORMATS, encode, wav_header

PCM = struct.pack("<24000h", *(round(9000 * math.sin(n / 17)) for n in range(24_000)))


def duration_s(encoded: bytes) -> float:
    with av.open(io.BytesIO(encoded), "r") as file:
        return sum(float(frame.samples / frame.sample_rate) for frame in file.decode(audio=0))


@pytest.mark.parametrize("audio_format", FORMATS)
def test_the_same_samples_give_the_same_bytes(audio_format: str) -> None:
    assert encode(PCM, audio_format) == encode(PCM, audio_format)


@pytest.mark.parametrize("audio_format", [name for name in FORMATS if name != "pcm16"])
def test_a_second_stays_a_second(audio_format: str) -> None:
    assert duration_s(encode(PCM, audio_format)) == pytest.approx(1.0, abs=0.09)


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("samples", [0, 1, 7])
def test_very_little_is_encoded_as_well(audio_format: str, samples: int) -> None:
    encoded = encode(PCM[: 2 * samples], audio_format)
    assert encoded or audio_format == "pcm16"


def test_the_header_is_of_a_file_whose_end_is_not_known() -> None:
    header = wav_header()
    assert len(header) == 44
    assert header[:4] + header[8:16] + header[36:40] == b"RIFFWAVEfmt data"
    assert header[4:8] == header[40:44] == b"\xff" * 4
