"""Finish replies before they are saved, where the job asks for it: trim, bring to a loudness, fade, encode.

Loudness is EBU R128's, measured by FFmpeg's `ebur128` filter, gated and K-weighted as ITU-R BS.1770-4 says.
The filter leaves its results with each frame, as `lavfi.r128.I` and `lavfi.r128.true_peak`.
Source: tech.ebu.ch/publications/r128 (version 4.0, August 2020), checked 2026-11-20.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from audiobatch.audio.clips import apply_gain, fade, trim_edges
from audiobatch.audio.decode import open_sound
from audiobatch.audio.encode import encode_reply
from audiobatch.config.jobspec import MAX_LUFS, MIN_LUFS

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

#: What the service encodes by itself. Source: OpenAI API reference, chat completions, `audio.format` (2026-11).
SERVICE_FORMATS = frozenset({"wav", "pcm16", "mp3", "flac", "opus", "aac"})
#: No peak above this after normalising, so that mp3 and AAC decoders do not clip it: EBU R 128's limit.
CEILING_DBTP = -1.0

#: The gate of BS.1770: levels below it do not count, and a clip that is below it throughout has no loudness.
_GATE_LUFS = -70.0
#: A measuring block lasts 400 ms; a shorter clip is measured as repeated, which does not change its loudness.
_SHORTEST_S = 0.8
_WORTH_CHANGING_DB = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How replies are finished; by default, not at all.

    Attributes:
        loudness_lufs: integrated loudness to aim at; None leaves it.
        trim_silence: remove the silence before and after the speech.
    """

    loudness_lufs: float | None = None
    trim_silence: bool = False
    fade_in_s: float = 0.0
    fade_out_s: float = 0.0

    def __post_init__(self) -> None:
        if self.loudness_lufs is not None and not MIN_LUFS <= self.loudness_lufs <= MAX_LUFS:
            raise ValueError(
                f"a loudness of {self.loudness_lufs} LUFS; from {MIN_LUFS:g} to {MAX_LUFS:g} is possible"
            )
        if self.fade_in_s < 0 or self.fade_out_s < 0:
            raise ValueError("a fade cannot be shorter than nothing")

    @property
    def changes_samples(self) -> bool:
        """Whether a reply must be decoded for it."""
        return bool(self.loudness_lufs is not None or self.trim_silence or self.fade_in_s or self.fade_out_s)


def requested_format(format: str, how: Finish) -> str:  # noqa: A002 - the service's own word
    """Return the format to request: the job's own, but a WAV where this program changes or encodes the samples.

    An mp3 that is decoded, changed and encoded again would lose twice.
    """
    return "wav" if how.changes_samples or (format and format not in SERVICE_FORMATS) else format


def finish_reply(wav: bytes, format: str, how: Finish) -> bytes:  # noqa: A002 - the service's own word
    """Trim a reply, bring it to its loudness, fade and encode it.

    The order matters: silence must not count as quiet speech, and fades belong to the edges that are heard.

    Args:
        wav: the reply as a WAV; its sizes may be wrong.
        format: one of `encode.REPLY_FORMATS`.

    Raises:
        ValueError: it cannot be decoded, or the format is unknown.
    """
    if how.trim_silence:
        wav = trim_edges(wav)
    if how.loudness_lufs is not None:
        wav = normalize(wav, target_lufs=how.loudness_lufs)
    if how.fade_in_s or how.fade_out_s:
        wav = fade(wav, in_s=how.fade_in_s, out_s=how.fade_out_s)
    return encode_reply(wav, format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loudness:
    """A clip's loudness.

    Attributes:
        integrated_lufs: over the whole clip, pauses gated out; None for silence.
        true_peak_dbtp: the highest point of the wave between the samples too.
    """

    integrated_lufs: float | None
    true_peak_dbtp: float


def measure_loudness(wav: bytes) -> Loudness:
    """Measure a clip by EBU R128.

    Raises:
        ValueError: it cannot be decoded, or holds no samples.
    """
    import av

    with open_sound(io.BytesIO(wav), len(wav)) as sound:
        blocks = list(sound.blocks())
        rate, channels = sound.sample_rate_hz, sound.channels
    if not blocks:
        raise ValueError("it holds no samples")
    samples = np.concatenate(blocks)
    if channels > 2:
        raise ValueError(f"measures one or two channels, not {channels}")
    samples = np.tile(samples, (max(1, math.ceil(_SHORTEST_S * rate / len(samples))), 1))
    layout = "mono" if channels == 1 else "stereo"
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout=layout, time_base=Fraction(1, rate))
    meter = graph.add("ebur128", "metadata=1:peak=true")
    sink = graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    found: dict[str, str] = {}
    for frame in _frames(samples, rate, layout):
        graph.push(frame)
        found = _drained(graph) or found
    graph.push(None)
    found = _drained(graph) or found
    lufs = float(found.get("lavfi.r128.I", "-inf"))
    peak = float(found.get("lavfi.r128.true_peak", "0"))
    return Loudness(
        integrated_lufs=lufs if lufs > _GATE_LUFS else None,
        true_peak_dbtp=20 * math.log10(peak) if peak > 0 else -math.inf,
    )


def normalize(wav: bytes, *, target_lufs: float, ceiling_dbtp: float = CEILING_DBTP) -> bytes:
    """Bring a reply to a loudness by one gain for all of it, so that its dynamics stay as they are.

    Where the ceiling forbids the whole gain, the reply gets what the ceiling allows. Silence is left alone.

    Raises:
        ValueError: it cannot be decoded.
    """
    now = measure_loudness(wav)
    if now.integrated_lufs is None:
        return wav
    gain_db = min(target_lufs - now.integrated_lufs, ceiling_dbtp - now.true_peak_dbtp)
    return apply_gain(wav, gain_db) if abs(gain_db) >= _WORTH_CHANGING_DB else wav


def _frames(samples: NDArray[np.float32], rate_hz: int, layout: str) -> list[av.AudioFrame]:
    """Cut samples into frames of a second; the filter measures in steps of 100 ms within them."""
    import av

    frames = []
    for start in range(0, len(samples), rate_hz):
        part = np.ascontiguousarray(samples[start : start + rate_hz]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
        frame.sample_rate = rate_hz
        frame.time_base = Fraction(1, rate_hz)
        frame.pts = start
        frames.append(frame)
    return frames


def _drained(graph: av.filter.Graph) -> dict[str, str]:
    """Return the newest measurement that the filter has ready; empty if none."""
    import av

    found: dict[str, str] = {}
    while True:
        try:
            found = dict(graph.pull().metadata)
        except (av.error.BlockingIOError, av.error.EOFError):
            return found
