"""A reply's sound in numbers: true for tones whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.audio.encode import encode_reply
from audiobatch.audio.levels import LevelMeter
from audiobatch.audio.measure import measure
from audiobatch.audio.wav import pcm_to_wav
from tests import audio_corpus as corpus

RATE = 24_000


def tone(seconds: float, amplitude: float, hertz: float = 440) -> np.ndarray:
    at = np.arange(round(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * hertz * at) * amplitude * 32767).astype("<i2")


def test_a_tone_has_the_level_that_arithmetic_gives_it() -> None:
    clip = measure(pcm_to_wav(tone(2.0, 0.5).tobytes()), "wav")
    assert clip.duration_s == 2.0
    assert clip.peak_dbfs == pytest.approx(-6.02, abs=0.02)
    assert clip.rms_dbfs == pytest.approx(-9.03, abs=0.02)
    assert clip.silence_share == 0
    assert clip.clipped_share == 0
    assert clip.ends_abruptly


def test_durations_come_from_samples_whatever_the_header_says() -> None:
    streamed = corpus.with_sizes(pcm_to_wav(tone(1.5, 0.3).tobytes()), riff=0xFFFFFFFF, sound=0xFFFFFFFF)
    assert measure(streamed, "wav").duration_s == 1.5


def test_bare_samples_are_taken_at_the_services_rate() -> None:
    assert measure(tone(1.5, 0.3).tobytes(), "pcm16").duration_s == 1.5


def test_half_silence_is_half_silence() -> None:
    samples = np.concatenate((tone(1, 0.3), np.zeros(RATE, "<i2")))
    clip = measure(pcm_to_wav(samples.tobytes()), "wav")
    assert clip.silence_share == pytest.approx(0.5, abs=0.01)
    assert not clip.ends_abruptly


def test_flat_tops_count_and_a_clean_peak_at_full_scale_does_not() -> None:
    assert measure(pcm_to_wav(tone(1, 1.0).tobytes()), "wav").clipped_share == 0
    flat = np.clip(tone(1, 0.9).astype(int) * 2, -32768, 32767).astype("<i2")
    assert measure(pcm_to_wav(flat.tobytes()), "wav").clipped_share > 0.3


@pytest.mark.parametrize("format_", ["mp3", "flac", "opus", "aac", "m4a", "ogg"])
def test_every_format_measures_like_the_wav_it_was_made_from(format_: str) -> None:
    wav = pcm_to_wav((corpus.speech(3.0, RATE) * 32767).astype("<i2").tobytes())
    clip, other = measure(wav, "wav"), measure(encode_reply(wav, format_), format_)
    assert other.duration_s == pytest.approx(clip.duration_s, abs=0.1)
    assert other.rms_dbfs == pytest.approx(clip.rms_dbfs, abs=0.5)


@pytest.mark.parametrize("data", [b"", b"not audio at all", pcm_to_wav(b""), b"\0" * 5000])
def test_what_holds_no_sound_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        measure(data, "wav")


@given(
    cuts=st.lists(st.integers(1, 3000), max_size=8),
    channels=st.integers(1, 3),
    frames=st.integers(0, 5000),
)
def test_levels_do_not_depend_on_how_the_sound_comes_in_blocks(
    cuts: list[int], channels: int, frames: int
) -> None:
    random = np.random.default_rng(frames)
    sound = np.clip(random.standard_normal((frames, channels)) * 0.4, -1, 1).astype(np.float32)
    whole, pieces = LevelMeter(8_000), LevelMeter(8_000)
    whole.add(sound)
    at = 0
    for cut in (*cuts, frames):
        pieces.add(sound[at : at + cut])
        at += cut
    one, other = whole.result(), pieces.result()
    assert one.frames == other.frames == frames
    np.testing.assert_allclose(one.power, other.power, rtol=1e-5)
    assert one.last_power == pytest.approx(other.last_power, rel=1e-5)
    assert one.mean_power == pytest.approx(other.mean_power, rel=1e-4)
    assert one.peak == other.peak
