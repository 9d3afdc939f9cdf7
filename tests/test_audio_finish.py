"""Finishing replies: loudness by EBU R128, trimmed edges, fades, and joining the replies of parts."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from pydantic import ValidationError

from audiobatch.audio.clips import GAP_S, fade, join_replies, trim_edges
from audiobatch.audio.encode import encode_reply
from audiobatch.audio.finish import CEILING_DBTP, Finish, finish_reply, measure_loudness, normalize
from audiobatch.audio.measure import measure
from audiobatch.audio.wav import pcm_to_wav
from audiobatch.config.jobspec import JobSpec
from audiobatch.inputs.sound_settings import finish_of
from tests import audio_corpus as corpus

RATE = 24_000


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    return pcm_to_wav(np.rint(samples * 32767).astype("<i2").tobytes(), sample_rate_hz=rate)


def tone(seconds: float, amplitude: float, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate) * amplitude


def samples_of(data: bytes) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    return samples


def test_a_tone_of_1_khz_in_one_channel_measures_three_below_its_peak() -> None:
    # BS.1770 is scaled so that 1 kHz in both channels at -23 dBFS (peak) measures -23 LUFS; one channel, 3 less.
    loudness = measure_loudness(wav(tone(20, 10 ** (-23 / 20), 48_000), 48_000))
    assert loudness.integrated_lufs == pytest.approx(-26.0, abs=0.1)
    assert loudness.true_peak_dbtp == pytest.approx(-23.0, abs=0.2)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("target_lufs", [-23.0, -16.0])
def test_replies_of_any_length_reach_their_target(seconds: float, target_lufs: float) -> None:
    done = normalize(wav(corpus.speech(seconds, RATE, level=0.05)), target_lufs=target_lufs)
    loudness = measure_loudness(done)
    at_ceiling = loudness.true_peak_dbtp == pytest.approx(CEILING_DBTP, abs=0.3)
    assert at_ceiling or loudness.integrated_lufs == pytest.approx(target_lufs, abs=0.3)
    assert loudness.true_peak_dbtp <= CEILING_DBTP + 0.1


def test_silence_is_not_made_louder() -> None:
    silence = wav(np.zeros(RATE))
    assert normalize(silence, target_lufs=-18) is silence
    assert measure_loudness(silence).integrated_lufs is None


def test_edges_are_trimmed_and_what_is_said_is_kept() -> None:
    said = corpus.speech(2, RATE)
    padded = np.concatenate((np.zeros(RATE), said, np.zeros(2 * RATE)))
    trimmed = trim_edges(wav(padded))
    clip = measure(trimmed, "wav")
    inside = np.flatnonzero(np.abs(said) > 0.004)
    assert clip.duration_s == pytest.approx((inside[-1] - inside[0]) / RATE + 0.2, abs=0.06)
    loud = samples_of(trimmed)
    assert np.count_nonzero(np.abs(loud) > 0.002) == np.count_nonzero(np.abs(samples_of(wav(said))) > 0.002)


@pytest.mark.parametrize("samples", [np.zeros(RATE), tone(1, 0.3)], ids=["silence", "no silence"])
def test_where_there_is_no_edge_to_trim_nothing_changes(samples: NDArray[np.float32]) -> None:
    assert trim_edges(wav(samples)) == wav(samples)


def test_fades_begin_and_end_at_nothing_and_leave_the_middle() -> None:
    before, after = tone(1, 0.5), samples_of(fade(wav(tone(1, 0.5)), in_s=0.1, out_s=0.2))
    assert len(after) == len(before)
    np.testing.assert_allclose(after[3000:19000], before[3000:19000], atol=1e-3)
    assert np.abs(after[:50]).max() < 0.03
    assert np.abs(after[-50:]).max() < 0.03
    assert not measure(fade(wav(tone(1, 0.5)), out_s=0.2), "wav").ends_abruptly


def test_a_fade_longer_than_the_clip_is_cut_down_to_it() -> None:
    assert measure(fade(wav(tone(0.1, 0.5)), in_s=5, out_s=5), "wav").duration_s == 0.1


def test_replies_are_joined_in_order_with_a_short_gap() -> None:
    clips = [wav(tone(1, 0.5)), wav(tone(2, 0.1)), wav(tone(0.5, 0.3))]
    joined = samples_of(join_replies(clips, "wav"))
    gap = round(GAP_S * RATE)
    assert len(joined) == 3.5 * RATE + 2 * gap
    at = 0
    for clip in clips:
        samples = samples_of(clip)
        np.testing.assert_array_equal(joined[at : at + len(samples)], samples)
        at += len(samples)
        assert not joined[at : at + gap].any()
        at += gap


def test_replies_of_other_formats_and_rates_are_joined_too() -> None:
    clips = [encode_reply(wav(tone(1, 0.5)), "mp3"), wav(tone(1, 0.5, 48_000), 48_000)]
    clip = measure(join_replies(clips, "flac"), "flac")
    assert clip.sample_rate_hz == RATE
    assert clip.duration_s == pytest.approx(2.5, abs=0.05)


def test_there_must_be_something_to_join() -> None:
    with pytest.raises(ValueError, match="no replies"):
        join_replies([], "wav")


@pytest.mark.parametrize("format_", ["wav", "mp3", "m4a", "ogg"])
def test_a_reply_is_trimmed_made_as_loud_as_wanted_faded_and_encoded(format_: str) -> None:
    padded = np.concatenate((np.zeros(RATE), corpus.speech(5, RATE, level=0.02), np.zeros(RATE)))
    streamed = corpus.with_sizes(wav(padded), riff=0xFFFFFFFF, sound=0xFFFFFFFF)
    how = Finish(loudness_lufs=-20.0, trim_silence=True, fade_in_s=0.02, fade_out_s=0.05)
    done = finish_reply(streamed, format_, how)
    clip = measure(done, format_)
    assert 4.5 < clip.duration_s < 5.4
    assert measure_loudness(done).integrated_lufs == pytest.approx(-20.0, abs=0.8)
    assert how.changes_samples


def test_without_a_wish_only_the_header_is_repaired() -> None:
    plain = wav(tone(1, 0.3))
    assert not Finish().changes_samples
    assert finish_reply(corpus.with_sizes(plain, riff=0, sound=0), "wav", Finish()) == plain


@pytest.mark.parametrize(("edge", "beyond"), [(-40, -40.1), (-5, -4.9)])
def test_a_job_takes_the_loudnesses_that_replies_can_be_brought_to(edge: int, beyond: float) -> None:
    assert finish_of(JobSpec(inputs=("x",), normalize=edge)).loudness_lufs == edge
    with pytest.raises(ValidationError):
        JobSpec(inputs=("x",), normalize=beyond)
    with pytest.raises(ValueError, match="from -40 to -5 is possible"):
        Finish(loudness_lufs=beyond)


@pytest.mark.parametrize("wrong", [{"loudness_lufs": 3.0}, {"fade_in_s": -1.0}])
def test_impossible_wishes_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Finish(**wrong)


def test_pydub_is_loaded_without_its_warnings_and_only_when_needed() -> None:
    script = (
        "import sys\n"
        "import audiobatch.audio.convert, audiobatch.audio.probe\n"
        "import audiobatch.audio.measure, audiobatch.audio.measure\n"
        "assert 'pydub' not in sys.modules and 'av' not in sys.modules\n"
        "from audiobatch.audio.clips import join_replies\n"
        "from audiobatch.audio.wav import pcm_to_wav\n"
        "join_replies([pcm_to_wav(bytes(100))] * 2, 'wav')\n"
        "assert 'pydub' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
