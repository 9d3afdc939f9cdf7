"""Edit short clips with pydub; no other module imports it.

pydub holds a clip whole and cuts at milliseconds: right for replies, wrong for recordings. Its resampler
aliases (an 11 kHz tone stays at -11 dBFS after conversion to 16 kHz), so that `convert.resampled` changes rates.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from audiobatch.audio.convert import resampled
from audiobatch.audio.decode import open_sound
from audiobatch.audio.encode import encode_reply, to_int16
from audiobatch.audio.levels import LevelMeter, runs_below, to_power
from audiobatch.audio.wav import pcm_to_wav

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydub import AudioSegment

#: Between the joined replies of two parts: as long as a pause between paragraphs.
GAP_S = 0.5

#: What is left before and after the speech when a reply's silence is trimmed: a consonant's soft beginning.
EDGE_MARGIN_S = 0.1
#: Below this an edge is silence: 10 dB under `levels.SILENCE_DBFS`, since replies have no room noise.
EDGE_DBFS = -60.0


def join_replies(replies: Sequence[bytes], format: str, *, gap_s: float = GAP_S) -> bytes:  # noqa: A002
    """Join the parts' spoken replies, with a short gap between them.

    Args:
        replies: in order, in any format that can be decoded; the result has the first one's rate and channels.
        format: the result's, one of `encode.REPLY_FORMATS`.

    Raises:
        ValueError: none given, or one that cannot be decoded.
    """
    if not replies:
        raise ValueError("there are no replies to join")
    clips = [_decoded(reply) for reply in replies]
    rate, channels = clips[0][1], clips[0][0].shape[1]
    segments = [_segment(_like(samples, was_hz, rate, channels), rate) for samples, was_hz in clips]
    gap = _segment(np.zeros((round(gap_s * rate), channels), np.float32), rate)
    joined = segments[0]
    for segment in segments[1:]:
        joined = joined + gap + segment
    return encode_reply(_to_wav(joined), format)


def trim_edges(wav: bytes) -> bytes:
    """Trim the silence before and after a reply's speech to `EDGE_MARGIN_S`; a reply of silence is left alone.

    Raises:
        ValueError: it cannot be decoded.
    """
    samples, rate = _decoded(wav)
    meter = LevelMeter(rate)
    meter.add(samples)
    levels = meter.result()
    silences = runs_below(levels.power, to_power(EDGE_DBFS), 1)
    count = len(levels.power)
    if (0, count) in silences:
        return wav
    begin = silences[0][1] * levels.hop_s if silences and silences[0][0] == 0 else 0.0
    end = silences[-1][0] * levels.hop_s if silences and silences[-1][1] == count else levels.duration_s
    first_ms = max(0, int((begin - EDGE_MARGIN_S) * 1000))
    last_ms = int((end + EDGE_MARGIN_S) * 1000)
    segment = _segment(samples, rate)
    if first_ms == 0 and last_ms >= len(segment):
        return wav
    return _to_wav(segment[first_ms:last_ms])


def fade(wav: bytes, *, in_s: float = 0.0, out_s: float = 0.0) -> bytes:
    """Fade a reply in and out; each fade lasts at most half of it.

    Raises:
        ValueError: it cannot be decoded, or a length is negative.
    """
    if in_s < 0 or out_s < 0:
        raise ValueError("a fade cannot be shorter than nothing")
    samples, rate = _decoded(wav)
    segment = _segment(samples, rate)
    half_ms = len(segment) // 2
    if in_ms := min(round(in_s * 1000), half_ms):
        segment = segment.fade_in(in_ms)
    if out_ms := min(round(out_s * 1000), half_ms):
        segment = segment.fade_out(out_ms)
    return _to_wav(segment)


def apply_gain(wav: bytes, gain_db: float) -> bytes:
    """Make a reply louder or softer; samples that would pass full scale are clipped to it.

    Raises:
        ValueError: it cannot be decoded.
    """
    samples, rate = _decoded(wav)
    return _to_wav(_segment(samples, rate).apply_gain(gain_db))


def _decoded(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Return a clip's samples, frames x channels, and its rate in hertz."""
    with open_sound(io.BytesIO(data), len(data)) as sound:
        blocks = list(sound.blocks())
        if not blocks:
            raise ValueError("it holds no samples")
        return np.concatenate(blocks), sound.sample_rate_hz


def _like(samples: NDArray[np.float32], was_hz: int, rate_hz: int, channels: int) -> NDArray[np.float32]:
    """Convert samples to another rate and another number of channels."""
    if samples.shape[1] != channels:
        samples = np.repeat(samples.mean(axis=1, keepdims=True, dtype=np.float32), channels, axis=1)
    if was_hz == rate_hz:
        return samples
    sides = [
        np.concatenate(list(resampled([samples[:, index : index + 1]], was_hz, rate_hz)))
        for index in range(channels)
    ]
    return np.concatenate(sides, axis=1)


def _segment(samples: NDArray[np.float32], rate_hz: int) -> AudioSegment:
    """Make a pydub clip of samples, 16 bits each."""
    with warnings.catch_warnings():
        # On import pydub warns that it found no ffmpeg program (none is needed here) and that audioop is leaving
        # the standard library; older releases have invalid escapes too.
        warnings.simplefilter("ignore")
        from pydub import AudioSegment
    return AudioSegment(
        to_int16(samples).tobytes(), frame_rate=rate_hz, sample_width=2, channels=samples.shape[1]
    )


def _to_wav(segment: AudioSegment) -> bytes:
    return pcm_to_wav(segment.raw_data, sample_rate_hz=segment.frame_rate, channels=segment.channels)
