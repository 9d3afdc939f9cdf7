"""Preparing recordings: bit for bit where it can be, without aliasing where not; and encoding replies."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audiobatch.audio.convert import MP3_BITS_PER_S, prepare, resampled, unpack
from audiobatch.audio.encode import REPLY_FORMATS, encode_reply
from audiobatch.audio.probe import LARGEST_SENT_BYTES, probe
from audiobatch.audio.trim import Span, Timeline
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.errors import InputError
from audiobatch.model import AudioPart, Media
from tests import audio_corpus as corpus


def on_disk(folder: Path, data: bytes, name: str = "x.wav") -> tuple[Path, Media]:
    path = folder / name
    path.write_bytes(data)
    return path, probe(path).media


def tone(hertz: float, rate: int, seconds: float = 2.0, amplitude: float = 0.7) -> NDArray[np.float32]:
    return (np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate) * amplitude).astype(
        np.float32
    )


def samples_of(part: AudioPart) -> tuple[NDArray[np.float32], int]:
    samples, rate = soundfile.read(io.BytesIO(part.data), dtype="float32")
    return samples, rate


def level_dbfs(samples: NDArray[np.float32]) -> float:
    return 10 * math.log10(max(1e-12, float(np.mean(np.square(samples[2000:-2000], dtype=np.float64)))))


@pytest.mark.parametrize("rate", [22_050, 24_000, 32_000, 44_100, 48_000])
def test_an_11_khz_tone_is_gone_after_conversion_to_16_khz(rate: int) -> None:
    out = np.concatenate(list(resampled([tone(10_900, rate)[:, None]], rate, 16_000)))
    assert level_dbfs(out) <= -80


def test_a_13_khz_tone_is_gone_from_what_is_sent_at_24_khz(tmp_path: Path) -> None:
    path, media = on_disk(tmp_path, corpus.wav(tone(13_500, 48_000), 48_000, "PCM_24"))
    samples, rate = samples_of(prepare(path, media))
    assert rate == 24_000
    assert level_dbfs(samples) <= -80


def test_what_can_be_heard_stays_as_loud_as_it_was(tmp_path: Path) -> None:
    path, media = on_disk(tmp_path, corpus.wav(tone(3_000, 44_100), 44_100, "FLOAT"))
    samples, _ = samples_of(prepare(path, media))
    assert level_dbfs(samples) == pytest.approx(level_dbfs(tone(3_000, 44_100)), abs=0.05)


def test_samples_that_need_no_change_but_a_header_keep_every_bit(tmp_path: Path) -> None:
    plain = corpus.wav(corpus.speech(2, 16_000), 16_000)
    path, media = on_disk(tmp_path, corpus.with_sizes(plain, riff=0xFFFFFFFF, sound=0xFFFFFFFF))
    part = prepare(path, media)
    assert part.data[44:] == plain[44:]


def test_each_side_of_a_call_can_be_sent_alone(tmp_path: Path) -> None:
    left, right = corpus.speech(2, 16_000, seed=1), corpus.speech(2, 16_000, seed=2)
    path, media = on_disk(tmp_path, corpus.wav(np.stack((left, right), axis=1), 16_000))
    np.testing.assert_allclose(samples_of(prepare(path, media, channels="left"))[0], left, atol=1e-4)
    np.testing.assert_allclose(samples_of(prepare(path, media, channels="right"))[0], right, atol=1e-4)
    assert prepare(path, media).data == path.read_bytes()


def test_a_recording_with_one_channel_is_its_own_side(tmp_path: Path) -> None:
    path, media = on_disk(tmp_path, corpus.wav(corpus.speech(1, 16_000), 16_000))
    assert prepare(path, media, channels="left").data == path.read_bytes()


def test_sides_of_six_channels_mean_nothing_and_their_mix_is_their_mean(tmp_path: Path) -> None:
    many = np.stack([corpus.speech(1, 16_000, seed=seed) for seed in range(6)], axis=1)
    path, media = on_disk(tmp_path, corpus.wav(many, 16_000))
    with pytest.raises(InputError, match="6 channels"):
        prepare(path, media, channels="left")
    np.testing.assert_allclose(samples_of(prepare(path, media))[0], many.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize(("right", "loudest"), [(-0.99, 0), (-0.9, 0), (-1.1, 1)])
def test_of_channels_that_cancel_each_other_the_loudest_is_sent(
    subtype: str, right: float, loudest: int, tmp_path: Path
) -> None:
    left = corpus.speech(2, 16_000)
    both = np.stack((left, left * right), axis=1)
    path, media = on_disk(tmp_path, corpus.wav(both, 16_000, subtype))
    assert media.notes == (
        f"its channels cancel each other when mixed: channel {loudest + 1} stands for all of them",
    )
    np.testing.assert_allclose(samples_of(prepare(path, media))[0], both[:, loudest], atol=1e-4)
    np.testing.assert_allclose(samples_of(prepare(path, media, channels="right"))[0], both[:, 1], atol=1e-4)
    unpack(path, media, tmp_path / "plain.wav")
    np.testing.assert_allclose(
        soundfile.read(tmp_path / "plain.wav", dtype="float32")[0], both[:, loudest], atol=1e-4
    )


def test_channels_that_cancel_each_other_are_not_sent_as_an_mp3_either(tmp_path: Path) -> None:
    left = corpus.speech(2, 16_000)
    both = np.stack((left, -left), axis=1)
    path, media = on_disk(tmp_path, corpus.wav(both, 16_000, "MPEG_LAYER_III", "MP3"), "x.mp3")
    samples, _ = samples_of(prepare(path, media))
    assert samples.ndim == 1
    assert level_dbfs(samples) == pytest.approx(level_dbfs(left), abs=0.5)


def test_channels_that_can_be_mixed_are_mixed(tmp_path: Path) -> None:
    one, other = corpus.speech(2, 16_000, seed=1), corpus.speech(2, 16_000, seed=2)
    silent = np.zeros_like(one)
    turning = np.stack((one, np.where(np.arange(len(one)) < len(one) // 2, one, -one)), axis=1)
    alone = np.stack((one, *[silent] * 7), axis=1)
    for both in (np.stack((one, other), axis=1), np.stack((silent, one), axis=1), turning, alone):
        path, media = on_disk(tmp_path, corpus.wav(both, 16_000, "PCM_24"))
        assert not media.notes
        np.testing.assert_allclose(samples_of(prepare(path, media))[0], both.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 1e30])
def test_floats_that_are_no_sound_do_not_upset_the_mixing(wrong: float, tmp_path: Path) -> None:
    both = np.stack([corpus.speech(1, 16_000)] * 2, axis=1)
    both[5_000] = (wrong, -wrong)
    _, media = on_disk(tmp_path, corpus.wav(both, 16_000, "FLOAT"))
    assert (media.mix_channel, media.notes) == (None, ())


def test_the_form_is_the_smallest_that_keeps_what_can_be_heard(tmp_path: Path) -> None:
    for rate, sent_hz in ((8_000, 16_000), (16_000, 16_000), (22_050, 24_000), (192_000, 24_000)):
        path, media = on_disk(tmp_path, corpus.wav(corpus.speech(1, rate), rate, "PCM_24"))
        part = prepare(path, media)
        assert (part.format, samples_of(part)[1]) == ("wav", sent_hz)
        assert part.duration_s == pytest.approx(1.0, abs=0.001)


def test_what_is_too_long_for_a_wav_goes_as_mp3_and_for_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_24") as file:
        for _ in range(11):
            file.write(np.tile(corpus.speech(6, 8_000), 10))
    media = probe(path).media
    part = prepare(path, media)
    assert part.format == "mp3"
    assert len(part.data) == pytest.approx(MP3_BITS_PER_S / 8 * media.duration_s, rel=0.02)
    assert part.duration_s == pytest.approx(660, abs=0.1)
    short = prepare(path, media, timeline=Timeline((Span(start_s=0, end_s=500),)))
    assert (short.format, short.duration_s) == ("wav", 500)


def test_what_is_too_long_even_for_mp3_is_refused_with_what_to_do(tmp_path: Path) -> None:
    media = Media(container="wav", codec="pcm_s16le", duration_s=7320, sample_rate_hz=16_000, channels=1)
    path = tmp_path / "hours.wav"
    corpus.sparse_rf64(path, rate_hz=16_000, channels=1, size_bytes=7320 * 32_000)
    with pytest.raises(InputError, match=r"too long for one request: 122 minutes.*--max-part"):
        prepare(path, media)


def test_a_compressed_recording_unpacked_once_gives_the_same_parts(tmp_path: Path) -> None:
    data = corpus.by_ffmpeg(np.tile(corpus.speech(6, 44_100), 2), 44_100, "ipod", "aac", kind="fltp")
    path, media = on_disk(tmp_path, data, "x.m4a")
    unpack(path, media, tmp_path / "x.wav")
    plain = probe(tmp_path / "x.wav").media
    assert plain.duration_s == pytest.approx(media.duration_s, abs=0.001)
    for first, last in ((0, 3), (3, 7.5), (7.5, 12)):
        timeline = Timeline((Span(start_s=first, end_s=last),))
        one = prepare(path, media, timeline=timeline)
        other = prepare(tmp_path / "x.wav", plain, timeline=timeline)
        assert one.duration_s == pytest.approx(other.duration_s, abs=0.001)
        shorter = min(len(one.data), len(other.data)) - 400
        pair = [np.frombuffer(part.data[444:shorter], "<i2").astype(int) for part in (one, other)]
        assert np.abs(pair[0] - pair[1]).max() < 40


def test_a_file_that_has_gone_is_a_refused_input(tmp_path: Path) -> None:
    path, media = on_disk(tmp_path, corpus.wav(corpus.speech(1, 16_000), 16_000))
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        prepare(path, media)


def test_a_big_wav_is_not_sent_as_it_is(tmp_path: Path) -> None:
    path, media = on_disk(tmp_path, corpus.wav(np.tile(corpus.speech(5, 48_000), (2, 22)).T, 48_000))
    assert path.stat().st_size > LARGEST_SENT_BYTES
    part = prepare(path, media)
    assert part.format == "wav"
    assert len(part.data) < LARGEST_SENT_BYTES


@pytest.mark.parametrize("format_", REPLY_FORMATS)
def test_replies_are_encoded_in_every_format_from_wav_and_from_bare_samples(
    format_: str, tmp_path: Path
) -> None:
    pcm = (corpus.speech(2.0, 24_000) * 32767).astype("<i2").tobytes()
    wav = pcm_to_wav(pcm)
    streamed = corpus.with_sizes(wav, riff=0xFFFFFFFF, sound=0xFFFFFFFF)
    made = [encode_reply(given, format_) for given in (pcm, streamed)]
    if format_ == "pcm16":
        assert made == [pcm, pcm]
        return
    if format_ == "wav":
        assert made == [wav, wav]
    containers = {"opus": "ogg", "m4a": "mp4"}
    for data in made:
        path = tmp_path / f"reply.{format_}"
        path.write_bytes(data)
        media = probe(path).media
        assert (media.container, media.notes) == (containers.get(format_, format_), ())
        assert media.duration_s == pytest.approx(2.0, abs=0.1)


def test_an_unknown_format_and_nothing_to_encode_are_errors() -> None:
    with pytest.raises(ValueError, match="'wma'"):
        encode_reply(b"\0\0", "wma")
    with pytest.raises(ValueError, match="no samples"):
        encode_reply(b"", "mp3")
