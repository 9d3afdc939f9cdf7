"""How loud a reply seems to a listener, by EBU R128, and making it as loud as is wanted.

Measured by FFmpeg's `ebur128` filter, gated and K-weighted as ITU-R BS.1770-4 says.
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

from audiobatch.audio.clips import apply_gain
from audiobatch.audio.decode import open_sound

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

#: No peak above this after normalising, so that mp3 and AAC decoders do not clip it: EBU R 128's limit.
CEILING_DBTP = -1.0

#: The gate of BS.1770: what is below it does not count, and a clip that is below it throughout has no loudness.
_GATE_LUFS = -70.0
#: A measuring block lasts 400 ms; a shorter clip is measured as repeated, which does not change its loudness.
_SHORTEST_S = 0.8
_WORTH_CHANGING_DB = 0.1


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
    """Measures a clip.

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
    """A reply at a loudness: one gain for all of it, so that its dynamics stay as they are.

    Where the ceiling forbids the whole gain, it gets what the ceiling allows. Silence stays as it is.

    Raises:
        ValueError: it cannot be decoded.
    """
    now = measure_loudness(wav)
    if now.integrated_lufs is None:
        return wav
    gain_db = min(target_lufs - now.integrated_lufs, ceiling_dbtp - now.true_peak_dbtp)
    return apply_gain(wav, gain_db) if abs(gain_db) >= _WORTH_CHANGING_DB else wav


def _frames(samples: NDArray[np.float32], rate_hz: int, layout: str) -> list[av.AudioFrame]:
    """A second a frame: the filter measures in steps of 100 ms inside of them."""
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
    """The newest measurement that the filter has ready; empty if none."""
    import av

    found: dict[str, str] = {}
    while True:
        try:
            found = dict(graph.pull().metadata)
        except (av.error.BlockingIOError, av.error.EOFError):
            return found
